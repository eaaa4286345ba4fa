"""300W: a folder per source, and beside each picture a `.pts` file with 68 points.

Official files: https://ibug.doc.ic.ac.uk/resources/facial-point-annotations. The points are 1-based (MATLAB)."""

import re
from pathlib import Path

import numpy as np

from iact.data.faces import Face, Faces, ImageFile, check_landmarks
from iact.data.files import compare_count, parse_numbers, read_lines, require_folder, require_images, require_split
from iact.errors import InputError
from iact.layouts import W300

PARTS = {
    "afw": 337,
    "helen/trainset": 2000,
    "lfpw/trainset": 811,
    "helen/testset": 330,
    "lfpw/testset": 224,
    "ibug": 135,
    "300W/01_Indoor": 300,
    "300W/02_Outdoor": 300,
}
"""Folder of each part and its official number of faces."""

_COMMON = ("helen/testset", "lfpw/testset")
SPLIT_PARTS = {
    "train": ("afw", "helen/trainset", "lfpw/trainset"),
    "common": _COMMON,
    "challenging": ("ibug",),
    "full": (*_COMMON, "ibug"),
    **{part: (part,) for part in PARTS},
}
"""The parts of each split; a part is a split as well."""

SPLITS = {split: sum(PARTS[part] for part in parts) for split, parts in SPLIT_PARTS.items()}
"""Official number of faces of each split."""

FIRST_PIXEL = 1  # the centre of the first pixel is (1, 1) in the files and (0, 0) here
_SUFFIXES = (".jpg", ".png")


def read_w300(root: Path, split: str, *, check_images: bool = True) -> Faces:
    """The faces of a split of 300W below `root`, ordered by part and file name; 0-based landmarks, no boxes.

    Parts that are absent or incomplete are said in `Faces.missing`. With `check_images=False` the picture of a face
    may be missing. InputError for an unknown split, a split of which nothing is there, a file that does not follow
    the format, or a missing picture."""
    require_split("300w", split, SPLITS)
    require_folder(root)
    parts = [compare_count(_read_part(root, part), part, PARTS[part]) for part in SPLIT_PARTS[split]]
    records = tuple(face for part in parts for face in part.records)
    if not records:
        folders = ", ".join(SPLIT_PARTS[split])
        raise InputError(f"{root}: no .pts file in the folders of split {split!r} ({folders})")
    faces = Faces(W300, split, records, tuple(sentence for part in parts for sentence in part.missing))
    return require_images(faces) if check_images else faces


def _read_part(root: Path, part: str) -> Faces:
    folder = root / part
    files = sorted(path for path in folder.glob("*") if not path.name.startswith("."))  # macOS archives hold ._ files
    pictures = {path.stem: path for path in files if path.suffix.lower() in _SUFFIXES}
    annotations = [path for path in files if path.suffix.lower() == ".pts"]
    return Faces(W300, part, tuple(_read_face(part, path, pictures) for path in annotations))


def _read_face(part: str, path: Path, pictures: dict[str, Path]) -> Face:
    picture = pictures.get(path.stem, path.with_suffix(".jpg"))
    several = re.fullmatch(r"(.*\d ?)_\d{1,2}", path.stem)  # one picture a face: PHOTOGRAPH_1, PHOTOGRAPH_2, ...
    photograph = f"{part}/{several[1] if several else path.stem}"
    return Face(f"{part}/{path.stem}", ImageFile(picture), read_pts(path), str(path), photograph=photograph)


def read_pts(path: Path) -> np.ndarray:
    """The landmarks float64 [68, 2] of a `.pts` file, 0-based; InputError naming file and line when malformed.

    The header's spacing, blank lines and anything behind the closing brace are free."""
    lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line]
    texts = [line for _, line in lines]
    for brace in "{}":
        if brace not in texts:
            last = lines[-1][0] if lines else 1
            raise InputError(f"{path}:{last}: expected a line {brace!r} before the end of the file")
    start, end = texts.index("{"), texts.index("}")
    _check_header(path, lines[:start])
    points = [_read_point(f"{path}:{number}", line) for number, line in lines[start + 1 : end]]
    if len(points) != W300.num_landmarks:
        line = lines[end][0]
        raise InputError(f"{path}:{line}: expected {W300.num_landmarks} landmarks before this line, got {len(points)}")
    return check_landmarks(np.array(points) - FIRST_PIXEL, W300, str(path))


def _check_header(path: Path, lines: list[tuple[int, str]]) -> None:
    """InputError when the header announces another number of points."""
    for number, line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "n_points" and value.strip() != str(W300.num_landmarks):
            raise InputError(f"{path}:{number}: expected n_points: {W300.num_landmarks}, got {value.strip()!r}")


def _read_point(origin: str, line: str) -> list[float]:
    tokens = line.split()
    if len(tokens) != 2:
        raise InputError(f"{origin}: expected 2 numbers, got {len(tokens)} tokens")
    return parse_numbers(tokens, origin)
