"""Files of predictions that other systems made: JSON, CSV or NPZ, among them those of SPIGA and of `iact predict`."""

import csv
import json
import math
import re
import reprlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iact.errors import InputError

NAMES = ("name", "names", "image", "images", "image_name", "image_path", "imgpath", "path", "file", "filename")
POINTS = ("landmarks", "points", "keypoints", "predictions", "pred")
SPIGA = "imgpath"
COLUMN = re.compile(r"[xy]_?(?P<number>\d+)|[xy]_(?P<first>.+)|(?P<last>.+)_[xy]")  # x0, x_nose or nose_x
NUMBERED = re.compile(r"(.*?)(\d{1,9})")  # 12, landmark_12
# What np.load raises for no archive at all, which is AttributeError or TypeError by Python's version, or a damaged one.
BAD_ARRAYS = (AttributeError, TypeError, OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
BOX = ("box", "bbox", "min", "max")  # of box_x, box_y and x_min, y_min: beside the landmarks, and none of them


@dataclass(frozen=True)
class Predictions:
    """Landmarks [N, K, 2] of faces in the file's px, and the names of their pictures or faces [N]; no names where the
    file has none and the order of the split counts. `understood` is a clause on what the file was taken for.
    `annotated` is true where its px are those of the annotation files, whatever their first pixel is. `labels` are what
    the file calls the landmarks [K], in their order; None where it has nothing but the order."""

    landmarks: np.ndarray
    names: tuple[str, ...] | None
    understood: str
    annotated: bool = False
    labels: tuple[str, ...] | None = None


def read_predictions(path: Path) -> Predictions:
    """The predictions in a file, by its suffix .json, .csv or .npz.

    JSON: a list of {"image": <name>, "landmarks": [[x, y], ...]} (as SPIGA has it: "imgpath"), or an object that has
    the landmarks of a face for each name, or a list of faces; also what `iact predict` writes. CSV: a row for each
    face, with its name and x and y of each landmark under a header such as name,x_0,y_0,...; numbered landmarks come
    in the order of their numbers, named ones in that of the columns, and other columns are not used. NPZ: arrays
    "landmarks" [N, K, 2] and, but for predictions in the order of the split, "names" [N]. InputError naming the line or
    the face that does not follow this, or has another number of landmarks than the first."""
    readers = {".json": _read_json, ".csv": _read_csv, ".npz": _read_npz}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: expected predictions in a file .json, .csv or .npz, got {path.suffix!r}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    found = readers[path.suffix.lower()](path)
    if not len(found.landmarks):
        raise InputError(f"{path}: no predictions in this file")
    return found


def _read_json(path: Path) -> Predictions:
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text, parse_int=float, object_pairs_hook=_once)  # int refuses 5,000 digits
    except DoubledKey as error:
        raise InputError(f"{path}: {error.args[0]!r} stands there twice; expected a list of its faces") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    if isinstance(found, dict) and isinstance(found.get("pictures"), dict):
        return _gather(path, _named(path, found["pictures"]), "what iact predict writes")
    if isinstance(found, dict):
        return _gather(path, _named(path, found), "JSON, faces by the name of their picture")
    if not isinstance(found, list):
        raise InputError(f"{path}: expected a list of faces or an object of names, got {_short(found)}")
    spiga = all(isinstance(entry, dict) and SPIGA in entry for entry in found)
    kind = "SPIGA's results" if spiga else "JSON, a list of faces"
    return _gather(path, list(_listed(path, found)), kind, annotated=spiga)


