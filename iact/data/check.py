"""Checks of a data set on disk: counts, pictures, landmarks, duplicates, symmetry of the layout, a contact sheet."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from iact.data import cofw, points, w300, wflw
from iact.data.face_boxes import describe_boxes
from iact.data.faces import Face, Faces, ImageFile, ImageSource
from iact.errors import InputError
from iact.geometry import crop_matrix, cut, landmark_box, transform_points
from iact.layouts import Layout
from iact.plots import contact_sheet, draw_landmarks, save_image

SAME_FACE = 0.02  # mean distance of the landmarks, over the larger side of their box, below which two faces are one
SMALL_EYE_DISTANCE = 0.05  # eye-corner distance over the larger side of the box, below which an error explodes
ASYMMETRY = 5.0  # % of inter-ocular distance at one landmark, beyond which the mirror pairs are doubtful (300W: 1.6)
ASYMMETRY_OF_ONE = 200.0  # %; chance adds up to it over the square root of the number of faces (300W: 108)
FAR_OUTSIDE = 1.0  # sides of a picture; those of the data sets lie up to 0.05 outside
_SHEET_FACES, _SHEET_SIZE = 48, 192


@dataclass(frozen=True)
class DataSet:
    """How to read a data set whose pictures may be missing, its splits and their official counts where there are any,
    and those of them that share no face."""

    read: Callable[[Path, str], Faces]
    counts: dict[str, int | None]
    disjoint: tuple[str, ...]


DATA_SETS = {
    "300w": DataSet(
        partial(w300.read_w300, check_images=False),
        w300.SPLITS,
        ("train", "common", "challenging"),
    ),
    "wflw": DataSet(partial(wflw.read_wflw, check_images=False), wflw.SPLITS, ("train", "test")),
    "cofw": DataSet(cofw.read_cofw, cofw.SPLITS, ("train", "test")),
}


@dataclass(frozen=True)
class Picture:
    """What is known of a picture once it was opened: (width, height) and a hash of its pixels; or why it was not."""

    size: np.ndarray | None = None
    digest: str = ""
    failure: str = ""


@dataclass
class Report:
    """What was found: faces by split (None where it cannot be read); by kind, sentences on what makes the data set
    incomplete or unfit; sentences for information."""

    counts: dict[str, int | None] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, sentences: Iterable[str]) -> None:
        """Adds problems of one kind; none when there are no sentences."""
        for sentence in sentences:
            self.problems.setdefault(kind, []).append(sentence)


def check_dataset(data: str, root: Path, sheet: Path, console: Console) -> Report:
    """Checks the files of a data set below `root`, prints what it finds and writes the contact sheet.

    InputError when no split can be read, or `sheet` is no .png in a folder that exists."""
    data_set = _find_data_set(data, root)
    if not sheet.absolute().parent.is_dir():
        raise InputError(f"{sheet}: no such folder to write the contact sheet into")
    if sheet.suffix != ".png":
        raise InputError(f"{sheet}: expected the contact sheet to be a .png file, got {sheet.suffix!r}")
    report = Report()
    splits = _read_splits(data_set, root, report)
    if sheet.resolve() in {source.path.resolve() for source in _files(splits)}:
        raise InputError(f"{sheet}: expected a new file for the contact sheet, got a picture of the data set")
    pictures = open_pictures((face.image for faces in splits for face in faces.records), console)
    _check_faces(splits, pictures, report)
    readable = [face for faces in splits for face in faces.records if pictures[face.image].size is not None]
    if readable:
        if splits[0].layout.landmarks:
            report.notes.append(describe_boxes(readable, splits[0].layout))
        _write_sheet(readable, splits[0].layout, sheet)
        report.notes.append(f"contact sheet of {min(len(readable), _SHEET_FACES)} faces: {sheet}")
    print_report(f"faces of {data}", data_set.counts, report, console)
    return report


def _files(splits: Sequence[Faces]) -> Iterator[ImageFile]:
    return (face.image for faces in splits for face in faces.records if isinstance(face.image, ImageFile))


def _find_data_set(data: str, root: Path) -> DataSet:
    """The data set of that name; one's own has the splits that lie in its folder."""
    if data == "points":
        splits = points.splits_of(root)
        return DataSet(partial(points.read_points, check_images=False), dict.fromkeys(splits), splits)
    if data not in DATA_SETS:
        raise InputError(f"unknown data set {data!r}: expected one of {', '.join(DATA_SETS)}, points")
    return DATA_SETS[data]


