"""Landmarks that stay where the face stays: the One-Euro filter (Casiez, Roussel and Vogel 2012)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from iact.errors import InputError
from iact.video.tracking import TrackedFace

# Chosen on faces moved by known motion, see benchmarks/bench_video.py.
CUTOFF_AT_REST = 1.0  # Hz
CUTOFF_PER_SPEED = 100.0  # Hz per face size a second
SPEED_CUTOFF = 1.0  # Hz, the authors' choice


class OneEuro:
    """The filter for one face: `smooth = OneEuro(); smooth(landmarks, time)` for each frame.

    A low-pass whose cutoff is `at_rest` (Hz) and rises by `per_speed` for every face size a second that a landmark
    moves, so that what rests is steady and what moves lags little: by less than 1 / (2 pi per_speed) face sizes at any
    constant speed. The face size is sqrt(width x height) of its landmark box, so a face means the same near and far,
    but at least half the box's larger side: landmarks may lie on a line."""

    def __init__(
        self,
        at_rest: float = CUTOFF_AT_REST,
        per_speed: float = CUTOFF_PER_SPEED,
        speed_cutoff: float = SPEED_CUTOFF,
    ):
        self.at_rest, self.per_speed, self.speed_cutoff = at_rest, per_speed, speed_cutoff
        self._time = -np.inf
        self._given = self._smoothed = self._velocity = np.zeros((0, 2))

    def __call__(self, landmarks: np.ndarray, time: float) -> np.ndarray:
        """Smoothed landmarks [K, 2] of landmarks [K, 2] at a time in seconds; the first come back as they are.

        InputError where the time is not after the last one."""
        step, landmarks = time - self._time, np.asarray(landmarks, np.float64)
        if not step > 0:
            raise InputError(f"time: expected seconds after the frame before ({self._time}), got {time}")
        if np.isinf(step):
            self._smoothed, self._velocity = landmarks, np.zeros_like(landmarks)
        else:
            velocity = (landmarks - self._given) / step
            self._velocity = self._velocity + _weight(self.speed_cutoff, step) * (velocity - self._velocity)
            speed = np.linalg.norm(self._velocity, axis=1, keepdims=True) / _size(landmarks)
            weight = _weight(self.at_rest + self.per_speed * speed, step)
            self._smoothed = self._smoothed + weight * (landmarks - self._smoothed)
        self._time, self._given = time, landmarks
        return self._smoothed.copy()


def _size(landmarks: np.ndarray) -> float:
    sides = np.ptp(landmarks, axis=0)
    return float(max(np.sqrt(sides.prod()), sides.max() / 2, 1e-9))


def _weight(cutoff, step: float):
    """What a low-pass with that cutoff (Hz) takes of a new value, `step` seconds after the last: 0 to 1."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff * step))


class Smoother:
    """A `OneEuro` filter for each face of a video; a face that was not in the frame before starts anew."""

    def __init__(self):
        self._filters: dict[int, OneEuro] = {}

    def __call__(self, faces: Sequence[TrackedFace], time: float) -> list[TrackedFace]:
        """The faces of the frame at that time (seconds) with smoothed landmarks."""
        self._filters = {face.id: self._filters.get(face.id) or OneEuro() for face in faces}
        return [replace(face, landmarks=self._filters[face.id](face.landmarks, time)) for face in faces]
