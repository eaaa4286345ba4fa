"""A set of one's own: drawn faces with five named landmarks, as files."""

import csv
import json
from pathlib import Path

import numpy as np

from iact.data.synthetic import draw_face
from iact.layouts import W300
from iact.plots import save_image

PLACES = {"left_eye": [36, 39], "right_eye": [42, 45], "nose": [30], "mouth_left": [48], "mouth_right": [54]}
LAYOUT = {
    "name": "five",
    "landmarks": [*PLACES],
    "mirror": [["left_eye", "right_eye"], ["mouth_left", "mouth_right"]],
    "normaliser": ["left_eye", "right_eye"],
    "edges": [["left_eye", "nose", "right_eye"], ["mouth_left", "mouth_right"]],
    "box_in_face": [0.0, -0.08, 0.48],
}
HEADER = ["image", *(f"{name}_{axis}" for name in PLACES for axis in "xy")]


def points_of(landmarks: np.ndarray) -> np.ndarray:
    """The five landmarks [5, 2] of the 68 [68, 2]: the middles of the eyes, and three as they are."""
    return np.stack([landmarks[place].mean(axis=0) for place in PLACES.values()])


def write_table(path: Path, rows: list[list], header: list[str] = HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_layout(root: Path, **changes) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "layout.json").write_text(json.dumps({**LAYOUT, **changes}))


def draw_set(root: Path, **splits: int) -> Path:
    """A folder with that many drawn faces in each split."""
    write_layout(root)
    for split, count in splits.items():
        rows = []
        for index in range(count):
            image, landmarks, _ = draw_face(0, index, W300, 128, split)
            save_image(root / "pictures" / f"{split} {index}.png", image)
            rows.append([f"pictures/{split} {index}.png", *points_of(landmarks).ravel().tolist()])
        write_table(root / f"{split}.csv", rows)
    return root