def _read_splits(data_set: DataSet, root: Path, report: Report) -> list[Faces]:
    """The disjoint splits that can be read; counts of all splits and what is wrong with the disjoint ones reported."""
    read, failures = [], []
    for split in data_set.counts:
        try:
            faces = data_set.read(root, split)
        except InputError as error:
            report.counts[split] = None
            if split in data_set.disjoint:
                failures.append(error)
                report.add("split that cannot be read", [f"{split}: {error}"])
            continue
        report.counts[split] = len(faces)
        if split in data_set.disjoint:
            read.append(faces)
            report.add("other count than the official one", faces.missing)
    if not read:
        raise failures[0]
    return read


def open_pictures(sources: Iterable[ImageSource], console: Console) -> dict[ImageSource, Picture]:
    """Every picture opened once, with a progress bar."""
    unique = list(dict.fromkeys(sources))
    with ThreadPoolExecutor() as pool:
        opened = track(pool.map(_open, unique), "opening pictures", total=len(unique), console=console)
        return dict(zip(unique, opened, strict=True))


def _open(source: ImageSource) -> Picture:
    try:
        image = source.read()
    except InputError as error:
        return Picture(failure=str(error))
    return Picture(np.array(image.shape[1::-1]), hashlib.sha1(image).hexdigest())


def _check_faces(splits: Sequence[Faces], pictures: dict[ImageSource, Picture], report: Report) -> None:
    layout = splits[0].layout
    faces = [face for split in splits for face in split.records]
    report.add("unreadable picture", [picture.failure for picture in pictures.values() if picture.failure])
    _check_bounds(faces, pictures, report)
    report.add("duplicated face", find_duplicates(faces, pictures))
    report.add("picture in two splits", find_shared_pictures(splits, pictures))
    report.add("eye corners that nearly meet", find_small_eye_distances(faces, layout))
    _check_symmetry(faces, layout, report)


def _check_bounds(faces: Sequence[Face], pictures: dict[ImageSource, Picture], report: Report) -> None:
    """Notes how many points lie outside their picture; most of a face's, or one far outside, are a problem."""
    shares = []
    for face in faces:
        size = pictures[face.image].size
        if size is None:
            continue
        outside = ((face.landmarks < -0.5) | (face.landmarks > size - 0.5)).any(axis=1)
        shares.append(outside.mean())
        if outside.mean() > 0.5:
            sentence = f"{face.origin}: {outside.sum()} of {len(outside)} points lie outside {face.image}"
            report.add("face outside its picture", [sentence])
        far = np.maximum(-face.landmarks, face.landmarks - size).max(axis=1) > FAR_OUTSIDE * max(size)
        if far.any():
            place = face.landmarks[far.argmax()].tolist()
            report.add("landmark far outside its picture", [f"{face.origin}: {place} in {face.image}"])
    partly = sum(share > 0 for share in shares)
    percent = 100 * np.mean(shares or [0])
    report.notes.append(f"points outside the picture: {percent:.2f} % of all, on {partly} of {len(shares)} faces")


def find_duplicates(faces: Sequence[Face], pictures: dict[ImageSource, Picture]) -> list[str]:
    """A sentence for each face that has the same pixels and nearly the same landmarks as an earlier one."""
    earlier: dict[str, list[Face]] = {}
    sentences = []
    for face in faces:
        digest = pictures[face.image].digest or str(face.image)
        twins = [other for other in earlier.get(digest, []) if _same_face(face, other)]
        if twins:
            sentences.append(f"{face.origin} is {twins[0].origin} again")
        earlier.setdefault(digest, []).append(face)
    return sentences


def _same_face(face: Face, other: Face) -> bool:
    distance = np.linalg.norm(face.landmarks - other.landmarks, axis=1).mean()
    return bool(distance <= SAME_FACE * _box_side(face))


def _box_side(face: Face) -> float:
    return float(np.ptp(face.landmarks, axis=0).max())


def find_shared_pictures(splits: Sequence[Faces], pictures: dict[ImageSource, Picture]) -> list[str]:
    """A sentence for each picture that two splits share, by the hash of its pixels."""
    first: dict[str, tuple[str, Face]] = {}
    sentences = {}
    for faces in splits:
        for face in faces.records:
            digest = pictures[face.image].digest
            split, other = first.setdefault(digest, (faces.split, face))
            if digest and split != faces.split:
                sentences[digest] = f"{split} and {faces.split}: {other.image} is {face.image}"
    return list(sentences.values())


