"""A parametric 3-D face and the camera that looks at it: where every landmark of a drawn face comes from.

Unit: the distance of the outer eye corners is 1. x points right in the picture, y down, z to the viewer; the origin
lies between the eyes and the tip of the nose has z = 0. The constants follow the mean annotated faces of 300W, WFLW and
COFW."""

from typing import NamedTuple

import numpy as np

from iact.layouts import WFLW, Layout

# Rows of a face's points: the 98 of WFLW, the two sides of the nose, the forehead, and the two cheek lines.
NOSE_SIDES = slice(98, 100)
FOREHEAD = slice(100, 113)
CHEEKS = slice(113, 137)

_CENTRE = np.array([0, 0.45, -0.55])  # the point that the head turns about
_DISTANCE = 6.0  # of the camera, in units


class Traits(NamedTuple):
    """How one face differs from the neutral one, which is all zeros. Proportions are relative, the others in units."""

    jaw_width: float = 0.0
    jaw_height: float = 0.0
    jaw_squareness: float = 0.0
    forehead: float = 0.0
    eye_inner: float = 0.0
    eye_width: float = 0.0
    lids_left: float = 0.0
    lids_right: float = 0.0
    eye_tilt: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    brow_height: float = 0.0
    brow_arch: float = 0.0
    brow_tilt: float = 0.0
    brow_thickness: float = 0.0
    nose_length: float = 0.0
    nose_width: float = 0.0
    nose_base: float = 0.0
    mouth_height: float = 0.0
    mouth_width: float = 0.0
    upper_lip: float = 0.0
    lower_lip: float = 0.0
    mouth_open: float = 0.0
    smile: float = 0.0


_SPREAD = Traits(
    *(0.07, 0.06, 0.2, 0.08),
    *(0.08, 0.06, 0.3, 0.3, 0.015, 0.2, 0.008),
    *(0.045, 0.015, 0.035, 0.15),
    *(0.08, 0.12, 0.015),
    *(0.025, 0.10, 0.25, 0.25, 0.14, 0.04),
)


def random_traits(rng: np.random.Generator) -> Traits:
    """The traits of another person with another expression, normal and cut at 2.5 standard deviations."""
    drawn = Traits(*(rng.standard_normal(len(_SPREAD)).clip(-2.5, 2.5) * _SPREAD).tolist())
    right = drawn.lids_right if rng.random() < 0.3 else drawn.lids_left
    left, right = (-0.85, -0.85) if rng.random() < 0.05 else (drawn.lids_left, right)
    return drawn._replace(lids_left=left, lids_right=right, mouth_open=max(0.0, drawn.mouth_open - 0.02))


def face_points(traits: Traits) -> np.ndarray:
    """The points [137, 3] of a face looking straight at the viewer, rows as named at the top of this file."""
    points = np.empty((137, 3))
    width, height = 0.86 * (1 + traits.jaw_width), 1.24 * (1 + traits.jaw_height)
    points[0:33] = _jaw(traits, width, height)
    _place_pair(points, range(33, 42), _left_brow(traits), _left_brow(traits))
    points[51:60], points[NOSE_SIDES] = _nose(traits)
    _place_pair(points, range(60, 68), _left_eye(traits, traits.lids_left), _left_eye(traits, traits.lids_right))
    points[76:96] = _mouth(traits)
    gaze = np.array([traits.gaze_x * 0.15, traits.gaze_y, 0])
    points[96], points[97] = (points[eye].mean(0) + gaze for eye in (slice(60, 68), slice(68, 76)))
    points[FOREHEAD] = _forehead(traits, width)
    points[CHEEKS] = _cheeks(width, height, points[16, 1])
    return points


def _mirrored(left: np.ndarray) -> np.ndarray:
    return left * (-1, 1, 1)


def _place_pair(points: np.ndarray, rows: range, left: np.ndarray, right_seen_from_left: np.ndarray) -> None:
    points[list(rows)] = left
    points[[WFLW.mirror[row] for row in rows]] = _mirrored(right_seen_from_left)


def _jaw(traits: Traits, width: float, height: float) -> np.ndarray:
    """33 points from the left ear over the chin to the right ear, equally spaced as annotators place them."""
    x = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 97))
    y = (1 - np.abs(x) ** (1.85 + traits.jaw_squareness)) ** 0.5 * height
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x) * width, np.diff(y)))])
    even = np.linspace(0, length[-1], 33)
    x, y = np.interp(even, length, x), np.interp(even, length, y)
    y += 0.45 * traits.mouth_open * (1 - x**2).clip(0) ** 2
    return np.stack([width * x, y, -0.42 - 0.42 * np.abs(x) ** 1.5], axis=1)


