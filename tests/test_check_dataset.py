"""The dataset checker: each kind of problem is found and told, a sound data set has none, and the exit codes."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from iact.commands import check
from iact.data import wflw
from iact.data.check import check_dataset, find_small_eye_distances, measure_asymmetry
from iact.data.faces import Face, ImageFile
from iact.errors import InputError
from iact.layouts import W300, WFLW, flip_landmarks

ROOT = Path(__file__).resolve().parents[1]
SIDE = 160


def symmetric_shape():
    """98 points in a picture SIDE wide that are their own mirror image, the outer eye corners 80 px apart."""
    points = np.random.default_rng(0).uniform(40, 120, (98, 2))
    points[60], points[72] = (40, 70), (119, 70)
    return (points + flip_landmarks(points, WFLW, SIDE)) / 2


def write_list(root, split, faces):
    """A WFLW list of faces, each (picture, landmarks)."""
    folder = root / wflw.LISTS
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        " ".join([*(f"{value:.3f}" for value in landmarks.ravel()), "20", "20", "140", "140", *"000000", picture])
        for picture, landmarks in faces
    ]
    (folder / f"list_98pt_rect_attr_{split}.txt").write_text("\n".join(lines) + "\n")


def write_picture(root, name, seed):
    path = root / wflw.IMAGES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A sound WFLW of six training and two test faces, which are taken for the official numbers."""
    monkeypatch.setitem(wflw.SPLITS, "train", 6)
    monkeypatch.setitem(wflw.SPLITS, "test", 2)
    for index in range(8):
        write_picture(tmp_path, f"{index}.png", index)
    shape = symmetric_shape()
    write_list(tmp_path, "train", [(f"{index}.png", shape) for index in range(6)])
    write_list(tmp_path, "test", [(f"{index}.png", shape) for index in (6, 7)])
    return tmp_path


def run_check(root):
    output = io.StringIO()
    report = check_dataset("wflw", root, root / "sheet.png", Console(file=output, width=200))
    return report, output.getvalue()


def test_sound_data_set(root):
    report, text = run_check(root)
    assert report.problems == {}
    assert report.counts == {"train": 6, "test": 2, **dict.fromkeys(wflw.ATTRIBUTES, 0)}
    assert "no problems" in text and "0.00 % of all, on 0 of 8 faces" in text
    sheet = cv2.imread(str(root / "sheet.png"))
    assert sheet.shape == (192, 8 * 192, 3)
    greenish = (sheet[..., 1].astype(int) - sheet[..., [0, 2]].max(axis=2)) > 100
    assert greenish.reshape(192, 8, 192).any(axis=(0, 2)).all()  # landmarks on every face


def test_counts_and_missing_list(root, monkeypatch):
    monkeypatch.setitem(wflw.SPLITS, "train", 7500)
    (root / wflw.LISTS / "list_98pt_rect_attr_test.txt").unlink()
    report, text = run_check(root)
    assert report.problems["other count than the official one"] == ["train: 6 of 7500 faces"]
    assert "list_98pt_rect_attr_test.txt: no such file" in report.problems["split that cannot be read"][0]
    assert report.counts["test"] is None and "2 problems" in text


def test_missing_and_corrupt_pictures_are_all_listed(root):
    pictures = root / wflw.IMAGES
    (pictures / "1.png").unlink()
    (pictures / "2.png").write_bytes(b"")
    (pictures / "6.png").write_bytes(b"no picture")
    report, text = run_check(root)
    assert list(report.problems) == ["unreadable picture"]
    assert [sentence.split(": ")[0][-5:] for sentence in report.problems["unreadable picture"]] == [
        "1.png",
        "2.png",
        "6.png",
    ]
    assert cv2.imread(str(root / "sheet.png")).shape == (192, 5 * 192, 3)


def test_points_outside(root):
    shape = symmetric_shape()
    slightly = shape.copy()
    slightly[0] = (-0.6, 50)
    faces = [shape + [200, 0], slightly, shape, shape, shape, shape]
    write_list(root, "train", [(f"{index}.png", landmarks) for index, landmarks in enumerate(faces)])
    report, text = run_check(root)
    assert list(report.problems) == ["face outside its picture"]
    assert (
        "list_98pt_rect_attr_train.txt:1: 98 of 98 points lie outside" in report.problems["face outside its picture"][0]
    )
    assert f"{100 * 99 / (8 * 98):.2f} % of all, on 2 of 8 faces" in text


@pytest.mark.parametrize(
    "place, far", [((80, 2 * SIDE + 1), True), ((-SIDE - 1, 80), True), ((80, 2 * SIDE - 1), False)]
)
def test_a_landmark_far_outside(root, place, far):
    astray = symmetric_shape()
    astray[51] = place
    write_list(root, "test", [("6.png", symmetric_shape()), ("7.png", astray)])
    report, _ = run_check(root)
    assert ("landmark far outside its picture" in report.problems) == far


def test_duplicates_within_a_picture_and_across_files(root):
    shape = symmetric_shape()
    write_picture(root, "copy.png", 0)  # the pixels of 0.png under another name
    faces = [("0.png", shape), ("0.png", shape + 0.5), ("0.png", shape + [30, 0]), ("copy.png", shape)]
    write_list(root, "train", [*faces, ("1.png", shape), ("2.png", shape)])
    report, _ = run_check(root)
    assert list(report.problems) == ["duplicated face"]
    found = [sentence.replace(str(root / wflw.LISTS), "") for sentence in report.problems["duplicated face"]]
    name = "/list_98pt_rect_attr_train.txt"
    assert found == [f"{name}:2 is {name}:1 again", f"{name}:4 is {name}:1 again"]


