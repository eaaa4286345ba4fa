"""What one drawn picture holds, decided before anything is drawn: the face, its place and colours, what covers it."""

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from iact.data.synthetic.shape import Pose, Traits, face_points, layout_weights, project, random_pose, random_traits
from iact.geometry import landmark_box
from iact.layouts import Layout

Colour = tuple[float, ...]  # RGB, 0 to 255

_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 25)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 25)[:-1])], axis=1)
_HAIR = ((28, 24, 22), (58, 40, 28), (96, 64, 38), (150, 112, 66), (205, 172, 118), (130, 62, 34), (150, 148, 146))


@dataclass(frozen=True, eq=False)
class Cover:
    """A closed outline [N, 2] in image px over the face.

    `kind` is hair, lens, dark lens or object; a lens hides nothing."""

    kind: str
    outline: np.ndarray
    colour: Colour


@dataclass(frozen=True, eq=False)
class Scene:
    """A face in a picture of `size` px.

    `points` [137, 2] are image px, rows as in `shape`; `unit` is the length of a face unit in px; `axes` [2, 2] are the
    directions right and down of the face, one unit long, in px."""

    size: int
    points: np.ndarray
    landmarks: np.ndarray
    visible: np.ndarray
    unit: float
    axes: np.ndarray
    pose: Pose
    traits: Traits
    skin: Colour
    hair: Colour
    covers: tuple[Cover, ...] = ()

    def place(self, centre: np.ndarray, offsets) -> np.ndarray:
        """Image px of offsets [..., 2] in units right and down of a place in the picture."""
        return centre + np.asarray(offsets, np.float64) @ self.axes


def random_scene(rng: np.random.Generator, layout: Layout, size: int, margin: float) -> Scene:
    """The scene that `rng` draws: a face turned, placed and covered at random, its landmarks in `layout`.

    The picture is about `margin` times as wide as the larger side of the landmark box."""
    traits, pose, weights = random_traits(rng), random_pose(rng), _weights(layout)
    flat, hidden = project(face_points(traits) + rng.normal(0, 0.006, (137, 3)), pose)
    box = landmark_box(weights @ flat[:100])
    unit = size / margin / (box[2:] - box[:2]).max() * np.exp(np.clip(rng.normal(0, 0.09), -0.25, 0.25))
    centre = (size - 1) / 2 + rng.normal(0, 0.03 * size, 2).clip(-0.08 * size, 0.08 * size)
    points = (flat - (box[:2] + box[2:]) / 2) * unit + centre
    landmarks, behind_nose = weights @ points[:100], weights @ hidden[:100] > 0.5
    right = unit * np.array([np.cos(pose.roll), np.sin(pose.roll)])
    axes, colours = np.array([right, [-right[1], right[0]]]), (_random_skin(rng), _random_hair(rng))
    scene = Scene(size, points, landmarks, ~behind_nose, unit, axes, pose, traits, *colours)
    covers = (*_front_hair(rng, scene), *_glasses(rng, scene), *_objects(rng, scene))
    return replace(scene, covers=covers, visible=~behind_nose & ~_covered(landmarks, covers))


@lru_cache(maxsize=8)
def _weights(layout: Layout) -> np.ndarray:
    return layout_weights(layout)


def _covered(landmarks: np.ndarray, covers: tuple[Cover, ...]) -> np.ndarray:
    """True [K] for landmarks inside an opaque outline or within a pixel of it, found without drawing."""
    covered = np.zeros(len(landmarks), bool)
    for cover in covers:
        outline = cover.outline.astype(np.float32)
        near = ((landmarks > outline.min(0) - 1) & (landmarks < outline.max(0) + 1)).all(1)
        for index in np.flatnonzero(near & (cover.kind != "lens")):
            covered[index] |= cv2.pointPolygonTest(outline, landmarks[index].tolist(), True) > -1
    return covered


def random_colour(rng: np.random.Generator) -> Colour:
    """A colour of moderate saturation: photographs are greyer than crayons."""
    return tuple((rng.uniform(15, 235) + rng.normal(0, 26, 3)).clip(0, 255).tolist())


