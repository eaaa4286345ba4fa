"""Videos for tests: clips in files, a camera that is not there, and faces that are where a test says."""

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from iact.layouts import W300
from iact.predictor import PredictedFace
from iact.video.tracking import landmark_square, overlap

SHAPE = np.random.default_rng(0).uniform(0, 1, (68, 2))
SHAPE[:2] = (0, 0), (1, 1)  # fills its box
QUARTER_TURN = (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)


def write_clip(path: Path, frames: Sequence[np.ndarray], rate: float = 25) -> Path:
    """The RGB frames as a video, MPEG-4 or for .avi MJPEG."""
    codec = "MJPG" if path.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def turn_clip(path: Path) -> None:
    """Notes in the file that it is to be shown turned by 90 degrees, as phones do."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", *QUARTER_TURN)
    path.write_bytes(data)


def read_clip(path: Path) -> list[np.ndarray]:
    """All frames, RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return frames


def square(x: float, y: float, side: float = 40) -> np.ndarray:
    return np.array([x, y, x + side, y + side], np.float64)


class Scene:
    """A predictor of faces that a test places: `faces` are their landmark boxes, lines without a height too.

    A box that overlaps a face gives its landmarks and `score`, any other box its own and 0.1. Without boxes all faces
    are found that `seen` names by index, or all. `detections` counts how often that was asked."""

    layout = W300

    def __init__(self, *faces: np.ndarray, score: float = 0.9):
        self.faces, self.score, self.seen = list(faces), score, None
        self.detections = 0

    def __call__(self, image, boxes=None, flip_test=False) -> list[PredictedFace]:
        if boxes is None:
            self.detections += 1
            seen = range(len(self.faces)) if self.seen is None else self.seen
            return [_face(self.faces[i], self.score) for i in seen]
        for box in boxes:
            assert (box[2:] > np.maximum(box[:2], 0)).all(), "predictors want boxes with an area"
            assert (box[:2] < image.shape[1::-1]).all(), "predictors want boxes in the image"
        return [self._look(box) for box in boxes]

    def _look(self, box: np.ndarray) -> PredictedFace:
        overlaps = [overlap(box, _square(face)) for face in self.faces]
        if max(overlaps, default=0) > 0.2:
            return replace(_face(self.faces[int(np.argmax(overlaps))], self.score), box=np.asarray(box))
        return _face(box, 0.1)


def _square(box: np.ndarray) -> np.ndarray:
    return landmark_square(box.reshape(2, 2))


def _face(box: np.ndarray, score: float) -> PredictedFace:
    return PredictedFace(_square(box), box[:2] + SHAPE * (box[2:] - box[:2]), np.full(68, score))


class Camera:
    """In the place of cv2.VideoCapture: a camera that gives so many grey frames and calls `at_frame` before each."""

    def __init__(self, frames: int, at_frame=lambda index: None, width: int = 160, height: int = 120):
        self.frames, self.given, self.at_frame, self.shape = frames, 0, at_frame, (height, width, 3)

    def __call__(self, source: int | str):
        return self if isinstance(source, int) else _Capture(source)

    def set(self, *_) -> bool:
        return True

    def isOpened(self) -> bool:
        return self.frames > 0

    def get(self, _) -> float:
        return -1.0  # as cameras answer what they do not know

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self.given == self.frames:
            return False, None
        self.at_frame(self.given)
        self.given += 1
        return True, np.full(self.shape, 128, np.uint8)

    def release(self) -> None: ...


_Capture = cv2.VideoCapture
