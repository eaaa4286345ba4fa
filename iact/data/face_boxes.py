"""Where landmarks of one's own lie in a face, so that a detector's boxes become those that a model was trained with."""

from collections.abc import Sequence

import numpy as np

from iact.data.faces import Face
from iact.detector import detect_faces
from iact.geometry import landmark_box
from iact.layouts import Layout

ENOUGH = 100  # faces to look at


def describe_boxes(faces: Sequence[Face], layout: Layout) -> str:
    """A sentence on the `box_in_face` that fits these faces, and the one that the layout has. InputError as below."""
    place, found, looked_at = fit_box_in_face(faces)
    fitted = f"; by these, box_in_face is {place.round(2).tolist()}" if found else ""
    return f"the detector finds {found} of {looked_at} faces{fitted} ({list(layout.box_in_face)} in the layout)"


def fit_box_in_face(faces: Sequence[Face]) -> tuple[np.ndarray, int, int]:
    """Shift right, shift down and side [3], in sides of the detector's box, of the square around the landmarks: medians
    (NaN where there are none) over the faces that the detector finds, the number of these, and of faces looked at.

    InputError naming a picture that cannot be read."""
    chosen = np.unique(np.linspace(0, len(faces) - 1, ENOUGH).round().astype(int))
    places = [place for index in chosen for place in _place(faces[index])[:1]]
    return np.median(places, axis=0) if places else np.full(3, np.nan), len(places), len(chosen)


def _place(face: Face) -> list[np.ndarray]:
    """Of the square around the landmarks [3], in each detected box that its centre lies in."""
    box = landmark_box(face.landmarks)
    centre, side = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max()
    found = detect_faces(face.image.read())
    around = [box for box in found if (box[:2] < centre).all() and (centre < box[2:]).all()]
    return [np.array([*(centre - (b[:2] + b[2:]) / 2), side]) / (b[2] - b[0]) for b in around]
