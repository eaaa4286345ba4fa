"""The faces of a split as a network's input, by one of the box rules that numbers are published with."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch

from iact.data.crops import cut_faces
from iact.data.faces import Face, Faces
from iact.detector import Detector, to_landmark_boxes
from iact.errors import InputError
from iact.geometry import CROP_MARGIN, crop_matrix, cut, landmark_box
from iact.layouts import Layout

BoxRule = Literal["landmarks", "rectangle", "detector"]
RULES = {
    "landmarks": f"ground-truth landmarks x {CROP_MARGIN}",
    "rectangle": f"the data set's rectangle x {CROP_MARGIN}",
    "detector": f"detector, the box that overlaps the face most, x {CROP_MARGIN}",
}
LEAST_OVERLAP = 0.3  # of a detected box and that of the true landmarks, in shares of their union


def cut_by(
    rule: BoxRule, faces: Faces, size: int, layout: Layout, detector: Detector
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Pictures uint8 [M, 3, S, S] of the faces that have a box by this rule, the maps [M, 2, 3] from image px to their
    px, and which faces these are, bool [N]. `layout` is the network's, by which a detector's box is moved.

    InputError where the data set has no rectangles, or a picture cannot be read."""
    if rule == "landmarks":
        crops = cut_faces(faces, size, CROP_MARGIN)
        return crops.pictures, crops.matrices, np.ones(len(faces), bool)
    if not len(faces):
        raise InputError(f"{faces.layout.name} {faces.split}: no faces in this split")

    def cut_one(face: Face) -> tuple[np.ndarray, np.ndarray] | None:
        image = face.image.read()
        box = _rectangle(face) if rule == "rectangle" else _detected(face, to_layout(detector(image), layout))
        if box is None:
            return None
        matrix = crop_matrix(box, size)
        return cut(image, matrix, size).transpose(2, 0, 1), matrix

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        cuts = list(pool.map(cut_one, faces.records))
    found = [one for one in cuts if one is not None]
    if not found:
        raise InputError(f"{faces.layout.name} {faces.split}: the detector finds none of the {len(faces)} faces")
    pictures, matrices = (np.stack(part) for part in zip(*found, strict=True))
    return torch.from_numpy(pictures), matrices, np.array([one is not None for one in cuts])


def to_layout(boxes: np.ndarray, layout: Layout) -> np.ndarray:
    """A detector's squares [N, 4] around whole faces as those around the landmarks of the layout."""
    return to_landmark_boxes(np.reshape(boxes, (-1, 4)).astype(np.float64), layout.box_in_face)


def _rectangle(face: Face) -> np.ndarray:
    if face.box is None:
        raise InputError(f"{face.origin}: the data set gives no rectangle; expected boxes landmarks or detector")
    if not (face.box[2:] > face.box[:2]).all():
        raise InputError(f"{face.origin}: the rectangle is empty: {face.box.tolist()}")
    return face.box


def _detected(face: Face, boxes: np.ndarray) -> np.ndarray | None:
    """The box [4] that overlaps the square around the face's landmarks most; None where none does enough."""
    truth = to_landmark_boxes(landmark_box(face.landmarks)[None], (0.0, 0.0, 1.0))[0]
    sides = np.minimum(boxes[:, 2:], truth[2:]) - np.maximum(boxes[:, :2], truth[:2])
    shared = sides.clip(0).prod(axis=1)
    overlaps = shared / ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (truth[2:] - truth[:2]).prod() - shared)
    return boxes[overlaps.argmax()] if len(boxes) and overlaps.max() >= LEAST_OVERLAP else None
