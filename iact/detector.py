"""Finding faces where no boxes are given: OpenCV's Haar cascade, its boxes mapped to boxes around the landmarks."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np

from iact.errors import InputError

# Median centre (in sides of the Haar box) and size of the 68-landmark box, width and height, fitted by
# benchmarks/fit_detector.py on the 300W training faces that the cascade finds.
HAAR_TO_LANDMARKS = (0.0, 0.13, 0.78, 0.80)


@cache
def _cascade() -> cv2.CascadeClassifier:
    path = Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt2.xml"
    cascade = cv2.CascadeClassifier(str(path))
    if cascade.empty():
        raise InputError(f"{path}: OpenCV's face cascade is missing; install opencv-python 4.10 to 4.x, or give boxes")
    return cascade


def haar_boxes(image: np.ndarray) -> np.ndarray:
    """The cascade's own square boxes (x0, y0, x1, y1) [N, 4] in an RGB image [H, W, 3], largest first."""
    grey = cv2.equalizeHist(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    smallest = max(24, min(grey.shape) // 20)
    found = _cascade().detectMultiScale(grey, scaleFactor=1.1, minNeighbors=4, minSize=(smallest, smallest))
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in found], np.float64).reshape(-1, 4)
    return boxes[np.argsort(boxes[:, 0] - boxes[:, 2], kind="stable")]


def detect_faces(image: np.ndarray) -> np.ndarray:
    """Boxes (x0, y0, x1, y1) [N, 4] as tight around the landmarks as can be told from the detector, largest first."""
    boxes = haar_boxes(image)
    shift_x, shift_y, wide, high = HAAR_TO_LANDMARKS
    side = boxes[:, 2] - boxes[:, 0]
    centre_x = (boxes[:, 0] + boxes[:, 2]) / 2 + shift_x * side
    centre_y = (boxes[:, 1] + boxes[:, 3]) / 2 + shift_y * side
    half_x, half_y = wide * side / 2, high * side / 2
    return np.stack([centre_x - half_x, centre_y - half_y, centre_x + half_x, centre_y + half_y], axis=-1)
