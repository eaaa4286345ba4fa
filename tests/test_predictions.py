"""Files of predictions that other systems made: what is understood, and which face a prediction is given to."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iact.data.faces import Face, Faces, ImageFile
from iact.errors import InputError
from iact.layouts import COFW, W300, WFLW
from iact.matching import doubt_first_pixel, match_predictions
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


def faces_of(*names, landmarks=POINTS, layout=COFW):
    """Faces of pictures below a folder, named as 300W names them."""
    records = [
        Face(name.rpartition(".")[0], ImageFile(Path("/data") / name), points, name)
        for name, points in zip(names, landmarks, strict=True)
    ]
    return Faces(layout, "test", tuple(records))


def matched(tmp_path, given: dict, faces):
    path = tmp_path / "given.json"
    path.write_text(json.dumps({name: np.asarray(points).tolist() for name, points in given.items()}))
    return match_predictions(read_predictions(path), faces, path)


def test_order_suffix_folder_and_spaces_do_not_matter(tmp_path):
    faces = faces_of("helen/testset/1.jpg", "ibug/image_092 _01.jpg", "lfpw/testset/2.png")
    given = {
        "300W/lfpw/testset/2.jpg": POINTS[2],
        "C:\\300W\\ibug\\image_092 _01.png": POINTS[1],
        "helen/testset/1": POINTS[0],
        "afw/other.jpg": POINTS[0],
    }
    found = matched(tmp_path, given, faces)
    np.testing.assert_array_equal(found.landmarks, POINTS)
    assert found.found.all() and found.notes == ("1 predictions for other pictures",)


def test_the_end_of_the_path_decides(tmp_path):
    faces = faces_of("a/1.jpg", "b/1.jpg", "b/2.jpg")
    found = matched(tmp_path, {"test/b/1.jpg": POINTS[1], "2.jpg": POINTS[2]}, faces)
    assert found.found.tolist() == [False, True, True] and (found.landmarks[1] == POINTS[1]).all()
    with pytest.raises(InputError, match="'1.jpg' fits several pictures: .*a/1.jpg, .*b/1.jpg"):
        matched(tmp_path, {"1.jpg": POINTS[0]}, faces)


def test_a_flat_folder_of_pictures_will_do(tmp_path):
    given = {f"images/{number}.jpg": points for number, points in enumerate(POINTS)}
    found = matched(tmp_path, given, faces_of("a/0.jpg", "b/1.jpg", "c/d/2.jpg"))
    np.testing.assert_array_equal(found.landmarks, POINTS)
    assert found.notes == ("3 matched by the names of their files alone, whatever their folders",)


def test_the_suffix_tells_pictures_of_one_name_apart(tmp_path):
    faces = faces_of("a/1.jpg", "a/1.png", "a/2.jpg")
    records = tuple(replace(face, name=f"{face.image.path.name}:{line}") for line, face in enumerate(faces.records))
    faces = replace(faces, records=records)
    found = matched(tmp_path, {"a/1.png": POINTS[0], "a/1.jpg": POINTS[1]}, faces)
    np.testing.assert_array_equal(found.landmarks[:2], [POINTS[1], POINTS[0]])
    assert matched(tmp_path, {"a/1.png": POINTS[0]}, faces).found.tolist() == [False, True, False]
    with pytest.raises(InputError, match="'w/a/1' fits several pictures: data/a/1.jpg, data/a/1.png"):
        matched(tmp_path, {"w/a/1": POINTS[0]}, faces)


@pytest.mark.parametrize("turned", [False, True])
def test_pictures_of_the_same_name_in_another_folder_are_others(tmp_path, turned):
    faces = faces_of("lfpw/testset/1.png", "lfpw/testset/2.png", "ibug/3.jpg")
    given = [("lfpw/testset/1.png", POINTS[0]), ("lfpw/trainset/1.png", POINTS[1]), ("lfpw/trainset/2.png", POINTS[2])]
    for name in ("{}", "/data/{}", "300W/{}"):  # those of the faces, and of their pictures
        names = {name.format(path): points for path, points in (given[::-1] if turned else given)}
        found = matched(tmp_path, names, faces)
        assert found.found.tolist() == [True, False, False] and (found.landmarks[0] == POINTS[0]).all()
        assert found.notes == ("2 predictions for other pictures",)


def test_two_names_that_fit_a_picture_equally_are_refused(tmp_path):
    with pytest.raises(InputError, match="'x/1.jpg' and 'y/1.jpg' both fit the picture data/a/1.jpg"):
        matched(tmp_path, {"x/1.jpg": POINTS[0], "y/1.jpg": POINTS[1]}, faces_of("a/1.jpg", "b/2.jpg", "c/3.jpg"))


def test_several_faces_of_a_picture_are_told_apart_by_where_they_are(tmp_path):
    truth = np.stack([POINTS[0], POINTS[0] + 300, POINTS[0] + 900])
    records = [Face(f"a/1.jpg:{i}", ImageFile(Path("/w/a/1.jpg")), points, "") for i, points in enumerate(truth, 1)]
    faces = Faces(COFW, "test", tuple(records))
    found = matched(tmp_path, {"a/1.jpg": [p.tolist() for p in (truth[2] + 4, truth[0] - 3)]}, faces)
    assert found.found.tolist() == [True, False, True]
    np.testing.assert_allclose(found.landmarks[[0, 2]], [truth[0] - 3, truth[2] + 4])
    assert found.notes == ("faces matched to the nearest in 1 pictures with several",)
    by_name = matched(tmp_path, {f"a/1.jpg:{i}": truth[3 - i] for i in (1, 2, 3)}, faces)
    np.testing.assert_array_equal(by_name.landmarks, truth[::-1])  # its own name wins over where it is


def test_without_names_the_order_is_that_of_the_split(tmp_path):
    faces = faces_of(*NAMES)
    np.savez(tmp_path / "a.npz", pred=POINTS)
    given = read_predictions(tmp_path / "a.npz")
    np.testing.assert_array_equal(match_predictions(given, faces, tmp_path / "a.npz").landmarks, POINTS)
    with pytest.raises(InputError, match="expected names, or 2 faces, got 3"):
        match_predictions(given, faces_of(*NAMES[:2], landmarks=POINTS[:2]), tmp_path / "a.npz")


def test_other_faces_and_other_landmarks_are_refused(tmp_path):
    with pytest.raises(InputError, match="no name fits a face of the split .the first is 'z'"):
        matched(tmp_path, {"z": POINTS[0]}, faces_of(*NAMES))
    wrong = faces_of("a", landmarks=np.ones((1, 98, 2)), layout=WFLW)
    with pytest.raises(InputError, match="expected 98 landmarks a face, got 29"):
        matched(tmp_path, {"a": POINTS[0]}, wrong)


def test_points_that_count_from_1_are_doubted():
    generator = np.random.default_rng(0)
    truth = generator.uniform(0, 250, (60, 68, 2))
    predicted = truth + generator.normal(0, 4, truth.shape)
    assert doubt_first_pixel(predicted, truth, 0) == doubt_first_pixel(predicted + 1, truth, 1) == ""
    assert "--first-pixel 1" in doubt_first_pixel(predicted + 1, truth, 0)
    assert "--first-pixel 0" in doubt_first_pixel(predicted, truth, 1)
    assert doubt_first_pixel(predicted[:9] + 1, truth[:9], 0) == ""  # too few to tell


def test_spigas_results_for_300w_are_measured_from_the_first_pixel_of_the_pts_files(tmp_path):
    from iact.commands.evaluating import score
    from iact.plots import save_image

    points = np.random.default_rng(0).uniform(10, 90, (68, 2)).round(3)
    folder = tmp_path / "ibug"
    save_image(folder / "image_092 _01.jpg", np.zeros((100, 100, 3), np.uint8))
    text = "\n".join(f"{x} {y}" for x, y in points)
    (folder / "image_092 _01.pts").write_text(f"version: 1\nn_points: 68\n{{\n{text}\n}}\n")
    for key, first in (("imgpath", 1), ("image", 0)):
        file = tmp_path / f"{key}.json"
        file.write_text(json.dumps([{key: "images/test/image_092 _01.jpg", "landmarks": points.tolist()}]))
        report = score(file, "300w", tmp_path, "ibug")
        assert (report.results["nme_box"] < 1e-6) is (first == 1)
        assert f"first pixel at {first}" in report.protocol.weights and report.layout is W300
        assert score(file, "300w", tmp_path, "ibug", first_pixel=1).results["nme_interocular"] < 1e-6
