"""Faces of one's own: pictures, a `layout.json` that names the landmarks, and a CSV table per split, a face a row.

The columns of a table are `image`, the picture's path below the folder; `<landmark>_x` and `<landmark>_y` for every
landmark of the layout, in any order, in px, the centre of the first pixel being (0, 0); and where wanted
`<landmark>_visible`, 0 or 1, and the four of `BOX`. Of a built-in layout, landmarks go by their index."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import numpy as np

from iact.data.faces import Face, Faces, ImageFile, check_box, check_landmarks
from iact.data.files import read_lines, require_folder, require_images, require_split
from iact.errors import InputError
from iact.layout_file import read_layout
from iact.layouts import Layout

LAYOUT = "layout.json"
BOX = ("box_x0", "box_y0", "box_x1", "box_y1")


def splits_of(root: Path) -> tuple[str, ...]:
    """The splits in a folder: the names of its tables. InputError for no folder, or one without tables."""
    names = tuple(sorted(path.stem for path in require_folder(root).glob("*.csv") if not path.name.startswith(".")))
    if not names:
        raise InputError(f"{root}: no tables of faces here (expected train.csv, or another .csv)")
    return names


def read_points(root: Path, split: str, *, check_images: bool = True) -> Faces:
    """The faces of `<split>.csv` in the folder `root`, in the order of its rows, with the layout of its `layout.json`.

    A face is named by its picture and its line, because a picture may hold several. With `check_images=False` pictures
    may be missing. InputError naming file and line for whatever does not follow the format."""
    require_split("points", split, splits_of(root))
    layout = read_layout(root / LAYOUT)
    path = root / f"{split}.csv"
    rows = _read_rows(path)
    columns = next(rows, (1, []))[1]
    _check_columns(columns, layout, f"{path}:1")
    records = tuple(_read_face(root, dict(zip(columns, row, strict=True)), path, line, layout) for line, row in rows)
    if not records:
        raise InputError(f"{path}: no face in this table")
    faces = Faces(layout, split, records)
    return require_images(faces) if check_images else faces


def _read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with its line, and as many cells as the first of them."""
    reader = csv.reader(read_lines(path), strict=True)
    count = None
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            count = count or len(row)
            if len(row) != count:
                raise InputError(
                    f"{path}:{reader.line_num}: expected {count} cells as in the first row, got {len(row)}"
                )
            yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not a table of comma-separated cells ({error})") from None


def _check_columns(columns: list[str], layout: Layout, origin: str) -> None:
    """InputError unless every column is known, none there twice, and no coordinate or part of a box missing."""
    boxes = BOX if set(BOX) & {*columns} else ()
    required = ["image", *(f"{name}_{axis}" for name in layout.names for axis in "xy"), *boxes]
    for column in required:
        if column not in columns:
            raise InputError(f"{origin}: expected a column {column!r}, got {', '.join(columns)[:80] or 'none'}")
    known = {*required, *(f"{name}_visible" for name in layout.names)}
    for column in columns:
        if column not in known:
            raise InputError(f"{origin}: column {column!r} is neither a box nor of a landmark of layout {layout.name}")
        if columns.count(column) > 1:
            raise InputError(f"{origin}: expected column {column!r} once, got it twice")


def _read_face(root: Path, cells: dict[str, str], path: Path, line: int, layout: Layout) -> Face:
    origin = f"{path}:{line}"
    landmarks = np.array([[_number(cells, f"{name}_{axis}", origin) for axis in "xy"] for name in layout.names])
    check_landmarks(landmarks, layout, origin)
    first, second = layout.eye_corners
    if (landmarks[first] == landmarks[second]).all():
        raise InputError(
            f"{origin}: {layout.names[first]} and {layout.names[second]} normalise errors, but are one point"
        )
    box = np.array([_number(cells, column, origin) for column in BOX]) if BOX[0] in cells else None
    flags = [_flag(cells, f"{name}_visible", origin) for name in layout.names]
    return Face(
        name=f"{cells['image']}:{line}",
        image=ImageFile(root / _inside(cells["image"], origin)),
        landmarks=landmarks,
        origin=origin,
        box=None if box is None else check_box(box, origin),
        visible=None if all(flags) else np.array(flags),
    )


def _number(cells: dict[str, str], column: str, origin: str) -> float:
    try:
        number = float(cells[column])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        hint = "; a landmark that is hidden goes where it would be seen" if not cells[column] else ""
        raise InputError(f"{origin}: {column} should be a finite number, got {cells[column]!r}{hint}")
    return number


def _flag(cells: dict[str, str], column: str, origin: str) -> bool:
    if cells.get(column, "1") not in ("0", "1"):
        raise InputError(f"{origin}: {column} should be 0 or 1, got {cells[column]!r}")
    return cells.get(column) != "0"


def _inside(relative: str, origin: str) -> str:
    """The path with slashes, when it stays inside the folder (on any system); InputError otherwise."""
    path = PureWindowsPath(relative)  # knows both kinds of slashes, and drives
    if path.anchor or ".." in path.parts or not path.name:
        raise InputError(f"{origin}: image should be the path of a picture below this folder, got {relative!r}")
    return path.as_posix()
