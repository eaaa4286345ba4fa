"""What the page is told: of the model, and of the faces in a picture. All of it becomes JSON."""

import threading
import time
from copy import copy
from typing import Any

import numpy as np

from iact.data.faces import decode_picture
from iact.detector import Detector
from iact.predictor import PredictedFace, Predictor
from iact.results import face_fields
from iact.video.tracking import TrackedFace, Tracker, landmark_square

CAMERAS = 16  # that are followed; the one that was silent for longest is forgotten
FAR = 0.08  # sides of a box; a crop shows 0.125 around it


class TimedDetector:
    """A detector that knows how long it took. Threads may share it: each is told of its own calls."""

    def __init__(self, detector: Detector):
        self.detector = detector
        self._threads = threading.local()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        boxes = self.detector(image)
        self._threads.seconds = getattr(self._threads, "seconds", 0.0) + time.perf_counter() - started
        return boxes

    def take_seconds(self) -> float:
        """Of this thread's calls since it last asked, together; 0 without one."""
        seconds = getattr(self._threads, "seconds", 0.0)
        self._threads.seconds = 0.0
        return seconds


class TimedPredictor:
    """A predictor for encoded pictures that says how long it took. Threads may share it."""

    def __init__(self, predictor: Predictor):
        self.detector = TimedDetector(predictor.detector)
        self.predictor = copy(predictor)
        self.predictor.detector = self.detector
        self._trackers: dict[str, Tracker] = {}  # of cameras
        self._lock = threading.Lock()

    def describe(self) -> dict[str, Any]:
        """The layout's name, the names [K] of its landmarks and the curves to draw; a sentence on the network."""
        layout, description, dtype = self.predictor.layout, self.predictor.description, self.predictor.dtype
        number_format = str(dtype).removeprefix("torch.") if dtype else "float32"
        about = (
            f"{layout.num_landmarks} landmarks ({layout.name}), trained on {description.trained_on}; "
            f"input {description.model.input_size} px, {number_format} on {self.predictor.device}"
        )
        return {"layout": layout.name, "names": layout.names, "curves": layout.curves, "about": about}

    def __call__(self, data: bytes, camera: str | None = None) -> dict[str, Any]:
        """The picture's "width" and "height" in px, its "faces" as `iact predict` writes them, and the "milliseconds"
        for decoding, the detector, the network and in all. InputError for bytes that are no picture.

        In pictures of one `camera`, under any name for it, faces are followed, and have an "id"."""
        self.detector.take_seconds()  # of a picture that ended in an error
        started = time.perf_counter()
        image = decode_picture(data)
        decoded = time.perf_counter()
        faces = self.predictor(image) if camera is None else self._follow(camera, image)
        ended, detector = time.perf_counter(), self.detector.take_seconds()
        network, total = ended - decoded - detector, ended - started
        seconds = {"decoding": decoded - started, "detector": detector, "network": network, "total": total}
        return {
            "width": image.shape[1],
            "height": image.shape[0],
            "faces": [_fields(face) for face in faces],
            "milliseconds": {part: round(1000 * duration, 1) for part, duration in seconds.items()},
        }

    def _follow(self, camera: str, image: np.ndarray) -> list[TrackedFace]:
        with self._lock:
            tracker = self._trackers.pop(camera, None) or Tracker(self.predictor)
        faces = tracker(image)  # nobody else has it now
        if any(_has_moved(face) for face in faces):
            faces = tracker(image)
        with self._lock:
            self._trackers[camera] = tracker
            if len(self._trackers) > CAMERAS:
                del self._trackers[next(iter(self._trackers))]
        return faces


def _has_moved(face: TrackedFace) -> bool:
    """Whether a face lies so far off the box it was cut by that some of it may be missing: a camera's pictures come
    seldom, and it is worth another look."""
    side = (face.box[2:] - face.box[:2]).max()
    return bool(np.abs(landmark_square(face.landmarks) - face.box).max() > FAR * side)


def _fields(face: PredictedFace) -> dict[str, Any]:
    return ({"id": face.id} if isinstance(face, TrackedFace) else {}) | face_fields(face)
