"""WFLW: two lists, a face a line: 98 points, a rectangle, six attributes and the picture's path.

Official files: https://wywu.github.io/projects/LAB/WFLW.html. The numbers are used as they are: nobody subtracts 1."""

from pathlib import Path, PureWindowsPath

import numpy as np

from iact.data.faces import Face, Faces, ImageFile, check_box, check_landmarks
from iact.data.files import compare_count, parse_numbers, read_lines, require_folder, require_images, require_split
from iact.errors import InputError
from iact.layouts import WFLW

ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")
"""The order of the six flags of a line."""

SPLITS = {
    "train": 7500,
    "test": 2500,
    "pose": 326,
    "expression": 314,
    "illumination": 698,
    "make-up": 206,
    "occlusion": 736,
    "blur": 773,
}
"""Official number of faces of each split; the six attributes are subsets of the test faces."""

ALIASES = {"largepose": "pose", "makeup": "make-up"}
LISTS = Path("WFLW_annotations/list_98pt_rect_attr_train_test")
IMAGES = Path("WFLW_images")

_POINTS = 2 * WFLW.num_landmarks
_TOKENS = _POINTS + 4 + len(ATTRIBUTES) + 1


def read_wflw(root: Path, split: str, *, check_images: bool = True) -> Faces:
    """The faces of a split of WFLW below `root` in the order of the list; boxes and tags are the list's.

    A face is named by its picture and the line in its list, because a picture may hold several. A number of faces
    other than the official one is said in `Faces.missing`. With `check_images=False` pictures may be missing.
    InputError for an unknown split, a missing or empty list, a malformed line, a path that leaves the picture
    folder, or a missing picture."""
    split = ALIASES.get(split, split)
    require_split("wflw", split, SPLITS)
    require_folder(root)
    which = "train" if split == "train" else "test"
    records = _read_list(root, root / LISTS / f"list_98pt_rect_attr_{which}.txt")
    if split in ATTRIBUTES:
        records = [face for face in records if split in face.tags]
    faces = compare_count(Faces(WFLW, split, tuple(records)), split, SPLITS[split])
    return require_images(faces) if check_images else faces


def _read_list(root: Path, path: Path) -> list[Face]:
    lines = enumerate(read_lines(path), start=1)
    records = [_read_line(root, line, f"{path}:{number}", number) for number, line in lines if line]
    if not records:
        raise InputError(f"{path}: the list is empty")
    return records


def _read_line(root: Path, line: str, origin: str, number: int) -> Face:
    tokens = line.split()
    if len(tokens) != _TOKENS:
        raise InputError(f"{origin}: expected {_TOKENS} tokens, got {len(tokens)}")
    numbers = parse_numbers(tokens[:-1], origin)
    landmarks = check_landmarks(np.reshape(numbers[:_POINTS], (-1, 2)), WFLW, origin)
    return Face(
        name=f"{tokens[-1]}:{number}",
        image=ImageFile(root / IMAGES / _inside(tokens[-1], origin)),
        landmarks=landmarks,
        origin=origin,
        box=check_box(numbers[_POINTS : _POINTS + 4], origin),
        tags=_tags(tokens[_POINTS + 4 : -1], origin),
    )


def _tags(flags: list[str], origin: str) -> frozenset[str]:
    for attribute, flag in zip(ATTRIBUTES, flags, strict=True):
        if flag not in ("0", "1"):
            raise InputError(f"{origin}: expected 0 or 1 for attribute {attribute}, got {flag!r}")
    return frozenset(attribute for attribute, flag in zip(ATTRIBUTES, flags, strict=True) if flag == "1")


def _inside(relative: str, origin: str) -> str:
    """The path, when it stays inside the folder it is relative to (on any system); InputError otherwise."""
    path = PureWindowsPath(relative)  # knows both kinds of slashes, and drives
    if path.anchor or ".." in path.parts:
        raise InputError(f"{origin}: path {relative!r} leaves the folder {IMAGES}")
    return relative
