"""Which prediction of a file belongs to which face."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from iact import metrics
from iact.data.faces import Face, Faces, ImageFile
from iact.errors import InputError
from iact.layouts import Layout
from iact.predictions import Predictions, numbers_of

ENOUGH = 10  # faces to doubt by
Picture = tuple[tuple[str, ...], str]  # the parts of its path without a suffix, and the suffix
Given = dict[Picture, dict[Picture, list[int]]]  # predictions of each picture, by the names that fit it
SUFFIX = re.compile(r"\.(jpe?g|png|bmp|webp|tiff?|gif|pts)$", re.IGNORECASE)


@dataclass(frozen=True)
class Matched:
    """Predictions [N, K, 2] of the faces, in their order; `found` [N] is false where the file has none. `notes` are
    clauses on how they were matched."""

    landmarks: np.ndarray
    found: np.ndarray
    notes: tuple[str, ...]


def match_predictions(predictions: Predictions, faces: Faces, path: Path) -> Matched:
    """The predictions of a file for these faces, by name: that of the face, or the end of its picture's path.

    Landmarks come in the layout's order where the file has its names for them. Picture suffixes do not count. Of names
    that fit a picture the closest counts, and where any name of the file fits by more than that of the picture's file,
    those that do not are of other folders. Where a picture holds several faces, or a file several for one, they are
    matched so that the sum of distances is least. InputError for other landmarks, or another number of them, names that
    fit several pictures, several that fit one equally, or when no name fits."""
    predicted, count = _in_order(predictions, faces.layout, path), faces.layout.num_landmarks
    if predicted.shape[1] != count:
        raise InputError(f"{path}: expected {count} landmarks a face, got {predicted.shape[1]}")
    if predictions.names is None:
        if len(predicted) != len(faces):
            raise InputError(f"{path}: expected names, or {len(faces)} faces, got {len(predicted)}")
        return Matched(predicted, np.ones(len(faces), bool), ())
    groups, unused, loose = _group(predictions.names, faces, path)
    landmarks, found = np.zeros((len(faces), count, 2)), np.zeros(len(faces), bool)
    several = 0
    for own, given in groups:
        several += len(own) > 1 or len(given) > 1
        truth = np.stack([faces.records[index].landmarks for index in own])
        rows, columns = _assign(truth, predicted[given])
        landmarks[own[rows]], found[own[rows]] = predicted[given[columns]], True
    if not found.any():
        raise InputError(f"{path}: no name fits a face of the split (the first is {predictions.names[0]!r})")
    notes = (f"{unused} predictions for other pictures" if unused else "",)
    notes += (f"{loose} matched by the names of their files alone, whatever their folders" if loose else "",)
    notes += (f"faces matched to the nearest in {several} pictures with several" if several else "",)
    return Matched(landmarks, found, tuple(filter(None, notes)))


def doubt_first_pixel(landmarks: np.ndarray, truth: np.ndarray, first_pixel: int) -> str:
    """A warning where landmarks [N, K, 2] of a file fit the truth better with the other of the two first pixels, 0 and
    1, and not by the chance of these faces; else ""."""
    if len(landmarks) < ENOUGH:
        return ""
    other = 1 - first_pixel
    sides = np.ptp(truth, axis=1).max(axis=-1).clip(1)
    errors = {pixel: metrics.nme(landmarks - pixel, truth, sides) for pixel in (first_pixel, other)}
    better = metrics.bootstrap_interval(errors[other] - errors[first_pixel])[1] < 0
    return f"they would fit better with --first-pixel {other}" if better else ""


def _in_order(predictions: Predictions, layout: Layout, path: Path) -> np.ndarray:
    """The landmarks [N, K, 2] in the order of the layout's names; as they are where the file has but numbers."""
    labels, names = predictions.labels, layout.names
    if labels is not None and {*labels} == {*names}:
        return predictions.landmarks[:, [labels.index(name) for name in names]]
    if labels is not None and numbers_of(labels) is None:
        strange = next((f"{label!r}" for label in labels if label not in names), None)
        got = strange or f"no {next(name for name in names if name not in labels)!r}"
        called = f"the landmarks of layout {layout.name} by name, or by number from 0 or 1"
        raise InputError(f"{path}:1: expected {called}, got {got}")
    return predictions.landmarks


