"""`iact predict`: pictures in, landmarks and overlays out."""

import json
from pathlib import Path

import numpy as np
import pytest
from programs import iact

from iact.data import ImageFile
from iact.data.synthetic import draw_face
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


def test_one_picture_without_a_face_is_no_error(trained, tmp_path):
    save_image(tmp_path / "grey.png", np.full((80, 80, 3), 128, np.uint8))
    ended = iact("predict", "--weights", trained, "--input", tmp_path / "grey.png", "--out", tmp_path / "out")
    assert ended.code == 0 and "0 faces in 1 pictures" in ended.out and "1 pictures without a face" in ended.out
    assert json.loads((tmp_path / "out/landmarks.json").read_text())["pictures"] == {"grey.png": []}


def test_prediction_refuses_what_it_cannot_use(trained, photographs, tmp_path):
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("in the way")
    good = {"--weights": trained, "--input": photographs / "one.png", "--out": tmp_path / "out"}
    cases = [
        ({"--weights": empty}, (str(empty), "no weights")),
        ({"--weights": photographs / "one.png"}, ("one.png", "not a whole safetensors file")),
        ({"--input": empty}, (str(empty), "no pictures in this folder")),
        ({"--input": tmp_path / "missing"}, ("missing", "no such picture or folder")),
        ({"--input": photographs / "broken.jpg"}, ("broken.jpg", "not a picture")),
        ({"--out": file, "--whole-picture": None}, (str(file), "cannot be written")),
        ({"--box": (9, 9, 1, 1)}, ("one.png", "box 0 is empty")),
        ({"--box": (1, 1, 9, 9), "--whole-picture": None}, ("either --box or --whole-picture",)),
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