def test_picture_in_train_and_test(root):
    write_picture(root, "7.png", 3)
    write_list(root, "test", [("6.png", symmetric_shape()), ("7.png", symmetric_shape() + [35, 0])])
    report, _ = run_check(root)
    assert list(report.problems) == ["picture in two splits"]
    (sentence,) = report.problems["picture in two splits"]
    assert sentence.startswith("train and test: ") and "3.png is " in sentence and sentence.endswith("7.png")


def test_eye_corners_that_meet():
    shape = symmetric_shape()
    profile = shape.copy()
    profile[72] = profile[60] + [2, 0]
    faces = [Face(f"{i}", ImageFile(Path("a")), points, f"list:{i}") for i, points in enumerate((shape, profile))]
    assert find_small_eye_distances(faces, WFLW) == ["list:1: the outer corners are 2.00 px apart"]
    point = Face("point", ImageFile(Path("a")), np.ones((98, 2)), "list:2")
    assert find_small_eye_distances([point], WFLW) == ["list:2: the outer corners are 0.00 px apart"]
    assert measure_asymmetry([point], WFLW).max() == 0


def test_asymmetry_is_measured_in_percent_of_inter_ocular_distance():
    shape = symmetric_shape()
    angle = np.deg2rad(20)
    turned = 3 * shape @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + [50, -7]
    face = Face("a", ImageFile(Path("a")), turned, "list:1")
    np.testing.assert_allclose(measure_asymmetry([face], WFLW), 0, atol=1e-9)
    shape[54, 0] += 4  # the tip of the nose mirrors itself: 4 px to the side are 8 px between it and its mirror image
    moved = Face("b", ImageFile(Path("a")), shape, "list:1")
    distance = np.linalg.norm(shape[60] - shape[72])
    assert measure_asymmetry([moved], WFLW)[54] == pytest.approx(100 * 8 / distance)


def test_wrong_mirror_pairs_are_a_problem(root, monkeypatch):
    mirror = list(WFLW.mirror)
    mirror[60] = 60  # the outer corner of one eye
    monkeypatch.setattr(wflw, "WFLW", replace(WFLW, mirror=tuple(mirror)))
    report, _ = run_check(root)
    assert report.problems["layout"] == ["wflw: mirroring twice does not give back every landmark"]
    assert "of inter-ocular distance, at most" in report.problems["asymmetry"][0]


def test_real_shapes_are_symmetric_and_wrong_pairs_show(real_data):
    faces = [*wflw.read_wflw(real_data / "wflw", "train").records]
    mirror = list(WFLW.mirror)
    mirror[60], mirror[72] = 60, 72
    assert measure_asymmetry(faces, replace(WFLW, mirror=tuple(mirror)))[60] > 90
    assert measure_asymmetry(faces, WFLW)[60] < 1e-6


def test_real_300w_has_no_problem_but_what_is_left_out(real_data, tmp_path):
    report = check_dataset("300w", real_data / "300w", tmp_path / "sheet.png", Console(file=io.StringIO()))
    assert set(report.problems) == {"other count than the official one", "split that cannot be read"}
    assert (report.counts["train"], report.counts["common"], report.counts["ibug"]) == (2012, 330, None)
    asymmetry = measure_asymmetry([*_faces_300w(real_data)], W300)
    assert asymmetry.mean() < 1 and asymmetry.max() < 2
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (6 * 192, 8 * 192, 3)


def _faces_300w(real_data):
    from iact.data.w300 import read_w300

    return read_w300(real_data / "300w", "train").records


def test_bad_input_is_refused_before_any_work(root):
    console = Console(file=io.StringIO())
    with pytest.raises(InputError, match="unknown data set 'lapa': expected one of 300w, wflw, cofw"):
        check_dataset("lapa", root, root / "sheet.png", console)
    with pytest.raises(InputError, match="nowhere/sheet.png: no such folder"):
        check_dataset("wflw", root, root / "nowhere/sheet.png", console)
    with pytest.raises(InputError, match="expected the contact sheet to be a .png file, got '.txt'"):
        check_dataset("wflw", root, root / "sheet.txt", console)
    picture = root / wflw.IMAGES / "1.png"
    before = picture.read_bytes()
    with pytest.raises(InputError, match="1.png: expected a new file for the contact sheet, got a picture"):
        check_dataset("wflw", root, root / "." / wflw.IMAGES / "1.png", console)
    assert picture.read_bytes() == before
    with pytest.raises(InputError, match="no such folder"):
        check_dataset("cofw", root / "nowhere", root / "sheet.png", console)


def test_exit_code_follows_the_problems(root):
    assert check("wflw", root, root / "sheet.png") == 0
    (root / wflw.IMAGES / "1.png").unlink()
    assert check("wflw", root, root / "sheet.png") == 1


def run_script(*arguments):
    command = [sys.executable, str(ROOT / "scripts/check_dataset.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_script_with_problems_ends_with_1(root):
    done = run_script("--data", "wflw", "--root", root, "--sheet", root / "sheet.png")
    assert done.returncode == 1, done.stderr  # not the official 7500 faces in a process of its own
    assert "train: 6 of 7500 faces" in done.stdout and (root / "sheet.png").is_file()


def test_script_with_bad_input_ends_with_2(tmp_path):
    done = run_script("--data", "300w", "--root", tmp_path / "nowhere", "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 2
    assert f"{tmp_path / 'nowhere'}: no such folder" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "sheet.png").exists()
