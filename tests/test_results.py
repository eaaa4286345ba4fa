"""Files of predictions, read back."""

import csv
import json

import numpy as np
import pytest

from iact.data.w300 import read_pts
from iact.errors import InputError
from iact.layouts import COFW, W300
from iact.predictor import PredictedFace
from iact.results import write_csv, write_json, write_pts


def face(seed: int, count: int = 68) -> PredictedFace:
    random = np.random.default_rng(seed)
    landmarks, scores = random.uniform(-20, 900, (count, 2)), random.uniform(0, 1, count).astype(np.float32)
    return PredictedFace(random.uniform(0, 900, 4), landmarks, scores)


FOUND = {"one.jpg": [face(0), face(1)], "none.jpg": [], 'below/"zwei", ü.png': [face(2)]}


def test_json_holds_every_picture_and_what_was_left_out(tmp_path):
    write_json(tmp_path / "a.json", W300, FOUND, ["broken.jpg: not a picture"])
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["layout"] == "300w" and written["left_out"] == ["broken.jpg: not a picture"]
    assert {name: len(faces) for name, faces in written["pictures"].items()} == {
        name: len(faces) for name, faces in FOUND.items()
    }
    read, given = written["pictures"]["one.jpg"][1], FOUND["one.jpg"][1]
    assert set(read) == {"box", "landmarks", "scores"}
    np.testing.assert_allclose(read["landmarks"], given.landmarks, rtol=0, atol=5.1e-4)
    np.testing.assert_allclose(read["box"], given.box, rtol=0, atol=5.1e-3)
    np.testing.assert_allclose(read["scores"], given.scores, rtol=0, atol=5.1e-5)
    assert all(len(repr(score)) <= 6 for score in read["scores"])  # rounded in double precision


def test_csv_has_a_row_for_each_face(tmp_path):
    write_csv(tmp_path / "a.csv", W300, FOUND)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["face"]) for row in rows] == [
        ("one.jpg", "0"),
        ("one.jpg", "1"),
        ('below/"zwei", ü.png', "0"),
    ]
    first = ["name", "face", "box_x0", "box_y0", "box_x1", "box_y1", "x_0", "y_0", "x_1"]
    assert list(rows[0])[: len(first)] == first and len(rows[0]) == 6 + 3 * 68
    for row, given in zip(rows, (*FOUND["one.jpg"], *FOUND['below/"zwei", ü.png']), strict=True):
        points = [[float(row[f"{axis}_{index}"]) for axis in "xy"] for index in range(68)]
        np.testing.assert_allclose(points, given.landmarks, rtol=0, atol=5.1e-4)
        np.testing.assert_allclose([float(row[f"score_{index}"]) for index in range(68)], given.scores, atol=5.1e-5)


def test_a_csv_without_faces_is_its_header(tmp_path):
    write_csv(tmp_path / "a.csv", COFW, {"none.jpg": []})
    assert (tmp_path / "a.csv").read_text().count("\n") == 1


def test_names_that_are_not_utf_8_are_written_as_they_are(tmp_path):
    name = b"caf\xe9.jpg"
    found = {name.decode(errors="surrogateescape"): [face(0)]}
    write_csv(tmp_path / "a.csv", W300, found)
    write_json(tmp_path / "a.json", W300, found)
    assert b"\n" + name + b",0," in (tmp_path / "a.csv").read_bytes()
    assert list(json.loads((tmp_path / "a.json").read_text())["pictures"]) == list(found)


def test_pts_files_are_read_back_by_the_reader_of_300w(tmp_path):
    faces = [face(0), face(1)]
    write_pts(tmp_path, "below/one.jpg", faces)
    assert sorted(path.name for path in (tmp_path / "below").iterdir()) == ["one.jpg_0.pts", "one.jpg_1.pts"]
    for index, given in enumerate(faces):
        read = read_pts(tmp_path / "below" / f"one.jpg_{index}.pts")
        np.testing.assert_allclose(read, given.landmarks, rtol=0, atol=5.1e-4)


def test_pts_files_count_pixels_from_1_and_may_hold_other_numbers_of_points(tmp_path):
    landmarks = np.zeros((29, 2)) + [0, 2.5]
    write_pts(tmp_path, "a", [PredictedFace(np.zeros(4), landmarks, np.zeros(29))])
    lines = (tmp_path / "a_0.pts").read_text().splitlines()
    assert lines[:4] == ["version: 1", "n_points: 29", "{", "1.000 3.500"] and lines[-1] == "}" and len(lines) == 33


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for write in (
        lambda path: write_json(path / "a.json", W300, FOUND),
        lambda path: write_csv(path / "a.csv", W300, FOUND),
        lambda path: write_pts(path, "a", FOUND["one.jpg"]),
    ):
        with pytest.raises(InputError, match="file.*cannot be written"):
            write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"