def find_small_eye_distances(faces: Sequence[Face], layout: Layout) -> list[str]:
    """A sentence for each face whose eye corners nearly meet, so that an error divided by their distance explodes."""
    sentences = []
    corners = " and ".join(layout.names[corner] for corner in layout.eye_corners)
    corners = corners if layout.landmarks else "the outer corners"
    for face in faces:
        distance = _eye_distance(face, layout)
        if distance <= SMALL_EYE_DISTANCE * _box_side(face):
            sentences.append(f"{face.origin}: {corners} are {distance:.2f} px apart")
    return sentences


def _eye_distance(face: Face, layout: Layout) -> float:
    left, right = layout.eye_corners
    return float(np.linalg.norm(face.landmarks[left] - face.landmarks[right]))


def _check_symmetry(faces: Sequence[Face], layout: Layout, report: Report) -> None:
    mirror = np.array(layout.mirror)
    if not np.array_equal(mirror[mirror], np.arange(layout.num_landmarks)):
        report.add("layout", [f"{layout.name}: mirroring twice does not give back every landmark"])
    left, right = layout.eye_corners
    if layout.landmarks and mirror[left] != right:
        report.notes.append(
            f"{layout.names[left]} and {layout.names[right]} are no mirror pair, so symmetry is unknown"
        )
        return
    asymmetry = measure_asymmetry(faces, layout)
    worst = int(asymmetry.argmax())
    sentence = (
        f"mean shape against its mirror: {asymmetry.mean():.2f} % of inter-ocular distance, "
        f"at most {asymmetry[worst]:.2f} % (landmark {layout.names[worst]})"
    )
    report.notes.append(sentence)
    if asymmetry[worst] > max(ASYMMETRY, ASYMMETRY_OF_ONE / max(len(faces), 1) ** 0.5):
        report.add("asymmetry", [sentence])


def measure_asymmetry(faces: Sequence[Face], layout: Layout) -> np.ndarray:
    """How far each landmark [K] of the mean shape lies from its mirror image, in % of inter-ocular distance.

    Before averaging, each face is moved, turned and scaled so that its outer eye corners are (-0.5, 0) and (0.5, 0)."""
    left, right = layout.eye_corners
    usable = [face.landmarks for face in faces if _eye_distance(face, layout) > SMALL_EYE_DISTANCE * _box_side(face)]
    points = np.array(usable or [np.zeros((layout.num_landmarks, 2))]) @ [1, 1j]
    middle, across = (points[:, left] + points[:, right]) / 2, points[:, right] - points[:, left]
    shape = ((points - middle[:, None]) / np.where(across == 0, 1, across)[:, None]).mean(axis=0)
    mirrored = -shape[list(layout.mirror)].conj()
    return 100 * np.abs(shape - mirrored)


def _write_sheet(faces: Sequence[Face], layout: Layout, path: Path) -> None:
    """A PNG of faces spread evenly over the data set, cut out, with their landmarks."""
    chosen = np.unique(np.linspace(0, len(faces) - 1, _SHEET_FACES).round().astype(int))
    save_image(path, contact_sheet([_draw(faces[index], layout) for index in chosen]))


def _draw(face: Face, layout: Layout) -> np.ndarray:
    box = landmark_box(face.landmarks)
    if _box_side(face) == 0:  # nothing to cut: show the surroundings of the point
        box = box + [-1, -1, 1, 1]
    matrix = crop_matrix(box, _SHEET_SIZE)
    crop = cut(face.image.read(), matrix, _SHEET_SIZE)
    return draw_landmarks(crop, transform_points(face.landmarks, matrix), layout)


def print_report(
    title: str, official: dict[str, int | None], report: Report, console: Console, longest: int = 10
) -> None:
    """Prints the counts beside the official ones, then the notes, then the problems, at most `longest` of a kind."""
    table = Table("split", "faces", "official", title=title)
    for split, count in report.counts.items():
        table.add_row(split, *("-" if number is None else str(number) for number in (count, official[split])))
    console.print(table)
    lines = [f"note: {note}" for note in report.notes]
    for kind, sentences in report.problems.items():
        lines += [f"problem, {kind}: {sentence}" for sentence in sentences[:longest]]
        lines += [f"problem, {kind}: {len(sentences) - longest} more"] if len(sentences) > longest else []
    lines.append(f"{sum(map(len, report.problems.values())) or 'no'} problems")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
