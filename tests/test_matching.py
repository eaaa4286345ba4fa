"""Which face a prediction of a file is given to."""

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

POINTS = np.random.default_rng(0).uniform(0, 200, (3, 29, 2)).round(2)
NAMES = ["a/1.jpg", "a/image_092 _01.jpg", "b/1.png"]


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