def _left_eye(traits: Traits, lids: float) -> np.ndarray:
    """Outer corner, upper lid, inner corner, lower lid: 8 points."""
    inner, width = 0.205 * (1 + traits.eye_inner), 0.295 * (1 + traits.eye_width)
    along = np.array([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25])  # outer to inner corner, and back
    arc = np.sin(np.pi * along) ** 0.8
    opening = (1 + lids) * np.array([0, -0.065, -0.068, -0.065, 0, 0.04, 0.042, 0.04])
    y = (0.018 + traits.eye_tilt) * (along - 0.5) + opening * arc
    return np.stack([-inner - width * (1 - along), y, -0.38 + 0.08 * along + 0.04 * arc], axis=1)


def _left_brow(traits: Traits) -> np.ndarray:
    """Outer end, four points above, four below: 9 points."""
    along = np.array([0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25])
    side = np.array([0, -0.5, -0.5, -0.5, -0.45, 0.45, 0.5, 0.5, 0.5])  # above, below the middle line
    arch = (0.05 + traits.brow_arch) * np.sin(np.pi * along) ** 0.8
    middle = -0.165 - traits.brow_height - (0.015 + traits.brow_tilt) * along - arch
    y = middle + 0.08 * (1 + traits.brow_thickness) * side
    return np.stack([-0.66 + 0.52 * along, y, -0.14 - 0.30 * (1 - along) ** 1.5], axis=1)


def _nose(traits: Traits) -> tuple[np.ndarray, np.ndarray]:
    """Four points down the ridge and five along the base; and the two sides of the nose."""
    tip, width = 0.395 * (1 + traits.nose_length), 0.175 * (1 + traits.nose_width)
    ridge = np.stack([np.zeros(4), np.linspace(-0.02, tip, 4), [-0.18, -0.12, -0.06, 0]], axis=1)
    across = np.array([-1, -0.5, 0, 0.5, 1])
    base_y = tip + traits.nose_base + np.array([0.085, 0.115, 0.135, 0.115, 0.085])
    base = np.stack([width * across, base_y, [-0.2, -0.15, -0.13, -0.15, -0.2]], axis=1)
    side_y = tip + traits.nose_base + 0.045
    sides = np.array([[-1.18 * width, side_y, -0.22], [1.18 * width, side_y, -0.22]])
    return np.concatenate([ridge, base]), sides


def _mouth(traits: Traits) -> np.ndarray:
    """12 points around the lips from the left corner over the upper lip, then 8 around their inner edge."""
    x = np.array(
        [-1, -0.63, -0.24, 0, 0.24, 0.63, 1, 0.64, 0.28, 0, -0.28, -0.64, -0.94, -0.5, 0, 0.5, 0.94, 0.5, 0, -0.5]
    )
    upper, lower = np.zeros(20), np.zeros(20)
    upper[1:6] = -0.052, -0.083, -0.068, -0.083, -0.052
    lower[7:12] = 0.055, 0.095, 0.105, 0.095, 0.055
    drop = np.zeros(20)
    drop[[*range(7, 12), 17, 18, 19]] = 1
    y = 0.395 * (1 + traits.nose_length) + 0.325 + traits.mouth_height
    y = y + upper * (1 + traits.upper_lip) + lower * (1 + traits.lower_lip) - traits.smile * x**2
    y = y + traits.mouth_open * (drop * (1 - x**2) ** 0.75 + 0.25 * (1 - drop) * np.abs(x))
    half_width = 0.315 * (1 + traits.mouth_width) * (1 + 1.2 * traits.smile - 0.5 * traits.mouth_open)
    return np.stack([half_width * x, y, -0.18 - 0.14 * np.abs(x) ** 1.5], axis=1)


def _forehead(traits: Traits, width: float) -> np.ndarray:
    """13 points of the outline from the right temple over the top to the left one; no landmark lies there."""
    angle = np.linspace(0, np.pi, 15)[1:-1]
    across, up = np.cos(angle), np.sin(angle)
    y = -0.92 * (1 + traits.forehead) * up**0.9
    return np.stack([1.02 * width * across, y, -0.55 - 0.3 * across**2], axis=1)


def _cheeks(width: float, height: float, chin: float) -> np.ndarray:
    """The line from the top over temple, cheekbone and cheek to the chin, on the left and on the right.

    It is the edge of the head that is seen when the head turns away."""
    x = -np.array([0.1, 0.5, 0.68, 0.76, 0.79, 0.79, 0.75, 0.66, 0.54, 0.40, 0.22, 0.0]) * width
    y = np.array([-0.72, -0.62, -0.47, -0.3, -0.12, 0.08, 0.25, 0.42, 0.6, 0.8, 0.93, 1]) * height
    z = -np.array([0.55, 0.46, 0.42, 0.41, 0.42, 0.41, 0.40, 0.40, 0.40, 0.41, 0.42, 0.42])
    y[6:] += (chin - height) * np.linspace(0.2, 1, 6)
    left = np.stack([x, y, z], axis=1)
    return np.concatenate([left, _mirrored(left)])


