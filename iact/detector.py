"""Finding faces where no boxes are given: OpenCV's Haar cascade, or its YuNet with a model file.

A detector is any function from an RGB image uint8 [H, W, 3] to squares (x0, y0, x1, y1) [N, 4] around the landmarks of
whole faces, as 300W places them, largest first. These two may be shared by threads: OpenCV's objects keep state, so
each thread has its own."""

import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from iact.errors import InputError

Detector = Callable[[np.ndarray], np.ndarray]

# From a detector's box to the square around the landmarks, in larger sides of the box: shift of the centre to the right
# and down, and side. Medians over 300W training faces, fitted by benchmarks/fit_detector.py.
HAAR_TO_LANDMARKS = (0.0, 0.16, 0.90)
YUNET_TO_LANDMARKS = (0.0, 0.12, 0.78)

HAAR_SIDE = 960  # px; the cascade looks for faces from 1/20 of the shorter side on, which are large enough at this size
YUNET_SIDE = 640  # px; YuNet was trained on faces of 10 to 300 px, and misses much larger ones
YUNET_FACE = 10  # px; in lower strips it sees faces where nothing is

_threads = threading.local()


def _cascade() -> cv2.CascadeClassifier:
    if not hasattr(_threads, "cascade"):
        path = Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt2.xml"
        cascade = cv2.CascadeClassifier(str(path))
        if cascade.empty():
            raise InputError(
                f"{path}: OpenCV's face cascade is missing; install opencv-python 4.10 to 4.x, or give boxes"
            )
        _threads.cascade = cascade
    return _threads.cascade


def _reduce(image: np.ndarray, ratio: float) -> np.ndarray:
    """The image [H, W, 3] made smaller by that ratio, or itself where the ratio is not below 1."""
    if ratio >= 1:
        return image
    height, width = (max(1, round(side * ratio)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _enlarge(boxes: np.ndarray, small: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] in the reduced image as boxes in the whole one."""
    return boxes * np.tile(np.divide(image.shape[1::-1], small.shape[1::-1]), 2)


def haar_boxes(image: np.ndarray) -> np.ndarray:
    """The cascade's own square boxes (x0, y0, x1, y1) [N, 4] in an RGB image [H, W, 3], largest first.

    A box centred inside a larger one is left out: it is an eye or a mouth far more often than a second face."""
    small = _reduce(image, HAAR_SIDE / min(image.shape[:2]))
    grey = cv2.equalizeHist(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
    smallest = max(24, min(grey.shape) // 20)
    found = _cascade().detectMultiScale(grey, scaleFactor=1.1, minNeighbors=4, minSize=(smallest, smallest))
    kept = []
    for x, y, side, _ in sorted(found, key=lambda box: -box[2]):
        centre_x, centre_y = x + side / 2, y + side / 2
        if not any(x0 < centre_x < x1 and y0 < centre_y < y1 for x0, y0, x1, y1 in kept):
            kept.append((x, y, x + side, y + side))
    return _enlarge(np.array(kept, np.float64).reshape(-1, 4), small, image)


def to_landmark_boxes(boxes: np.ndarray, fitted: tuple[float, float, float] = HAAR_TO_LANDMARKS) -> np.ndarray:
    """The squares (x0, y0, x1, y1) [N, 4] that hold the landmarks of faces with these boxes [N, 4] of a detector, by
    median; `fitted` is its shift to the right and down and its side, in larger sides of the box."""
    *shift, ratio = fitted
    side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + np.array(shift) * side
    return np.concatenate([centre - ratio * side / 2, centre + ratio * side / 2], axis=1)


def detect_faces(image: np.ndarray) -> np.ndarray:
    """Squares (x0, y0, x1, y1) [N, 4] around the landmarks of the faces that the Haar cascade finds in an RGB image
    [H, W, 3], as near as it can tell; largest first."""
    return to_landmark_boxes(haar_boxes(image))


class YuNet:
    """OpenCV's YuNet as a detector: `YuNet("face_detection_yunet_2023mar.onnx")(image)`."""

    def __init__(self, model: str | Path, least_score: float = 0.7):
        """`least_score`, 0 to 1, is how sure it has to be of a face. InputError for a file that holds no YuNet."""
        self.model, self.least_score = Path(model), least_score
        self._threads = threading.local()
        try:
            self._bytes = np.frombuffer(self.model.read_bytes(), np.uint8)
            self.boxes(np.zeros((64, 64, 3), np.uint8))
        except OSError as error:
            raise InputError(f"{self.model}: the detector's model cannot be read ({error.strerror})") from None
        except cv2.error:
            raise InputError(f"{self.model}: not a YuNet model (expected face_detection_yunet_2023mar.onnx)") from None

    def _network(self) -> cv2.FaceDetectorYN:
        if not hasattr(self._threads, "network"):
            nothing = np.empty(0, np.uint8)
            self._threads.network = cv2.FaceDetectorYN.create(
                "onnx", self._bytes, nothing, (YUNET_SIDE, YUNET_SIDE), self.least_score
            )
        return self._threads.network

    def boxes(self, image: np.ndarray) -> np.ndarray:
        """YuNet's own boxes (x0, y0, x1, y1) [N, 4] in an RGB image [H, W, 3], largest first."""
        small = _reduce(image, YUNET_SIDE / max(image.shape[:2]))
        if min(small.shape[:2]) < YUNET_FACE:
            return np.zeros((0, 4))
        network = self._network()
        network.setInputSize(small.shape[1::-1])
        _, found = network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        found = np.zeros((0, 15)) if found is None else found.astype(np.float64)
        boxes = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:4]], axis=1)
        order = np.argsort(-found[:, 2:4].max(axis=1), kind="stable")
        return _enlarge(boxes[order], small, image)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Squares (x0, y0, x1, y1) [N, 4] around the landmarks of the faces found in an RGB image [H, W, 3], as near
        as YuNet can tell; largest first."""
        return to_landmark_boxes(self.boxes(image), YUNET_TO_LANDMARKS)