class DoubledKey(Exception):
    """An object of a JSON file has this key twice: the reader would keep the last alone."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DoubledKey(next(key for key in keys if keys.count(key) > 1))
    return found


def _listed(path: Path, entries: list) -> Iterator[tuple[str, str, Any]]:
    """Name, origin and points of each entry."""
    for number, entry in enumerate(entries, start=1):
        origin = f"{path}, face {number} of the list"
        name, points = (_field(entry, keys, origin) for keys in (NAMES, POINTS))
        if not isinstance(name, str):
            raise InputError(f"{origin}: expected the name of a picture, got {_short(name)}")
        yield name, origin, points


def _named(path: Path, entries: dict) -> list[tuple[str, str, Any]]:
    """Name, origin and points of each face; a name has a face, or a list of several."""
    found = []
    for name, faces in entries.items():
        several = isinstance(faces, list) and all(isinstance(one, dict) or _depth(one) == 2 for one in faces)
        for one in faces if several else [faces]:
            origin = f"{path}, {name!r}"
            found.append((name, origin, _field(one, POINTS, origin) if isinstance(one, dict) else one))
    return found


def _gather(path: Path, faces: list[tuple[str, str, Any]], kind: str, annotated: bool = False) -> Predictions:
    landmarks = [_points(points, origin) for _, origin, points in faces]
    _require_equal([len(points) for points in landmarks], [origin for _, origin, _ in faces])
    count = len(landmarks[0]) if landmarks else 0
    names = tuple(name for name, _, _ in faces)
    return Predictions(np.array(landmarks).reshape(len(faces), count, 2), names, kind, annotated)


def _points(points: Any, origin: str) -> np.ndarray:
    """Points [K, 2] from [[x, y], ...], from [[x, y, score], ...] or from [x0, y0, x1, y1, ...]."""
    try:
        array = np.array(points, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim == 1 and array.size % 2 == 0:
        array = array.reshape(-1, 2)
    if array.ndim != 2 or not array.size or array.shape[1] not in (2, 3):
        raise InputError(f"{origin}: expected landmarks [[x, y], ...], got {_short(points)}")
    return _require_finite(array[:, :2], origin)


def numbers_of(labels: Sequence[str]) -> list[int] | None:
    """The numbers of landmarks that are called 0, 1, 2, ... or landmark_1, landmark_2, ..., in any order; None where
    they have names, several series of numbers, gaps, or do not start at 0 or 1."""
    matches = [NUMBERED.fullmatch(label) for label in labels]
    if not all(matches) or len({match[1] for match in matches}) > 1:
        return None
    numbers = [int(match[2]) for match in matches]
    first = min(numbers)
    return numbers if first < 2 and sorted(numbers) == [*range(first, first + len(numbers))] else None


def _read_csv(path: Path) -> Predictions:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from None
    if not rows:
        raise InputError(f"{path}: no predictions in this file")
    (_, header), *faces = rows
    name, landmark_columns = _columns(path, header)
    columns = [column for pair in landmark_columns.values() for column in pair]
    landmarks = np.empty((len(faces), len(landmark_columns), 2))
    for index, (line, row) in enumerate(faces):
        if len(row) != len(header):
            raise InputError(f"{path}:{line}: expected {len(header)} fields as in the header, got {len(row)}")
        try:
            numbers = [float(row[column]) for column in columns]
        except ValueError as error:
            raise InputError(f"{path}:{line}: expected numbers in the columns of landmarks ({error})") from None
        landmarks[index] = _require_finite(np.reshape(numbers, (-1, 2)), f"{path}:{line}")
    names = tuple(row[name] for _, row in faces)
    return Predictions(landmarks, names, "CSV, a row for each face", labels=tuple(landmark_columns))


def _columns(path: Path, header: list[str]) -> tuple[int, dict[str, list[int]]]:
    """The column of names, and those of x and y of each landmark by what it is called, in the order of the numbers."""
    name = next((index for index, column in enumerate(header) if column.strip().lower() in NAMES), None)
    if name is None:
        raise InputError(f"{path}:1: expected a header with a column {' or '.join(NAMES)}, got {_short(header)}")
    axes = _axes(path, [column.strip() for column in header], name)
    if not axes or any(len(pair) != 2 for pair in axes.values()):
        lone = next((label for label, pair in axes.items() if len(pair) != 2), "0")
        raise InputError(f"{path}:1: expected columns for x and y of each landmark, such as x_0,y_0; see {lone!r}")
    numbers = numbers_of([*axes]) or range(len(axes))
    in_order = [label for _, label in sorted(zip(numbers, axes, strict=True))]
    return name, {label: [axes[label][axis] for axis in "xy"] for label in in_order}


def _axes(path: Path, header: list[str], name: int) -> dict[str, dict[str, int]]:
    """The columns of "x" and "y" by what their landmark is called."""
    axes: dict[str, dict[str, int]] = {}
    for index, column in enumerate(header):
        match = COLUMN.fullmatch(column)
        if index == name or not match or (label := match[match.lastgroup]) in BOX:
            continue
        axis = column[-1] if match["last"] else column[0]
        first = axes.setdefault(label, {}).setdefault(axis, index)
        if first != index:
            both = f"got {header[first]!r} and {column!r} (a box goes under box_x0,box_y0,box_x1,box_y1)"
            raise InputError(f"{path}:1: expected {axis} of landmark {label!r} in one column, {both}")
    return axes


def _read_npz(path: Path) -> Predictions:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in file.files}
    except BAD_ARRAYS as error:
        raise InputError(f"{path}: not an .npz of plain arrays, or a damaged one ({error})") from None
    landmarks = _field(arrays, POINTS, str(path))
    names = next((arrays[key] for key in NAMES if key in arrays), None)
    numbers = landmarks.dtype.kind in "fiu"
    if landmarks.ndim != 3 or landmarks.shape[2] not in (2, 3) or not landmarks.shape[1] or not numbers:
        raise InputError(f"{path}: expected landmarks [N, K, 2], got {landmarks.dtype} of shape {landmarks.shape}")
    if names is not None and (names.shape != landmarks.shape[:1] or names.dtype.kind != "U"):
        raise InputError(f"{path}: expected {len(landmarks)} names, got {names.dtype} of shape {names.shape}")
    landmarks = np.array([_require_finite(p, f"{path}, face {i}") for i, p in enumerate(landmarks[..., :2], start=1)])
    if names is None:
        return Predictions(landmarks, None, "NPZ without names, in the order of the split")
    return Predictions(landmarks, tuple(names.tolist()), "NPZ")


def _field(entry: Any, keys: tuple[str, ...], origin: str) -> Any:
    found = [key for key in keys if isinstance(entry, dict) and key in entry]
    if not found:
        got = ", ".join(map(str, entry)) if isinstance(entry, dict) else _short(entry)
        raise InputError(f"{origin}: expected one of {', '.join(keys)}, got {got or 'nothing'}")
    return entry[found[0]]


def _require_finite(points: np.ndarray, origin: str) -> np.ndarray:
    if not np.isfinite(points).all():
        landmark = int(np.argwhere(~np.isfinite(points))[0, 0])
        raise InputError(f"{origin}: landmark {landmark} is not a finite number")
    return points.astype(np.float64)


def _require_equal(counts: list[int], origins: list[str]) -> None:
    for count, origin in zip(counts, origins, strict=True):
        if count != counts[0]:
            raise InputError(f"{origin}: expected {counts[0]} landmarks as in the first face, got {count}")


def _depth(value: Any) -> int:
    """How deep lists of numbers are nested, by their first entries."""
    depth = 0
    while isinstance(value, list) and value:
        value, depth = value[0], depth + 1
    return depth if isinstance(value, (int, float)) and math.isfinite(value) else -1


def _short(value: Any) -> str:
    text = reprlib.repr(value)  # however deep it is
    return text if len(text) <= 60 else text[:60] + "..."