def _group(names: Sequence[str], faces: Faces, path: Path) -> tuple[list[tuple[np.ndarray, np.ndarray]], int, int]:
    """Faces and predictions [2][n] that belong together, the number of predictions for none of the faces, and of those
    whose folders are other than their picture's."""
    by_name = {face.name: index for index, face in enumerate(faces.records)}
    pictures: dict[Picture, list[int]] = defaultdict(list)
    for index, face in enumerate(faces.records):
        pictures[_parts(_picture(face))].append(index)
    by_end: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_end[picture[0][-1]].append(picture)
    of_face: dict[int, list[int]] = defaultdict(list)
    of_picture: Given = defaultdict(lambda: defaultdict(list))
    for number, name in enumerate(names):
        own = by_name.get(name, by_name.get(SUFFIX.sub("", name)))
        if own is not None:
            of_face[own].append(number)
        elif picture := _find(_parts(name), by_end, f"{path}: {name!r}"):
            of_picture[picture][_parts(name)].append(number)
    groups = [([own], numbers) for own, numbers in of_face.items()]
    loose = 0
    for picture, numbers in _closest(of_picture, bool(of_face), path).items():
        name = _parts(names[numbers[0]])
        loose += len(numbers) * (len(name[0]) > 1 and _shared(name, picture)[0] == 1)
        groups.append(([own for own in pictures[picture] if own not in of_face], numbers))
    whole = [(np.array(own), np.array(numbers)) for own, numbers in groups if own]
    return whole, len(names) - sum(len(numbers) for _, numbers in whole), loose


def _closest(of_picture: Given, sure: bool, path: Path) -> dict[Picture, list[int]]:
    """The predictions of each picture under the name that fits it best; `sure` says that others fit by all of theirs.
    InputError where two names fit equally."""
    sure = sure or any(_shared(name, picture)[0] > 1 for picture, given in of_picture.items() for name in given)
    closest = {}
    for picture, given in of_picture.items():
        most, best = _best(picture, given)
        if sure and most == 1 and all(len(parts) > 1 for parts, _ in best):
            continue  # of the same name in another folder
        if len(best) > 1:
            one, other = map(_text, sorted(best)[:2])
            raise InputError(f"{path}: {one!r} and {other!r} both fit the picture {_text(picture)}")
        closest[picture] = given[best[0]]
    return closest


def _find(name: Picture, by_end: dict[str, list[Picture]], origin: str) -> Picture | None:
    """The picture whose path ends most like this one. InputError where several do."""
    candidates = by_end.get(name[0][-1])
    if not candidates:
        return None
    _, best = _best(name, candidates)
    if len(best) > 1:
        raise InputError(f"{origin} fits several pictures: {', '.join(map(_text, sorted(best)[:2]))}")
    return best[0]


def _best(name: Picture, candidates: Iterable[Picture]) -> tuple[int, list[Picture]]:
    """How many parts the candidates most like it share with it, and which they are; of these the suffix decides."""
    shared = {candidate: _shared(name, candidate) for candidate in candidates}
    most = max(shared.values())
    return most[0], [candidate for candidate, number in shared.items() if number == most]


def _shared(one: Picture, other: Picture) -> tuple[int, bool]:
    """How many parts at their ends are equal, and whether the suffixes are."""
    pairs = zip(reversed(one[0]), reversed(other[0]), strict=False)
    fewer = min(len(one[0]), len(other[0]))
    return next((number for number, (a, b) in enumerate(pairs) if a != b), fewer), one[1] == other[1]


def _parts(name: str) -> Picture:
    """The parts of a path, without the suffix of a picture, and the suffix; spaces inside it are kept."""
    path = name.replace("\\", "/").strip()
    bare = SUFFIX.sub("", path)
    return tuple(bare.split("/")), path[len(bare) :].lower()


def _text(picture: Picture) -> str:
    return "/".join(picture[0][-3:]) + picture[1]


def _picture(face: Face) -> str:
    return face.image.path.as_posix() if isinstance(face.image, ImageFile) else face.name


def _assign(truth: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of faces [n, K, 2] and predictions [m, K, 2] that belong together."""
    if len(truth) == len(given) == 1:
        return np.zeros(1, int), np.zeros(1, int)
    return linear_sum_assignment(np.linalg.norm(truth[:, None] - given[None], axis=-1).mean(axis=-1))
