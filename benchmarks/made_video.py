"""A video whose truth is known: one picture of a face, moved smoothly, with the noise of a camera."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from iact.geometry import transform_points

RATE = 30.0  # frames a second


@dataclass(frozen=True)
class MadeVideo:
    """Frames uint8 [SIDE, SIDE, 3] with landmarks float64 [T, K, 2], in px, that were moved by `matrices` [T, 2, 3].

    The face rests for the first third, then swings with periods of 0.9 to 4 s: by `swing` face sizes to the sides, half
    as far up and down, by 12 degrees, and by 12 % in size. `noise` is its standard deviation in grey levels."""

    picture: np.ndarray
    face: np.ndarray
    frames: int
    side: int = 480
    face_size: float = 200.0
    swing: float = 0.35
    noise: float = 4.0
    seed: int = 0

    @property
    def times(self) -> np.ndarray:
        return np.arange(self.frames) / RATE

    @property
    def resting(self) -> int:
        """The number of frames before the face moves."""
        return self.frames // 3

    @property
    def matrices(self) -> np.ndarray:
        time = np.clip(self.times - self.resting / RATE, 0, None)
        period = np.random.default_rng(self.seed).permutation([0.9, 1.7, 2.6, 4.0])
        wave = np.sin(2 * np.pi * time[:, None] / period) * np.clip(time, 0, 1)[:, None]  # starts gently
        box_size = float(np.ptp(self.face, axis=0).max())
        scale, angle = self.face_size / box_size * (1 + 0.12 * wave[:, 2]), np.radians(12) * wave[:, 3]
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = linear.transpose(2, 0, 1)
        centre = self.side / 2 + self.swing * self.face_size * wave[:, :2] * (1, 0.5)
        middle = (self.face.min(axis=0) + self.face.max(axis=0)) / 2
        return np.concatenate([linear, (centre - linear @ middle)[:, :, None]], axis=2)

    @property
    def truth(self) -> np.ndarray:
        return transform_points(self.face[None], self.matrices)

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, resampled by Lanczos windows so that half a pixel's motion does not blur."""
        generator = np.random.default_rng(self.seed)
        for matrix in self.matrices:
            size = (self.side, self.side)
            moved = cv2.warpAffine(self.picture, matrix, size, flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT)
            noisy = moved + self.noise * generator.standard_normal(moved.shape, np.float32)
            yield np.clip(np.round(noisy), 0, 255).astype(np.uint8)
