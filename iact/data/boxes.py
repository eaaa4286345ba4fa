"""Face boxes from a file, for pictures whose faces somebody else has found."""

import csv
import json
import math
import reprlib
from pathlib import Path

import numpy as np

from iact.data.files import parse_numbers, read_lines
from iact.errors import InputError

HEADER = ["name", "x0", "y0", "x1", "y1"]


def read_boxes(path: Path) -> dict[str, np.ndarray]:
    """Boxes (x0, y0, x1, y1) float64 [N, 4], image px, by the name of the picture.

    The file is JSON, {<name>: [[x0, y0, x1, y1], ...], ...}, or where its suffix is .csv, a row for each box under the
    header name,x0,y0,x1,y1. InputError naming the line, or the picture, that does not follow this."""
    lines = read_lines(path)
    found = _read_csv(path, lines) if path.suffix.lower() == ".csv" else _read_json(path, lines)
    return {name: np.array(boxes, np.float64).reshape(-1, 4) for name, boxes in found.items()}


def _read_csv(path: Path, lines: list[str]) -> dict[str, list[list[float]]]:
    reader = csv.reader(lines, skipinitialspace=True)
    found: dict[str, list[list[float]]] = {}
    try:
        if next(reader, None) != HEADER:
            raise InputError(f"{path}:1: expected the header {','.join(HEADER)}, got {lines[0][:80]!r}")
        for row in filter(None, reader):
            origin = f"{path}:{reader.line_num}"
            if len(row) != len(HEADER):
                raise InputError(f"{origin}: expected {len(HEADER)} fields ({','.join(HEADER)}), got {len(row)}")
            found.setdefault(row[0], []).append(parse_numbers(row[1:], origin))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: cannot be read as CSV ({error})") from None
    return found


def _read_json(path: Path, lines: list[str]) -> dict[str, list[list[float]]]:
    try:
        found = json.loads("\n".join(lines), parse_int=float)  # int refuses 5,000 digits, and isfinite 400
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}); CSV needs the suffix .csv") from None
    except RecursionError:
        raise InputError(f"{path}: expected boxes [[x0, y0, x1, y1], ...] by picture, got too deep a nesting") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected {{<picture>: [[x0, y0, x1, y1], ...], ...}}, got a {type(found).__name__}")
    for name, boxes in found.items():
        if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
            got = reprlib.repr(boxes)  # however deep they are
            raise InputError(f"{path}: {name!r}: expected boxes [[x0, y0, x1, y1], ...] of finite numbers, got {got}")
    return found


def _is_box(box: object) -> bool:
    numbers = isinstance(box, list) and all(type(value) is float and math.isfinite(value) for value in box)
    return numbers and len(box) == 4
