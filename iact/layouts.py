"""Landmark layouts as data: how many points, which mirror which, what normalises an error, which lines to draw.

Indices are 0-based and checked against the sources that the field uses (WFLW, 300W and COFW official files). Layouts of
one's own are read from files by `layout_file`."""

from dataclasses import dataclass

import numpy as np

from iact.errors import InputError


@dataclass(frozen=True)
class Layout:
    """One way of placing landmarks on a face.

    `mirror[i]` is the landmark of the unflipped face that becomes landmark i when the picture is flipped. The distance
    of `eye_corners`, the outer ones, is what errors are measured in. `left_pupil` and `right_pupil` are landmarks whose
    mean is the pupil. `curves` are runs of landmarks to draw as lines; a closed curve repeats its first landmark.
    `landmarks` are their names, none where the field knows them by index. `box_in_face` is where the square around the
    landmarks lies in that around a whole face, 300W's: how far to the right and down, and how large, in its sides."""

    name: str
    num_landmarks: int
    mirror: tuple[int, ...]
    eye_corners: tuple[int, int]
    left_pupil: tuple[int, ...]
    right_pupil: tuple[int, ...]
    curves: tuple[tuple[int, ...], ...]
    landmarks: tuple[str, ...] = ()
    box_in_face: tuple[float, float, float] = (0.0, 0.0, 1.0)

    @property
    def names(self) -> tuple[str, ...]:
        """What the landmarks [K] are called; their indices where they have no names."""
        return self.landmarks or tuple(map(str, range(self.num_landmarks)))


def _run(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


def _loop(first: int, last: int) -> tuple[int, ...]:
    return (*range(first, last + 1), first)


def _down(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last - 1, -1))


WFLW = Layout(
    name="wflw",
    num_landmarks=98,
    mirror=(
        *_down(32, 0),
        *(46, 45, 44, 43, 42, 50, 49, 48, 47, 37, 36, 35, 34, 33, 41, 40, 39, 38),
        *(51, 52, 53, 54, 59, 58, 57, 56, 55),
        *(72, 71, 70, 69, 68, 75, 74, 73, 64, 63, 62, 61, 60, 67, 66, 65),
        *(82, 81, 80, 79, 78, 77, 76, 87, 86, 85, 84, 83, 92, 91, 90, 89, 88, 95, 94, 93, 97, 96),
    ),
    eye_corners=(60, 72),
    left_pupil=(96,),
    right_pupil=(97,),
    curves=(
        *(_run(0, 32), _loop(33, 41), _loop(42, 50), _run(51, 54), _run(55, 59)),
        *(_loop(60, 67), _loop(68, 75), _loop(76, 87), _loop(88, 95)),
    ),
)

W300 = Layout(
    name="300w",
    num_landmarks=68,
    mirror=(
        *(*_down(16, 0), *_down(26, 17), *_run(27, 30), *_down(35, 31)),
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
        *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65),
    ),
    eye_corners=(36, 45),
    left_pupil=_run(36, 41),
    right_pupil=_run(42, 47),
    curves=(
        *(_run(0, 16), _run(17, 21), _run(22, 26), _run(27, 30), _run(31, 35)),
        *(_loop(36, 41), _loop(42, 47), _loop(48, 59), _loop(60, 67)),
    ),
)

COFW = Layout(
    name="cofw",
    num_landmarks=29,
    mirror=(
        *(1, 0, 3, 2, 6, 7, 4, 5, 9, 8, 11, 10, 14, 15, 12, 13, 17, 16),
        *(19, 18, 20, 21, 23, 22, 24, 25, 26, 27, 28),
    ),
    eye_corners=(8, 9),
    left_pupil=(16,),
    right_pupil=(17,),
    curves=(
        *((0, 4, 2, 5, 0), (1, 6, 3, 7, 1), (8, 12, 10, 13, 8), (9, 14, 11, 15, 9)),
        *((18, 20, 19, 21, 18), (22, 26, 23, 27, 22), (22, 24, 23, 25, 22)),
    ),
)

LAYOUTS = {layout.name: layout for layout in (WFLW, W300, COFW)}


def find_layout(name: str) -> Layout:
    """The layout of that name ("wflw", "300w", "cofw"); InputError naming the known ones otherwise."""
    if name not in LAYOUTS:
        raise InputError(f"unknown landmark layout {name!r}: expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def flip_landmarks(landmarks: np.ndarray, layout: Layout, width: int) -> np.ndarray:
    """Landmarks [..., K, 2] of the picture flipped left to right, in pixels of a picture `width` wide."""
    flipped = landmarks[..., list(layout.mirror), :].copy()
    flipped[..., 0] = (width - 1) - flipped[..., 0]
    return flipped
