"""COFW: a MATLAB v7.3 (HDF5) file per split that holds pictures, boxes, 29 points and an occlusion flag for each.

Official files: COFW_color.zip in https://data.caltech.edu/records/bc0bf-nc666. In HDF5 every array is transposed."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from iact.data.faces import Face, Faces, check_box, check_landmarks
from iact.data.files import compare_count, require_folder, require_split
from iact.errors import InputError
from iact.layouts import COFW

SPLITS = {"train": 1345, "test": 507}
"""Official number of faces of each split."""

# The peers disagree on whether COFW is 0- or 1-based. It is 1-based: drawn as they are, the points lie right of and
# below what they mark by about a pixel. Measured on the mirror symmetry of the picture around the pupils, as they are
# they lie 1.3 to 1.5 px to the right; the eyes of 300W, which is known to be 1-based, lie 1.3 to 1.7 px to the right.
FIRST_PIXEL = 1

_KEYS = {"train": "Tr", "test": "T"}  # the suffix of the arrays Is.., bboxes.., phis..


@dataclass(frozen=True)
class MatImage:
    """Picture `index` of the array of references `key` in an HDF5 file, read when asked for."""

    path: Path
    key: str
    index: int

    def read(self) -> np.ndarray:
        file = _shared_file(self.path, os.getpid())
        try:
            image = np.asarray(file[file[self.key][0, self.index]])
        except (KeyError, IndexError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise InputError(f"{self}: cannot be read ({error})") from error
        return self._as_rgb(image)

    def _as_rgb(self, image: np.ndarray) -> np.ndarray:
        grey = image.ndim == 2
        if image.dtype != np.uint8 or image.size == 0 or not (grey or (image.ndim == 3 and image.shape[0] == 3)):
            found = f"{image.dtype} {list(image.shape)}"
            raise InputError(f"{self}: expected uint8 pixels of shape [W, H] or [3, W, H], got {found}")
        image = image.T
        return np.ascontiguousarray(np.repeat(image[..., None], 3, axis=2) if grey else image)

    def __str__(self) -> str:
        return f"{self.path}, picture {self.index + 1} of {self.key}"


def read_cofw(root: Path, split: str) -> Faces:
    """The faces of a split of COFW, from `COFW_{split}_color.mat` in `root`, in the order of the file.

    Landmarks and boxes are 0-based; `visible` is false where the occlusion flag is set. A number of faces other than
    the official one is said in `Faces.missing`. InputError for an unknown split, or a file that is missing, no HDF5 or
    without the arrays it should hold."""
    require_split("cofw", split, SPLITS)
    path = require_folder(root) / f"COFW_{split}_color.mat"
    images, boxes, points = _read_arrays(path, _KEYS[split])
    records = [_face(path, split, index, boxes[:, index], points[:, index]) for index in range(images)]
    return compare_count(Faces(COFW, split, tuple(records)), split, SPLITS[split])


def _read_arrays(path: Path, suffix: str) -> tuple[int, np.ndarray, np.ndarray]:
    """The number of pictures, boxes [4, N] and points [87, N]."""
    with _hdf5_file(path) as file:
        count = (_shape(file, "Is" + suffix) or (0,))[-1]
        for key, rows in (("Is", 1), ("bboxes", 4), ("phis", 3 * COFW.num_landmarks)):
            shape = _shape(file, key + suffix)
            if shape is None:
                raise InputError(f"{path}: the file holds no array {key + suffix}")
            if shape != (rows, count):
                raise InputError(f"{path}: expected {key + suffix} of shape [{rows}, {count}], got {list(shape)}")
        try:
            return count, file["bboxes" + suffix][:].astype(np.float64), file["phis" + suffix][:].astype(np.float64)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: boxes or points cannot be read ({error})") from error


def _shape(file, key: str) -> tuple[int, ...] | None:
    """The shape of an array in an HDF5 file; None when there is none of that name."""
    return getattr(file[key], "shape", None) if key in file else None


def _face(path: Path, split: str, index: int, box: np.ndarray, points: np.ndarray) -> Face:
    origin = f"{path}, face {index + 1}"
    x, y, occluded = points.reshape(3, -1)
    if not np.isin(occluded, (0, 1)).all():
        raise InputError(f"{origin}: expected occlusion flags of 0 or 1, got {occluded[~np.isin(occluded, (0, 1))][0]}")
    corner = box[:2] - FIRST_PIXEL
    return Face(
        name=f"{split}/{index + 1:04d}",
        image=MatImage(path, "Is" + _KEYS[split], index),
        landmarks=check_landmarks(np.stack([x, y], axis=-1) - FIRST_PIXEL, COFW, origin),
        origin=origin,
        box=check_box(np.concatenate([corner, corner + box[2:]]), origin),
        visible=occluded == 0,
    )


@lru_cache(maxsize=4)
def _shared_file(path: Path, process: int):
    """The file, left open: one handle in each process, because a handle must not be shared across a fork."""
    return _hdf5_file(path)


def _hdf5_file(path: Path):
    try:
        import h5py  # COFW alone needs it
    except ImportError as error:
        raise InputError(f"{path}: reading COFW needs the package h5py (pip install h5py)") from error
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: not a MATLAB v7.3 (HDF5) file, or a truncated one ({error})") from error
