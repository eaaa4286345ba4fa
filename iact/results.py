"""Files of predictions: JSON, CSV, and 300W's `.pts`. All of them are in image px; the first pixel's centre is (0, 0)
but in `.pts`, where it is (1, 1)."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from iact.data.w300 import FIRST_PIXEL
from iact.files import write_atomically
from iact.layouts import Layout
from iact.predictor import PredictedFace

Format = Literal["json", "csv", "pts"]
Found = Mapping[str, Sequence[PredictedFace]]


def write_json(path: Path, layout: Layout, found: Found, left_out: Sequence[str] = ()) -> None:
    """{"layout": <name>, "pictures": {<name>: [<face>, ...], ...}, "left_out": [<sentence>, ...]}, where a <face> is
    {"box": [x0, y0, x1, y1], "landmarks": [[x, y], ...], "scores": [number, ...]}."""
    pictures = {name: [face_fields(face) for face in faces] for name, faces in found.items()}
    text = json.dumps({"layout": layout.name, "pictures": pictures, "left_out": list(left_out)}, indent=1)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def face_fields(face: PredictedFace) -> dict[str, list]:
    """What the files hold of a face: box [4] to 0.01 px, landmarks [K, 2] to 0.001 px and scores [K], as lists."""
    return {
        "box": face.box.round(2).tolist(),
        "landmarks": face.landmarks.round(3).tolist(),
        "scores": face.scores.astype(float).round(4).tolist(),
    }


def face_columns(layout: Layout) -> list[str]:
    """What `face_cells` are called: box_x0 ... box_y1, x and y of each landmark, their scores."""
    points = [f"{axis}_{name}" for name in layout.names for axis in "xy"]
    return ["box_x0", "box_y0", "box_x1", "box_y1", *points, *(f"score_{name}" for name in layout.names)]


def face_cells(face: PredictedFace) -> list[float]:
    """The numbers of `face_fields`, one after the other."""
    fields = face_fields(face)
    return [*fields["box"], *(number for point in fields["landmarks"] for number in point), *fields["scores"]]


def write_csv(path: Path, layout: Layout, found: Found) -> None:
    """A row for each face: name, face (its number in the picture, from 0), box_x0 ... box_y1, then x and y of each
    landmark, then their scores. A picture without a face has no row."""
    rows = [["name", "face", *face_columns(layout)]]
    rows += [[name, index, *face_cells(face)] for name, faces in found.items() for index, face in enumerate(faces)]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    data = buffer.getvalue().encode(errors="surrogateescape")  # a name need not be UTF-8
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_pts(folder: Path, name: str, faces: Sequence[PredictedFace]) -> None:
    """A file <name>_<face>.pts in the folder for each face of a picture, with its number in the picture, from 0."""
    for index, face in enumerate(faces):
        points = "".join(f"{x:.3f} {y:.3f}\n" for x, y in face.landmarks + FIRST_PIXEL)
        text = f"version: 1\nn_points: {len(face.landmarks)}\n{{\n{points}}}\n"
        path = folder / f"{name}_{index}.pts"
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text))
