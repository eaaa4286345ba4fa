"""Files of predictions that other systems made: what is understood."""

import csv
import json

import numpy as np
import pytest

from iact.errors import InputError
from iact.layouts import COFW
from iact.predictions import read_predictions
from iact.predictor import PredictedFace
from iact.results import write_csv, write_json

POINTS = np.random.default_rng(0).uniform(0, 200, (3, 29, 2)).round(2)
NAMES = ["a/1.jpg", "a/image_092 _01.jpg", "b/1.png"]


def write_rows(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def as_list(path, name="image", points="landmarks", **more):
    faces = [{name: one, points: landmarks.tolist(), **more} for one, landmarks in zip(NAMES, POINTS, strict=True)]
    path.write_text(json.dumps(faces))


def as_flat_list(path):
    path.write_text(
        json.dumps([{"path": n, "keypoints": p.ravel().tolist()} for n, p in zip(NAMES, POINTS, strict=True)])
    )


def as_names(path):
    path.write_text(json.dumps({name: points.tolist() for name, points in zip(NAMES, POINTS, strict=True)}))


def as_names_with_scores(path):
    scored = np.concatenate([POINTS, np.ones((3, 29, 1))], axis=2)
    path.write_text(
        json.dumps({name: [{"landmarks": points.tolist()}] for name, points in zip(NAMES, scored, strict=True)})
    )


def as_table(path):
    header = ["scale", "image_name", *(f"original_{i}_{axis}" for i in range(29) for axis in "xy")]  # as HRNet has it
    write_rows(path, header, [[1.5, name, *points.ravel()] for name, points in zip(NAMES, POINTS, strict=True)])


def as_arrays(path):
    np.savez(path, names=np.array(NAMES), landmarks=POINTS)


def found_faces():
    return {name: [PredictedFace(np.zeros(4), points, np.ones(29))] for name, points in zip(NAMES, POINTS, strict=True)}


FILES = {
    "list.json": as_list,
    "spiga.json": lambda path: as_list(path, "imgpath", headpose=[0.0] * 6, visible=[1.0] * 29),
    "flat.json": as_flat_list,
    "names.json": as_names,
    "scores.json": as_names_with_scores,
    "ours.json": lambda path: write_json(path, COFW, found_faces()),
    "ours.csv": lambda path: write_csv(path, COFW, found_faces()),
    "hrnet.csv": as_table,
    "arrays.npz": as_arrays,
}


@pytest.mark.parametrize("file", FILES)
def test_every_format_gives_the_same_points_and_names(file, tmp_path):
    FILES[file](tmp_path / file)
    found = read_predictions(tmp_path / file)
    np.testing.assert_array_equal(found.landmarks, POINTS)
    assert found.names == tuple(NAMES) and found.annotated is (file == "spiga.json")
    assert found.understood


def test_points_are_neither_rounded_nor_clamped(tmp_path):
    points = np.full((29, 2), -7.123456789)
    (tmp_path / "a.json").write_text(json.dumps({"x": points.tolist()}))
    assert (read_predictions(tmp_path / "a.json").landmarks == -7.123456789).all()


PAIR = "[[1, 2], [3, 4]]"


@pytest.mark.parametrize(
    "file, text, words",
    [
        ("a.json", "{", "a.json:1: not JSON"),
        ("a.json", "3", "expected a list of faces or an object of names, got 3"),
        ("a.json", "[]", "no predictions in this file"),
        ("a.json", f'[{{"landmarks": {PAIR}}}]', "face 1 of the list: expected one of name, .*, got landmarks"),
        ("a.json", '[{"image": "x"}]', "face 1 of the list: expected one of landmarks, .*, got image"),
        ("a.json", '["x"]', "face 1 of the list: expected one of name"),
        ("a.json", f'[{{"image": 3, "landmarks": {PAIR}}}]', "face 1 of the list: expected the name .*, got 3"),
        ("a.json", f'{{"x": {PAIR}, "y": [[1, 2]]}}', "'y': expected 2 landmarks as in the first face, got 1"),
        ("a.json", '{"x": [[1, 2], [3]]}', r"'x': expected landmarks \[\[x, y\], ...\]"),
        ("a.json", '{"x": "far"}', "'x': expected landmarks"),
        ("a.json", '{"x": [[1, 2], [NaN, 4]]}', "'x': landmark 1 is not a finite number"),
        ("a.json", f'{{"x": [[1, 2], [{"3" * 400}, 4]]}}', "'x': landmark 1 is not a finite number"),
        ("a.json", f'{{"x": [[[1, 2], [3, {"4" * 5000}]]]}}', "'x': landmark 1 is not a finite number"),
        ("a.json", f'{{"x": {"3" * 400}}}', r"'x': expected landmarks .*, got inf"),
        ("a.json", f'{{"x": {"[" * 300}{"]" * 300}}}', r"'x': expected landmarks \[\[x, y\], ...\]"),
        ("a.json", "[" * 100_000, "cannot be read as text .*recursion"),
        ("a.csv", "", "no predictions in this file"),
        ("a.csv", "x_0,y_0\n1,2\n", "a.csv:1: expected a header with a column name or"),
        ("a.csv", "name,x_0\na,1\n", "a.csv:1: expected columns for x and y .* see '0'"),
        ("a.csv", "name,x_0,y_0\na,1\n", "a.csv:2: expected 3 fields as in the header, got 2"),
        ("a.csv", "name,x_0,y_0\na,1,b\n", "a.csv:2: expected numbers .*'b'"),
        ("a.csv", "name,x_0,y_0\na,1,2\nb,1,inf\n", "a.csv:3: landmark 0 is not a finite number"),
        (
            "a.csv",
            "name,x_0,y_0,x0,y0,x1,y1\na,1,2,3,4,5,6\n",
            "a.csv:1: expected x .*'0' .* got 'x_0' and 'x0' .a box",
        ),
        ("a.csv", "name,x_nose,y_nose,nose_y\na,1,2,3\n", "expected y of landmark 'nose' .* 'y_nose' and 'nose_y'"),
        ("a.npz", "text", "not an .npz"),
        ("a.txt", "", "expected predictions in a file .json, .csv or .npz, got '.txt'"),
    ],
)
def test_what_cannot_be_read_is_named(file, text, words, tmp_path):
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_predictions(tmp_path / file)
    assert str(tmp_path / file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"points": POINTS[0]}, r"expected landmarks \[N, K, 2\], got float64 of shape \(29, 2\)"),
        ({"points": POINTS * np.nan}, "face 1: landmark 0 is not a finite number"),
        ({"points": POINTS, "names": np.array(["a"])}, "expected 3 names"),
        ({"points": POINTS, "names": np.array(NAMES, object)}, "not an .npz of plain arrays"),
        ({"names": np.array(NAMES)}, "expected one of landmarks"),
    ],
)
def test_arrays_that_do_not_fit_are_named(arrays, words, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=words):
        read_predictions(tmp_path / "a.npz")


def test_arrays_under_another_suffix_are_named(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, POINTS)  # what np.save would call .npy
    with pytest.raises(InputError, match="a.npz: not an .npz"):
        read_predictions(tmp_path / "a.npz")


def test_a_flipped_bit_is_either_of_no_account_or_named(tmp_path):
    """Wherever it is: in the compressed numbers, or in what the archive says of them."""
    path, refused = tmp_path / "a.npz", 0
    np.savez_compressed(path, landmarks=POINTS)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            np.testing.assert_array_equal(read_predictions(path).landmarks, POINTS)
        except InputError as error:
            assert "a.npz" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > len(whole) / 2


def test_a_picture_that_stands_twice_in_an_object_is_refused(tmp_path):
    path = tmp_path / "twice.json"
    path.write_text('{"a.jpg": [[1, 2], [3, 4]], "a.jpg": [[5, 6], [7, 8]]}')
    with pytest.raises(InputError, match="'a.jpg' stands there twice"):
        read_predictions(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="a.json: no such file"):
        read_predictions(tmp_path / "a.json")
