"""`iact predict`: pictures in, landmarks and overlays out."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from programs import iact

from iact.commands import predicting
from iact.data import ImageFile
from iact.data.synthetic import draw_face
from iact.data.w300 import read_pts
from iact.layouts import W300
from iact.plots import save_image


@pytest.fixture
def photographs(tmp_path) -> Path:
    """A folder with a drawn face, a smaller one in a folder below, and a text that calls itself a picture."""
    folder = tmp_path / "my pictures"
    save_image(folder / "one.png", draw_face(0, 0, W300)[0])
    save_image(folder / "below" / "zwei ü.jpg", draw_face(0, 1, W300, size=128)[0])
    (folder / "broken.jpg").write_text("not a picture")
    (folder / "notes.txt").write_text("not even called one")
    return folder


def test_prediction_goes_on_after_a_broken_picture_and_names_it(trained, photographs, tmp_path):
    out = tmp_path / "out"
    ended = iact("predict", "--weights", trained, "--input", photographs, "--out", out, "--whole-picture")
    assert ended.code == 1 and "2 faces in 2 pictures" in ended.out
    assert f"left out: {photographs / 'broken.jpg'}: not a picture" in ended.err and "Traceback" not in ended.err
    written = json.loads((out / "landmarks.json").read_text())
    assert set(written) == {"layout", "pictures", "left_out"} and written["layout"] == "300w"
    assert set(written["pictures"]) == {"one.png", "below/zwei ü.jpg"} and len(written["left_out"]) == 1
    (face,) = written["pictures"]["below/zwei ü.jpg"]
    assert set(face) == {"box", "landmarks", "scores"} and face["box"] == [-0.5, -0.5, 127.5, 127.5]
    assert np.shape(face["landmarks"]) == (68, 2) and np.shape(face["scores"]) == (68,)
    drawn = ImageFile(out / "pictures" / "one.png.jpg").read()
    assert drawn.shape == (256, 256, 3)
    assert np.abs(drawn.astype(int) - draw_face(0, 0, W300)[0]).max() > 60  # landmarks are on it


def test_the_overlays_of_the_last_time_are_no_input(trained, photographs):
    arguments = ("--weights", trained, "--input", photographs, "--out", photographs / "out", "--whole-picture")
    first, second = iact("predict", *arguments), iact("predict", *arguments)
    assert first.out == second.out and "2 faces in 2 pictures" in second.out


def test_a_box_is_used_for_every_picture(trained, photographs, tmp_path):
    (photographs / "broken.jpg").unlink()
    out = tmp_path / "out"
    ended = iact("predict", "--weights", trained, "--input", photographs, "--out", out, "--box", 150, 60, 220, 190)
    written = json.loads((out / "landmarks.json").read_text())
    assert ended.code == 1 and written["pictures"]["one.png"][0]["box"] == [150, 60, 220, 190]
    assert "zwei ü.jpg: boxes: box 0 lies outside the 128 x 128 image" in written["left_out"][0]


def test_boxes_come_from_a_file_and_a_picture_without_an_entry_is_named(trained, photographs, tmp_path):
    (photographs / "broken.jpg").unlink()
    save_image(photographs / "third.png", draw_face(0, 2, W300)[0])
    boxes = {"one.png": [[60, 60, 200, 200], [10, 10, 90, 90]], "third.png": []}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    arguments = ("--weights", trained, "--input", photographs, "--out", tmp_path / "out")
    ended = iact("predict", *arguments, "--boxes", tmp_path / "boxes.json")
    written = json.loads((tmp_path / "out" / "landmarks.json").read_text())
    found = {name: [face["box"] for face in faces] for name, faces in written["pictures"].items()}
    assert ended.code == 1 and found == boxes
    sentence = f"{photographs / 'below/zwei ü.jpg'}: {tmp_path / 'boxes.json'} has no boxes for 'below/zwei ü.jpg'"
    assert written["left_out"] == [sentence] and f"left out: {sentence}\n" == ended.err


def test_the_files_are_those_that_were_asked_for(trained, photographs, tmp_path):
    out = tmp_path / "out"
    arguments = ("--weights", trained, "--input", photographs / "one.png", "--out", out, "--whole-picture")
    assert iact("predict", *arguments, "--formats", "csv", "pts", "--no-overlays").code == 0
    assert [path.relative_to(out).as_posix() for path in sorted(out.rglob("*.*"))] == [
        "landmarks.csv",
        "points/one.png_0.pts",
    ]
    assert iact("predict", *arguments).code == 0
    (face,) = json.loads((out / "landmarks.json").read_text())["pictures"]["one.png"]
    np.testing.assert_allclose(read_pts(out / "points" / "one.png_0.pts"), face["landmarks"], atol=2e-3)
    with (out / "landmarks.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["name"], float(row["box_x1"]), float(row["score_67"])) == ("one.png", 255.5, face["scores"][67])


def test_the_detector_is_the_one_that_was_asked_for(trained, photographs, tmp_path, monkeypatch):
    asked = []

    def yunet(model):
        asked.append(model)
        return lambda image: np.array([[10.0, 20.0, 60.0, 70.0]])

    monkeypatch.setattr(predicting, "YuNet", yunet)
    arguments = ("--weights", trained, "--input", photographs / "one.png", "--out", tmp_path / "out")
    ended = iact("predict", *arguments, "--detector", "yunet", "--detector-model", "model.onnx")
    (face,) = json.loads((tmp_path / "out/landmarks.json").read_text())["pictures"]["one.png"]
    assert ended.code == 0 and asked == [Path("model.onnx")] and face["box"] == [10, 20, 60, 70]


@pytest.mark.parametrize("source, expected", [("clip.MP4", Path("clip.MP4")), ("camera:2", 2)])
def test_videos_and_cameras_go_to_the_video_s_program(trained, tmp_path, monkeypatch, source, expected):
    calls = []

    def predict_video(predictor, source, out, **settings):
        calls.append((source, out, settings))
        return "12 frames"

    monkeypatch.setitem(sys.modules, "iact.video", SimpleNamespace(predict_video=predict_video))
    arguments = ("predict", "--weights", trained, "--input", source, "--out", tmp_path)
    settings = {"formats": ("json",), "overlays": True, "flip_test": False, "smooth": True, "boxes": None}
    ended = iact(*arguments)
    assert (ended.code, ended.out) == (0, "12 frames\n") and calls.pop() == (expected, tmp_path, settings)
    iact(*arguments, "--no-smooth", "--no-overlays", "--formats", "csv", "--box", 1, 2, 30, 40)
    settings = {**settings, "smooth": False, "overlays": False, "formats": ("csv",), "boxes": [(1, 2, 30, 40)]}
    assert calls == [(expected, tmp_path, settings)]


def test_one_picture_without_a_face_is_no_error(trained, tmp_path):
    save_image(tmp_path / "grey.png", np.full((80, 80, 3), 128, np.uint8))
    ended = iact("predict", "--weights", trained, "--input", tmp_path / "grey.png", "--out", tmp_path / "out")
    assert ended.code == 0 and "0 faces in 1 picture, into" in ended.out and "1 picture without a face" in ended.out
    assert json.loads((tmp_path / "out/landmarks.json").read_text())["pictures"] == {"grey.png": []}


def test_prediction_refuses_what_it_cannot_use(trained, photographs, tmp_path):
    empty, file, boxes = tmp_path / "empty", tmp_path / "file", tmp_path / "boxes.json"
    empty.mkdir()
    boxes.write_text("{}")
    file.write_text("in the way")
    good = {"--weights": trained, "--input": photographs / "one.png", "--out": tmp_path / "out"}
    cases = [
        ({"--weights": empty}, (str(empty), "no weights")),
        ({"--weights": photographs / "one.png"}, ("one.png", "not a whole safetensors file")),
        ({"--input": empty}, (str(empty), "no pictures in this folder")),
        ({"--input": tmp_path / "missing"}, ("missing", "no such picture, folder or video")),
        ({"--input": photographs / "broken.jpg"}, ("broken.jpg", "not a picture")),
        ({"--out": file, "--whole-picture": None}, (str(file), "cannot be written")),
        ({"--box": (9, 9, 1, 1)}, ("one.png", "box 0 is empty")),
        ({"--input": "camera:front"}, ("camera:front", "a camera is called camera:0")),
        ({"--box": ("nan", 1, 9, 9)}, ("one.png", "box 0 should hold finite numbers")),
        (
            {"--box": (1, 1, 9, 9), "--whole-picture": None},
            ("one of --box, --boxes and", "got --box and --whole-picture"),
        ),
        ({"--boxes": file, "--whole-picture": None}, ("got --boxes and --whole-picture",)),
        ({"--boxes": file}, (f"{file}:1: not JSON",)),
        ({"--detector": "yunet"}, ("yunet needs --detector-model",)),
        ({"--detector-model": file}, ("haar takes none",)),
        ({"--detector": "yunet", "--detector-model": file}, (f"{file}: not a YuNet model",)),
        ({"--detector": "yunet", "--box": (1, 1, 9, 9)}, ("either --detector yunet or given boxes",)),
        ({"--input": "a.mp4", "--whole-picture": None}, ("--whole-picture are for pictures",)),
        ({"--input": "camera:0", "--boxes": boxes}, ("--boxes and --whole-picture are for pictures",)),
        ({"--formats": None, "--no-overlays": None}, ("formats: expected at least one of json, csv and pts",)),
    ]
    for changes, words in cases:
        ended = iact("predict", *flatten({**good, **changes}))
        assert ended.said(*words), (changes, ended)
    assert file.read_text() == "in the way" and not (tmp_path / "out").exists()


def flatten(arguments: dict) -> list:
    """Flags and values as one list; None is a flag without a value."""
    flat = []
    for flag, value in arguments.items():
        flat += [flag] if value is None else [flag, *value] if isinstance(value, tuple) else [flag, value]
    return flat


def test_what_was_done_before_an_interrupt_is_kept(trained, photographs, tmp_path, monkeypatch):
    def stop(self, image, boxes=None, flip_test=False):
        if image.shape[0] == 256:
            raise KeyboardInterrupt
        return whole(self, image, boxes, flip_test)

    whole = predicting.Predictor.__call__
    monkeypatch.setattr(predicting.Predictor, "__call__", stop)
    out = tmp_path / "out"
    ended = iact("predict", "--weights", trained, "--input", photographs, "--out", out, "--whole-picture")
    assert ended.code == 130 and "interrupted" in ended.err
    written = json.loads((out / "landmarks.json").read_text())
    assert [*written["pictures"]] == ["below/zwei ü.jpg"] and len(written["left_out"]) == 1
