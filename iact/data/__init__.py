"""Faces to train on and to measure with: readers of the official files, drawn faces, crops and augmentation."""

from pathlib import Path

from iact.data.cofw import read_cofw
from iact.data.faces import Face, Faces, ImageFile, ImageSource
from iact.data.points import read_points
from iact.data.w300 import read_w300
from iact.data.wflw import read_wflw
from iact.errors import InputError
from iact.layouts import WFLW, Layout

__all__ = ["DATA_SETS", "Face", "Faces", "ImageFile", "ImageSource", "read_faces"]

READERS = {"300w": read_w300, "wflw": read_wflw, "cofw": read_cofw, "points": read_points}
DATA_SETS = ("synthetic", *READERS)


def read_faces(
    data: str,
    root: Path | None,
    split: str,
    *,
    layout: Layout = WFLW,
    count: int = 1000,
    seed: int = 0,
    size: int = 256,
) -> Faces:
    """The faces of a split of a data set, one of `DATA_SETS`, whose files lie in the folder `root`.

    Drawn faces ("synthetic") need no root; `layout`, `count`, `seed` and `size` (picture side in px) are theirs alone.
    InputError for an unknown data set or split, a missing root, and whatever the reader finds wrong in the files."""
    if data == "synthetic":
        from iact.data.synthetic import synthetic_faces

        return synthetic_faces(layout, count, seed=seed, size=size, split=split)
    if data not in READERS:
        raise InputError(f"unknown data set {data!r}: expected one of {', '.join(DATA_SETS)}")
    if root is None:
        raise InputError(f"data set {data!r} needs a root: the folder that holds its files")
    return READERS[data](Path(root), split)
