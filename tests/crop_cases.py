"""What the tests of cut faces and of their files share."""

from pathlib import Path

import numpy as np
import torch

from iact.data.crops import Crops
from iact.data.faces import Face, Faces, ImageFile
from iact.layouts import COFW
from iact.plots import save_image


def assert_equal(got: Crops, expected: Crops):
    for name in ("pictures", "landmarks", "visible"):
        one, other = getattr(got, name), getattr(expected, name)
        assert one.dtype == other.dtype and torch.equal(one, other), name
    assert got.matrices.dtype == np.float64 and np.array_equal(got.matrices, expected.matrices)
    assert got.margin == expected.margin


def kept(folder: Path) -> list[Path]:
    """The files of the folder but the locks, temporary ones included."""
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock")


def file_faces(folder: Path, count: int = 2) -> Faces:
    """Faces whose pictures are files."""
    rng, records = np.random.default_rng(0), []
    for i in range(count):
        path = folder / f"{i}.png"
        save_image(path, rng.integers(0, 256, (60, 60, 3), np.uint8))
        records.append(Face(str(i), ImageFile(path), rng.uniform(10, 50, (29, 2)), f"{i}.pts"))
    return Faces(COFW, "train", tuple(records))