def _random_skin(rng: np.random.Generator) -> Colour:
    tone = rng.uniform(0.25, 0.95)
    colour = np.array([0.98 * tone**0.75, 0.79 * tone, 0.67 * tone**1.2]) + rng.normal(0, 0.02, 3)
    return tuple((255 * colour).clip(8, 255).tolist())


def _random_hair(rng: np.random.Generator) -> Colour:
    shade = np.array(_HAIR[rng.integers(len(_HAIR))]) * rng.uniform(0.7, 1.2)
    return tuple((shade + rng.normal(0, 5, 3)).clip(0, 255).tolist())


def _front_hair(rng: np.random.Generator, scene: Scene) -> list[Cover]:
    """A strip over the forehead with a jagged lower edge that may reach over the brows, for three faces in four."""
    if rng.random() >= 0.75:
        return []
    points, across = scene.points, np.linspace(0, 1, 15)[:, None]
    outline = points[np.r_[0, 112:99:-1, 32]]  # left temple, over the top, right temple
    temples = scene.place(points[[0, 32]], [0, -0.18])
    brow_line = temples[0] + (temples[1] - temples[0]) * across
    reach = rng.uniform(0.25, 0.85) + rng.normal(0, 0.07, (15, 1)) + rng.normal(0, 0.25) * (across - 0.5)
    edge = outline + (brow_line - outline) * reach.clip(0.12, 1.2)
    crown = points[51] + (outline - points[51]) * 1.07
    return [Cover("hair", np.concatenate([crown, edge[::-1]]), scene.hair)]


def _glasses(rng: np.random.Generator, scene: Scene) -> list[Cover]:
    """Two lenses for one face in five; a quarter of them dark."""
    if rng.random() >= 0.2:
        return []
    kind = "dark lens" if rng.random() < 0.25 else "lens"
    colour = tuple((rng.uniform(10, 90) + rng.normal(0, 12, 3)).clip(0, 255).tolist())
    half = np.array([rng.uniform(0.19, 0.235), rng.uniform(0.13, 0.18)])
    corner = rng.uniform(0.5, 1.0)  # 1 is an ellipse, less is squarer
    ring = np.sign(_CIRCLE) * np.abs(_CIRCLE) ** corner * half
    eyes = (scene.points[60:68].mean(0), scene.points[68:76].mean(0))
    foreshortened = [
        np.linalg.norm(scene.points[a] - scene.points[b]) / scene.unit / 0.3 for a, b in ((60, 64), (68, 72))
    ]
    return [
        Cover(kind, scene.place(eye, ring * (np.clip(width, 0.4, 1), 1) + (0, 0.02)), colour)
        for eye, width in zip(eyes, foreshortened, strict=True)
    ]


def _objects(rng: np.random.Generator, scene: Scene) -> list[Cover]:
    """A blob, a polygon, a bar or a hand before the face, for one picture in three."""
    if rng.random() >= 0.35:
        return []
    centre = scene.points[rng.integers(0, 98)] + rng.normal(0, 0.1 * scene.unit, 2)
    radius, angle, kind = rng.uniform(0.12, 0.32), rng.uniform(0, 2 * np.pi), rng.integers(4)
    colour = random_colour(rng)
    if kind == 0:
        shape = _CIRCLE[::2] * (1 + rng.normal(0, 0.16, (12, 1)))
    elif kind == 1:
        shape = _CIRCLE[:: int(rng.integers(4, 7))]
    elif kind == 2:
        shape = np.array([[-6, -0.4], [6, -0.4], [6, 0.4], [-6, 0.4]]) * (0.6, rng.uniform(0.6, 1.4))
    else:
        shape, radius, colour = _HAND, rng.uniform(0.22, 0.34), tuple(0.93 * value for value in scene.skin)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [Cover("object", scene.place(centre, radius * shape @ turn), colour)]


# Wrist, palm, four fingers and a thumb.
_HAND = np.array(
    [(-0.6, 3.2), (-0.7, 0.9), (-1.5, 0.1), (-1.3, -0.2), (-0.7, 0.2), (-0.72, -1.35), (-0.45, -1.4), (-0.36, -0.3)]
    + [(-0.3, -1.75), (0.0, -1.75), (0.02, -0.3), (0.1, -1.65), (0.38, -1.6), (0.36, -0.25), (0.5, -1.2), (0.75, -1.1)]
    + [(0.75, 0.7), (0.6, 3.2)]
)
