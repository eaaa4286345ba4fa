"""Faces found where no boxes are given, and boxes read from files."""

import json
import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from iact import detector
from iact.data import read_faces
from iact.data.boxes import read_boxes
from iact.data.synthetic import draw_face
from iact.detector import YuNet, detect_faces
from iact.errors import InputError
from iact.geometry import landmark_box
from iact.layouts import W300


@pytest.fixture
def yunet() -> YuNet:
    """YuNet with the model file that IACT_YUNET names; the test is skipped where it is unset."""
    if "IACT_YUNET" not in os.environ:
        pytest.skip("IACT_YUNET is not set: it names the file face_detection_yunet_2023mar.onnx")
    return YuNet(os.environ["IACT_YUNET"])


def test_a_detector_s_boxes_are_shifted_and_scaled():
    boxes = np.array([[10.0, 20.0, 50.0, 60.0], [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 20.0]])
    found = detector.to_landmark_boxes(boxes, (0.1, 0.2, 0.5))
    np.testing.assert_allclose(found, [[24, 38, 44, 58], [3.5, 4.5, 8.5, 9.5], [2, 9, 12, 19]])
    assert detector.to_landmark_boxes(boxes[:0]).shape == (0, 4)


class FixedCascade:
    """Finds the same boxes (x, y, width, height) whatever it sees, and keeps the sizes of what it has seen."""

    def __init__(self, *found):
        self.found, self.sizes = found, []

    def detectMultiScale(self, grey, **_):
        self.sizes.append(grey.shape)
        return np.array(self.found)


def test_boxes_come_largest_first_without_those_inside_a_larger_one(monkeypatch):
    cascade = FixedCascade((0, 0, 30, 30), (50, 50, 40, 40), (55, 60, 20, 20), (88, 50, 30, 30))
    monkeypatch.setattr(detector, "_cascade", lambda: cascade)
    expected = [[50, 50, 90, 90], [0, 0, 30, 30], [88, 50, 118, 80]]
    np.testing.assert_array_equal(detector.haar_boxes(np.zeros((200, 200, 3), np.uint8)), expected)


def test_large_pictures_are_searched_on_a_reduced_copy(monkeypatch):
    cascade = FixedCascade((100, 50, 40, 40))
    monkeypatch.setattr(detector, "_cascade", lambda: cascade)
    (box,) = detector.haar_boxes(np.zeros((1920, 4000, 3), np.uint8))
    assert cascade.sizes == [(960, 2000)] and box.tolist() == [200, 100, 280, 180]


@pytest.mark.parametrize("scale", [1, 8])
def test_a_face_is_found_at_every_size_of_picture(scale):
    image, landmarks = draw_face(0, 0, W300)[:2]
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    side, distance = box_errors(detect_faces(image), landmark_box(landmarks) * scale)
    assert 0.7 < side < 1.5 and distance < 0.25


def test_pictures_too_small_for_a_face_have_none():
    for shape in ((1, 1, 3), (1, 500, 3), (500, 1, 3), (23, 23, 3)):
        assert detect_faces(np.zeros(shape, np.uint8)).shape == (0, 4)


def test_each_thread_has_a_cascade_of_its_own():
    cascades = [detector._cascade(), detector._cascade()]
    thread = threading.Thread(target=lambda: cascades.append(detector._cascade()))
    thread.start()
    thread.join()
    assert cascades[0] is cascades[1] and cascades[0] is not cascades[2]


class FixedYuNet:
    """Stands for cv2.FaceDetectorYN: the same faces in every picture, the smaller one first."""

    made: list["FixedYuNet"] = []
    rows = np.array([[10, 20, 10, 12], [40, 30, 40, 50]], np.float32)

    def __init__(self):
        self.sizes = []
        self.made.append(self)

    def setInputSize(self, size):
        self.sizes.append(size)

    def detect(self, image):
        assert image.shape[1::-1] == self.sizes[-1] and image.flags.c_contiguous
        return 1, np.concatenate([self.rows, np.ones((2, 11), np.float32)], axis=1) if image.any() else None


@pytest.fixture
def fixed_yunet(monkeypatch, tmp_path) -> YuNet:
    monkeypatch.setattr(FixedYuNet, "made", [])
    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_: FixedYuNet())
    (tmp_path / "é.onnx").write_bytes(b"model")
    return YuNet(tmp_path / "é.onnx")


def test_yunet_s_boxes_come_largest_first_in_px_of_the_whole_picture(fixed_yunet):
    image = np.ones((300, 1280, 3), np.uint8)
    expected = [[80, 60, 160, 160], [20, 40, 40, 64]]
    np.testing.assert_array_equal(fixed_yunet.boxes(image), expected)
    assert FixedYuNet.made[0].sizes[-1] == (640, 150)
    right, down, ratio = detector.YUNET_TO_LANDMARKS
    x, y, side = 120 + 100 * right, 110 + 100 * down, 100 * ratio
    np.testing.assert_allclose(fixed_yunet(image)[0], [x - side / 2, y - side / 2, x + side / 2, y + side / 2])
    assert fixed_yunet(np.zeros_like(image)).shape == fixed_yunet(image[:9]).shape == (0, 4)


