"""Pictures with names that are legal and odd: not UTF-8, long, or like what an earlier run has written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import iact

from iact.data import ImageFile
from iact.data.synthetic import draw_face
from iact.errors import InputError
from iact.files import write_atomically
from iact.layouts import W300
from iact.plots import save_image

CAFE = os.fsdecode(b"caf\xe9.png")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two pictures of 64 px, one of which has a name that is not UTF-8."""
    image = draw_face(0, 0, W300, size=64)[0]
    save_image(tmp_path / "album" / "one.png", image)
    save_image(tmp_path / "album" / CAFE, image)
    return tmp_path / "album"


def predict(weights: Path, source: Path, out: Path, *more: str):
    return iact("predict", "--weights", weights, "--input", source, "--out", out, "--whole-picture", *more)


def test_names_that_are_not_utf8_are_predicted(trained, folder, tmp_path):
    """In a process of its own, because OpenCV would end it."""
    out = tmp_path / "out"
    flags = [
        "--weights",
        trained,
        "--input",
        folder,
        "--out",
        out,
        "--whole-picture",
        "--formats",
        "json",
        "csv",
        "pts",
    ]
    program = [sys.executable, "-m", "iact", "predict", *flags]
    ended = subprocess.run(program, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (ended.returncode, ended.stderr) == (0, "") and "2 faces in 2 pictures, into " in ended.stdout
    assert set(json.loads((out / "landmarks.json").read_text())["pictures"]) == {"one.png", CAFE}
    assert {path.name for path in (out / "pictures").iterdir()} == {"one.png.jpg", f"{CAFE}.jpg"}
    assert (out / "points" / f"{CAFE}_0.pts").exists()


def test_a_suffix_that_is_not_utf8_is_no_picture_s(tmp_path):
    with pytest.raises(InputError, match="expected the suffix of a picture"):
        save_image(tmp_path / os.fsdecode(b"a.j\xe9"), draw_face(0, 0, W300, size=64)[0])
    assert list(tmp_path.iterdir()) == []


def test_a_name_too_long_for_its_drawing_costs_no_other_picture(trained, folder, tmp_path):
    (folder / "one.png").rename(folder / f"{'z' * 249}.png")
    out = tmp_path / "out"
    ended = predict(trained, folder, out)
    assert ended.said("zzz.png.jpg: cannot be written (File name too long)")
    assert [*json.loads((out / "landmarks.json").read_text())["pictures"]] == [CAFE]
    assert predict(trained, folder, out, "--no-overlays").code == 0
    assert len(json.loads((out / "landmarks.json").read_text())["pictures"]) == 2


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("ä" * 127)  # of 255 bytes
    write_atomically(path, lambda temporary: temporary.write_text("whole"))
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("flag", ["--input", "--weights", "--boxes"])
def test_a_path_that_the_system_refuses_is_one_sentence(flag, trained, folder, tmp_path):
    flags = {"--weights": trained, "--input": folder, "--out": tmp_path / "out"} | {flag: f"/{'a' * 300}"}
    ended = iact("predict", *(part for pair in flags.items() for part in pair))
    assert ended.said("aaa") and not (tmp_path / "out").exists()


def test_a_folder_called_pictures_is_a_folder(trained, folder):
    source = folder.rename(folder.parent / "pictures")
    for _ in range(2):  # the second time beside the drawings of the first
        ended = predict(trained, source, source.parent)
        assert ended.code == 0 and "2 faces in 2 pictures" in ended.out
    assert {path.name for path in source.iterdir()} == {"one.png", "one.png.jpg", CAFE, f"{CAFE}.jpg"}
    assert ImageFile(source / CAFE).frames() == 1
