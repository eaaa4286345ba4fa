"""Faces decoded and cut once, into tensors that fit in memory: what training and evaluation read."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from iact.data.faces import Face, Faces
from iact.errors import InputError
from iact.geometry import CROP_MARGIN, crop_matrix, cut, landmark_box, transform_points

TRAINING_MARGIN = 1.9  # over the landmark box: what rotation by 30 degrees at scale 1.25 can see


@dataclass(frozen=True)
class Crops:
    """N faces as tensors: `pictures` uint8 [N, 3, S, S], `landmarks` [N, K, 2] in crop px, `visible` bool [N, K], and
    `matrices` float64 [N, 2, 3] that map image px to crop px. `margin` is the side of the crop over the box's."""

    pictures: torch.Tensor
    landmarks: torch.Tensor
    visible: torch.Tensor
    matrices: np.ndarray
    margin: float

    def __len__(self) -> int:
        return len(self.pictures)


def training_size(input_size: int) -> int:
    """The side of a training crop in which faces are as large as in the network's input."""
    return round(input_size * TRAINING_MARGIN / CROP_MARGIN)


def cut_faces(faces: Faces, size: int, margin: float) -> Crops:
    """Every face cut to `size` px around its landmark box times `margin`, on all cores. InputError naming a picture
    that cannot be read or a face whose landmarks span no area."""
    if not len(faces):
        raise InputError(f"{faces.layout.name} {faces.split}: no faces in this split")
    pictures = np.empty((len(faces), 3, size, size), np.uint8)
    matrices = np.empty((len(faces), 2, 3))

    def put(i: int, face: Face) -> None:
        picture, matrices[i] = _cut_face(face, size, margin)
        pictures[i] = picture.transpose(2, 0, 1)  # by NumPy: PyTorch would start threads of its own in each of these

    with ThreadPoolExecutor(_count_cores()) as pool:
        list(pool.map(put, range(len(faces)), faces.records))  # a list, so that what a thread raises is raised here
    landmarks = np.stack([face.landmarks for face in faces.records])
    everything = np.ones(faces.layout.num_landmarks, bool)
    visible = np.array([everything if face.visible is None else face.visible for face in faces.records], bool)
    return Crops(
        pictures=torch.from_numpy(pictures),
        landmarks=torch.from_numpy(transform_points(landmarks, matrices)).float(),
        visible=torch.from_numpy(visible),
        matrices=matrices,
        margin=margin,
    )


def _count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cut_face(face: Face, size: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
    box = landmark_box(face.landmarks)
    if not max(box[2] - box[0], box[3] - box[1]) > 0:
        raise InputError(f"{face.origin}: the landmarks of {face.name} all lie on one point")
    matrix = crop_matrix(box, size, margin)
    return cut(face.image.read(), matrix, size), matrix
