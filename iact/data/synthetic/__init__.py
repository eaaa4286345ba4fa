"""Drawn faces: training data without a licence, exact landmarks, any number of them.

A face is a parametric 3-D shape (`shape`), placed and covered at random (`scene`), then drawn (`drawing`, `light`).
Everything follows from (seed, split, index): face i is the same in every process, and its picture with every OpenCV
that draws alike."""

from dataclasses import dataclass

import numpy as np

from iact.data.faces import Face, Faces
from iact.data.synthetic.drawing import draw
from iact.data.synthetic.scene import Scene, random_scene
from iact.errors import InputError
from iact.layouts import Layout, find_layout

MARGIN = 2.05  # side of the picture over the larger side of the landmark box: room for a 1.25 crop, turned and shifted
_SPLITS = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class DrawnImage:
    """A picture that is drawn when it is read; the same fields give the same picture."""

    seed: int
    index: int
    layout: str
    size: int = 256
    split: str = "train"
    margin: float = MARGIN

    def __post_init__(self) -> None:
        if self.split not in _SPLITS:
            raise InputError(f"unknown split {self.split!r} of drawn faces: expected one of {', '.join(_SPLITS)}")
        for name, least in (("seed", 0), ("index", 0), ("size", 32), ("margin", 1)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name}: expected at least {least} for drawn faces, got {getattr(self, name)}")

    def read(self) -> np.ndarray:
        """RGB uint8 [size, size, 3]."""
        return draw(*self._scene())

    def scene(self) -> Scene:
        """The shape, landmarks and covers of the picture, without drawing it."""
        return self._scene()[1]

    def _scene(self) -> tuple[np.random.Generator, Scene]:
        rng = np.random.default_rng([self.seed, _SPLITS[self.split], self.index])
        return rng, random_scene(rng, find_layout(self.layout), self.size, self.margin)

    def __str__(self) -> str:
        return f"drawn face {self.index} of {self.split}, seed {self.seed}"


def draw_face(
    seed: int, index: int, layout: Layout, size: int = 256, split: str = "train", margin: float = MARGIN
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One drawn face: RGB uint8 [size, size, 3], landmarks float64 [K, 2] in image px, visible bool [K].

    The picture is `margin` times as wide as the larger side of the landmark box, give or take a tenth.
    InputError for an unknown split or a number out of range."""
    rng, scene = DrawnImage(seed, index, layout.name, size, split, margin)._scene()
    return draw(rng, scene), scene.landmarks, scene.visible


def synthetic_faces(
    layout: Layout, count: int, seed: int = 0, size: int = 256, split: str = "train", margin: float = MARGIN
) -> Faces:
    """The first `count` drawn faces of a split, pictures drawn when they are read; splits share no face.

    InputError for an unknown split or a number out of range."""
    if count < 1:
        raise InputError(f"count: expected at least 1 drawn face, got {count}")
    images = (DrawnImage(seed, index, layout.name, size, split, margin) for index in range(count))
    return Faces(layout, split, tuple(_face(image) for image in images))


def _face(image: DrawnImage) -> Face:
    scene, name = image.scene(), f"{image.split}/{image.index:06d}"
    return Face(name, image, scene.landmarks, str(image), visible=scene.visible)
