"""What the readers share: text files, numbers and folders, each failure one sentence that names its place."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from iact.data.faces import Faces, ImageFile
from iact.errors import InputError


def require_folder(path: Path) -> Path:
    """The path, when it is a folder; InputError otherwise."""
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    return path


def require_split(data: str, split: str, known: Iterable[str]) -> None:
    """InputError naming the known splits when `split` is not one of them."""
    known = tuple(known)
    if split not in known:
        raise InputError(f"unknown split {split!r} of data set {data!r}: expected one of {', '.join(known)}")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped; InputError when there is no such file or it is not text."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error


def parse_numbers(tokens: Sequence[str], origin: str) -> list[float]:
    """The tokens as finite numbers; InputError naming `origin` and the first token (from 1) that is none."""
    numbers = [_number(token) for token in tokens]
    for position, (token, number) in enumerate(zip(tokens, numbers, strict=True), start=1):
        if not math.isfinite(number):
            raise InputError(f"{origin}: token {position} should be a finite number, got {token[:60]!r}")
    return numbers


def _number(token: str) -> float:
    try:
        return float(token)
    except ValueError:
        return math.nan


def require_images(faces: Faces) -> Faces:
    """The faces, when the picture file of each exists; InputError naming the first missing one and their number."""
    exists = {face.image: face.image.path.is_file() for face in faces.records if isinstance(face.image, ImageFile)}
    lost = [face for face in faces.records if not exists.get(face.image, True)]
    if lost:
        others = f" (the pictures of {len(lost)} of {len(faces)} faces are missing)" if len(lost) > 1 else ""
        raise InputError(f"{lost[0].origin}: picture {lost[0].image} does not exist{others}")
    return faces


def compare_count(faces: Faces, name: str, official: int) -> Faces:
    """The faces, with a sentence in `missing` when their number is not the official one."""
    if len(faces) == official:
        return faces
    return replace(faces, missing=(*faces.missing, f"{name}: {len(faces)} of {official} faces"))