def test_each_thread_has_a_yunet_of_its_own(fixed_yunet):
    threads = [threading.Thread(target=fixed_yunet, args=(np.ones((20, 20, 3), np.uint8),)) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert [len(one.sizes) for one in FixedYuNet.made] == [1, 1, 1, 1]  # and the one that looked at the file


def test_files_that_hold_no_yunet_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "empty.onnx").touch()
    cases = {"text.onnx": "not a YuNet model", "empty.onnx": "not a YuNet model", "missing.onnx": "cannot be read"}
    for name, message in {**cases, ".": "cannot be read"}.items():
        with pytest.raises(InputError, match=message) as raised:
            YuNet(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


def box_errors(boxes: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Side over the true side, and distance of the centres over it, of the box nearest to the truth."""
    true_side = (truth[2:] - truth[:2]).max()
    distance = np.linalg.norm((boxes[:, :2] + boxes[:, 2:] - truth[:2] - truth[2:]) / 2, axis=1) / true_side
    nearest = distance.argmin()
    return (boxes[nearest, 2] - boxes[nearest, 0]) / true_side, distance[nearest]


def errors_on_real_faces(find: detector.Detector, root: Path) -> np.ndarray:
    """Side and distance as above [N, 2], of those of 40 real faces that are found."""
    records = read_faces("300w", root / "300w", "helen/testset").records[:40]
    found = [(find(face.image.read()), landmark_box(face.landmarks)) for face in records]
    return np.array([box_errors(boxes, truth) for boxes, truth in found if len(boxes)])


def test_haar_s_boxes_fit_the_landmarks_of_real_faces(real_data):
    errors = errors_on_real_faces(detect_faces, real_data)
    side, distance = np.median(errors, axis=0)
    assert len(errors) >= 32 and abs(side - 1) < 0.08 and distance < 0.12


def test_yunet_s_boxes_fit_the_landmarks_of_real_faces(yunet, real_data):
    errors = errors_on_real_faces(yunet, real_data)
    side, distance = np.median(errors, axis=0)
    assert len(errors) == 40 and abs(side - 1) < 0.05 and distance < 0.06
    for shape in ((1, 1, 3), (3, 70_000, 3), (70_000, 3, 3), (500, 400, 3)):
        assert yunet(np.zeros(shape, np.uint8)).shape == (0, 4)


CSV = "name,x0,y0,x1,y1\n\n"


def test_boxes_are_read_from_csv_and_json(tmp_path):
    expected = {"b/ü, 1.jpg": [[1, 2, 3.5, 4], [5, 6, 7, 8]], "a.jpg": [[0, 0, 9, 9]]}
    (tmp_path / "boxes.json").write_text(json.dumps({**expected, "none.jpg": []}))
    (tmp_path / "boxes.CSV").write_text(CSV + '"b/ü, 1.jpg",1,2,3.5,4\na.jpg, 0,0,9,9\n"b/ü, 1.jpg",5,6,7,8\n', "utf-8")
    from_json, from_csv = read_boxes(tmp_path / "boxes.json"), read_boxes(tmp_path / "boxes.CSV")
    assert {name: boxes.tolist() for name, boxes in from_csv.items()} == expected
    assert {name: boxes.tolist() for name, boxes in from_json.items()} == {**expected, "none.jpg": []}
    assert from_json["none.jpg"].shape == (0, 4)


BAD_FILES = {
    "number.csv": (CSV + "a,1,2,x,4", r"number.csv:3: token 3 should be a finite number, got 'x'"),
    "nan.csv": (CSV + "a,1,2,nan,4", r"nan.csv:3: token 3 should be a finite number"),
    "short.csv": (CSV + "a,1,2,3", r"short.csv:3: expected 5 fields"),
    "header.csv": ("a,1,2,3,4", r"header.csv:1: expected the header name,x0,y0,x1,y1, got 'a,1,2,3,4'"),
    "empty.csv": ("", r"empty.csv:1: expected the header"),
    "table.json": (CSV, r"table.json:1: not JSON .*; CSV needs the suffix .csv"),
    "list.json": ("[[1, 2, 3, 4]]", r"list.json: expected {<picture>.* got a list"),
    "flat.json": ('{"a": [1, 2, 3, 4]}', r"flat.json: 'a': expected boxes .* got \[1.0, 2.0, 3.0, 4.0\]"),
    "nan.json": ('{"a": [[1, 2, NaN, 4]]}', r"nan.json: 'a': expected boxes .* of finite numbers"),
    "three.json": ('{"a": [[1, 2, 3]]}', r"three.json: 'a': expected boxes"),
    "text.json": ('{"a": [["1", 2, 3, 4]]}', r"text.json: 'a': expected boxes"),
    "truth.json": ('{"a": [[true, 2, 3, 4]]}', r"truth.json: 'a': expected boxes"),
    "bytes.json": (b"\xff\xfe\x00", r"bytes.json: cannot be read as text"),
    "long.csv": (CSV + "a" * 200_000, r"long.csv:3: .* \(field larger than"),
    "quote.csv": ('"' + CSV + "a,1,2,3,4\n" * 20_000, r"quote.csv:\d+: .* \(field larger than"),
    "deep.json": ("[" * 100_000, r"deep.json: expected boxes .* by picture, got too deep a nesting"),
    "400.json": (
        f'{{"a": [[1, 2, {"3" * 400}, 4]]}}',
        r"400.json: 'a': expected boxes .* of finite numbers, got .*inf",
    ),
    "5000.json": (f'{{"a": [[1, 2, {"3" * 5000}, 4]]}}', r"5000.json: 'a': expected boxes .* of finite numbers"),
    "nested.json": (f'{{"a": [{"[" * 300}{"]" * 300}]}}', r"nested.json: 'a': expected boxes"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_of_boxes_that_are_none_are_refused_in_one_line(tmp_path, name):
    data, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(InputError, match=message) as raised:
        read_boxes(tmp_path / name)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="no such file"):
        read_boxes(tmp_path / "missing.json")
