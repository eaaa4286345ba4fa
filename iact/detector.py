"""Finding faces where no boxes are given: OpenCV's Haar cascade, its boxes mapped to boxes around the landmarks."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np

from iact.errors import InputError

# From a Haar box to the square around the landmarks, in sides of the Haar box: shift of the centre to the right and
# down, and side. Medians over the 300W training faces, fitted by benchmarks/fit_detector.py.
HAAR_TO_LANDMARKS = (0.0, 0.16, 0.90)


@cache
def _cascade() -> cv2.CascadeClassifier:
    path = Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt2.xml"
    cascade = cv2.CascadeClassifier(str(path))
    if cascade.empty():
        raise InputError(f"{path}: OpenCV's face cascade is missing; install opencv-python 4.10 to 4.x, or give boxes")
    return cascade


def haar_boxes(image: np.ndarray) -> np.ndarray:
    """The cascade's own square boxes (x0, y0, x1, y1) [N, 4] in an RGB image [H, W, 3], largest first.

    A box centred inside a larger one is left out: it is an eye or a mouth far more often than a second face."""
    grey = cv2.equalizeHist(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    smallest = max(24, min(grey.shape) // 20)
    found = _cascade().detectMultiScale(grey, scaleFactor=1.1, minNeighbors=4, minSize=(smallest, smallest))
    kept = []
    for x, y, side, _ in sorted(found, key=lambda box: -box[2]):
        centre_x, centre_y = x + side / 2, y + side / 2
        if not any(x0 < centre_x < x1 and y0 < centre_y < y1 for x0, y0, x1, y1 in kept):
            kept.append((x, y, x + side, y + side))
    return np.array(kept, np.float64).reshape(-1, 4)


def to_landmark_boxes(boxes: np.ndarray) -> np.ndarray:
    """The squares (x0, y0, x1, y1) [N, 4] that hold the landmarks of faces with these Haar boxes [N, 4], by median."""
    *shift, ratio = HAAR_TO_LANDMARKS
    side = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + np.array(shift) * side
    return np.concatenate([centre - ratio * side / 2, centre + ratio * side / 2], axis=1)


def detect_faces(image: np.ndarray) -> np.ndarray:
    """Squares (x0, y0, x1, y1) [N, 4] around the landmarks of the faces found in an RGB image [H, W, 3], as near as
    the detector can tell; largest first."""
    return to_landmark_boxes(haar_boxes(image))