class Pose(NamedTuple):
    """Angles of the head in radians; positive yaw turns the nose to the right of the picture, pitch down."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


def random_pose(rng: np.random.Generator) -> Pose:
    """Yaw of spread 18 degrees cut at 60, pitch 10 cut at 28, roll 9 cut at 30."""
    return Pose(*np.radians((rng.standard_normal(3) * (18, 10, 9)).clip((-60, -28, -30), (60, 28, 30))).tolist())


def project(points: np.ndarray, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Face points as seen under the pose: [137, 2] in units, and [137] bool, true where the nose hides the point."""
    (cy, sy), (cp, sp) = ((np.cos(angle), np.sin(angle)) for angle in (pose.yaw, pose.pitch))
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    seen = (points - _CENTRE) @ (nod @ turn).T
    flat = seen[:, :2] * (_DISTANCE / (_DISTANCE - seen[:, 2:]))
    _follow_silhouette(flat)
    hidden = _behind_nose(points, flat, 1 if pose.yaw > 0 else -1)
    cr, sr = np.cos(pose.roll), np.sin(pose.roll)
    return flat @ np.array([[cr, sr], [-sr, cr]]), hidden


def _follow_silhouette(flat: np.ndarray) -> None:
    """Moves outline points that a turned head hides out to its visible edge, where annotators put them."""
    left_cheek, right_cheek = np.split(flat[CHEEKS], 2)
    for rows, cheek, side in ((slice(0, 16), left_cheek, -1), (slice(17, 33), right_cheek, 1)):
        edge = np.interp(flat[rows, 1], cheek[:, 1], cheek[:, 0] * side)
        flat[rows, 0] = side * np.maximum(side * flat[rows, 0], edge)
    forehead = flat[FOREHEAD]  # a view: right half first
    for rows, cheek, side in ((slice(0, 6), right_cheek, 1), (slice(7, 13), left_cheek, -1)):
        edge = np.interp(forehead[rows, 1], cheek[:, 1], cheek[:, 0] * side)
        forehead[rows, 0] = side * np.maximum(side * forehead[rows, 0], edge)


def _behind_nose(points: np.ndarray, flat: np.ndarray, far: int) -> np.ndarray:
    """True for eye, brow and nose points on the far side that lie behind the ridge of the nose."""
    ridge = flat[[51, 52, 53, 54, 57]]
    ridge_x = np.interp(flat[:, 1], ridge[:, 1], ridge[:, 0] * far)
    near_nose = (flat[:, 1] > ridge[0, 1] - 0.1) & (flat[:, 1] < ridge[-1, 1])
    hidden = near_nose & (points[:, 0] * far > 0.02) & (flat[:, 0] * far < ridge_x)
    hidden[:33] = False  # the jaw follows the visible edge
    hidden[51:55] = False
    return hidden


def layout_weights(layout: Layout) -> np.ndarray:
    """The matrix [K, 100] that reads a layout's landmarks off the first 100 face points; rows sum to 1."""
    rows = _ROWS[layout.name]
    weights = np.zeros((len(rows), 100))
    for row, sources in zip(weights, rows, strict=True):
        for point, weight in sources:
            row[point] = weight
    return weights


def _between(first: int, second: int, share: float) -> tuple[tuple[int, float], ...]:
    """The place at `share` of the way from one point to another."""
    return ((first, 1 - share), (second, share))


def _same(*points: int) -> tuple:
    return tuple(((point, 1.0),) for point in points)


# 300W marks a brow by one line, a quarter below its upper edge; six points an eye, the inner lips nearer the middle.
_ROWS_300W = (
    *_same(*range(0, 33, 2)),
    *(_same(33) + tuple(_between(upper, lower, 0.25) for upper, lower in ((34, 41), (35, 40), (36, 39)))),
    *(_between(37, 38, 0.5), _between(42, 50, 0.5)),
    *(tuple(_between(upper, lower, 0.25) for upper, lower in ((43, 49), (44, 48), (45, 47))) + _same(46)),
    *_same(*range(51, 60)),
    *(_same(60) + (_between(61, 62, 1 / 3), _between(62, 63, 2 / 3)) + _same(64)),
    *(_between(65, 66, 1 / 3), _between(66, 67, 2 / 3)),
    *(_same(68) + (_between(69, 70, 1 / 3), _between(70, 71, 2 / 3)) + _same(72)),
    *(_between(73, 74, 1 / 3), _between(74, 75, 2 / 3)),
    *_same(*range(76, 88)),
    *(_between(88, 89, 0.2), _between(89, 90, 0.5), *_same(90), _between(90, 91, 0.5), _between(92, 91, 0.2)),
    *(_between(93, 94, 0.5), *_same(94), _between(94, 95, 0.5)),
)

_ROWS_COFW = (
    *(_same(33, 46) + (_between(37, 38, 0.5), _between(42, 50, 0.5))),
    *_same(35, 40, 44, 48, 60, 72, 64, 68, 62, 66, 70, 74, 96, 97),
    *_same(98, 99, 54, 57, 76, 82, 79, 90, 94, 85, 16),
)

_ROWS = {"wflw": _same(*range(98)), "300w": _ROWS_300W, "cofw": _ROWS_COFW}
