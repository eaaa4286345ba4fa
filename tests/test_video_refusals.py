"""Videos and folders that cannot be used: one sentence, and nothing is left behind."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_clips import Scene, square, write_clip

from iact.errors import InputError
from iact.predictor import Predictor
from iact.video import predict_video

OPEN_ALL = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from iact.video.frames import Video, quiet
for source in (Path(sys.argv[1]), 97):
    try:
        with quiet():
            Video(source)
    except ValueError as error:
        print(repr(error))
"""
ODD_NAMES = f"""
import os, sys
sys.path[:0] = [{str(Path(__file__).resolve().parents[1])!r}, {str(Path(__file__).resolve().parent)!r}]
from pathlib import Path
from made_clips import Scene, square
from iact.video import predict_video
folder, odd = Path(sys.argv[1]), os.fsdecode(b"caf\\xe9")
os.chdir(folder / odd)
sources = folder / f"{{odd}}.mp4", folder / "clip.mp4", folder / "clip.mp4", folder / "clip.mp4"
outs = folder / "out", folder / "out" / odd, Path("out"), folder / "out" / odd
for source, out, overlays in zip(sources, outs, (True, True, True, False)):
    try:
        print(predict_video(Scene(square(20, 20)), source, out, overlays=overlays))
    except ValueError as error:
        print(repr(error))
"""
NOISE = np.random.default_rng(0).integers(0, 255, (40, 120, 160, 3), dtype=np.uint8)


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", list(NOISE[:8]))


@pytest.fixture
def largest_file():
    """Sets how large a file may become, in bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refusal(source, out, **settings) -> str:
    """What is said; the folder must not be there afterwards, and the sentence is one."""
    with pytest.raises(InputError) as refused:
        predict_video(settings.pop("predictor", Scene(square(20, 20))), source, out, **settings)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_is_no_video_is_said_in_a_sentence(tmp_path):
    out, text, empty = tmp_path / "out", tmp_path / "text.mp4", tmp_path / "empty.mp4"
    text.write_text("not a video " * 50)
    empty.touch()
    whole = write_clip(tmp_path / "whole.mp4", list(NOISE)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for path in (text, empty, tmp_path / "cut.mp4"):
        assert refusal(path, out) == f"{path}: not a video that can be read, or cut short"
    assert refusal(tmp_path / "missing.mp4", out) == f"{tmp_path / 'missing.mp4'}: no such video"
    assert refusal(tmp_path, out) == f"{tmp_path}: no such video"
    assert refusal(97, out) == "camera:97: no camera answers to this number"
    assert not out.exists()


def test_opencv_prints_nothing_beside_the_sentence(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video " * 50)
    ended = subprocess.run([sys.executable, "-c", OPEN_ALL, tmp_path / "text.mp4"], capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout.count("InputError") == 2 and ended.stderr == ""


def test_names_that_are_not_utf8_are_said(clip, tmp_path):
    """In a process of its own, because OpenCV would end it."""
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    shutil.copy(clip, f"{odd}.mp4")
    ended = subprocess.run([sys.executable, "-c", ODD_NAMES, tmp_path], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    *refusals, done = ended.stdout.splitlines()
    places = tmp_path / "caf\\udce9.mp4", tmp_path / "out" / "caf\\udce9", tmp_path / "caf\\udce9" / "out"
    sentence = "expected a path in UTF-8, which is all that OpenCV takes for videos"
    assert refusals == [repr(InputError(f"{place}: {sentence}")) for place in places]
    assert done == f"8 frames, 1 face followed, into {places[1]}"
    assert [path.name for path in (tmp_path / "out" / odd.name).iterdir()] == ["landmarks.json"]
    assert not any(odd.iterdir())


def test_a_video_that_ends_early_is_used_and_said(tmp_path):
    whole = write_clip(tmp_path / "whole.avi", list(NOISE)).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    said = predict_video(Scene(square(20, 20)), tmp_path / "cut.avi", tmp_path / "out")
    frames = json.loads((tmp_path / "out/landmarks.json").read_text())["frames"]
    assert 10 < len(frames) < 30 and said.startswith(f"{len(frames)} frames")
    assert said.endswith("cut.avi says that it has 40 frames, so it may be cut short")


def test_formats_and_boxes_of_no_use(clip, small_run, tmp_path):
    out, predictor = tmp_path / "out", Predictor.from_pretrained(small_run, device="cpu")
    assert "pts is not for videos; expected json or csv" in refusal(clip, out, formats=("json", "pts"))
    far = refusal(clip, out, predictor=predictor, boxes=[[500, 500, 600, 600]])
    assert far.startswith(f"{clip}: boxes: box 0 lies outside the 160 x 120 image")
    assert "finite" in refusal(clip, out, predictor=predictor, boxes=[[0, 0, np.nan, 9]])
    assert not out.exists()


def test_the_video_itself_is_never_replaced(clip, tmp_path):
    before = clip.read_bytes()
    assert f"{clip} would be replaced" in refusal(clip, tmp_path)
    assert clip.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert predict_video(Scene(), clip, tmp_path, overlays=False) and clip.read_bytes() == before


def test_a_folder_that_is_none(clip, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert refusal(clip, tmp_path / "file").startswith(f"{tmp_path / 'file'}: cannot be written")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("overlays", [True, False])
def test_on_a_full_disk_older_results_stay(tmp_path, largest_file, overlays):
    source, out = write_clip(tmp_path / "long.mp4", list(NOISE)), tmp_path / "out"
    predict_video(Scene(square(20, 20)), source, out, overlays=overlays)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    largest_file(20_000)
    said = refusal(source, out, overlays=overlays)
    assert said.startswith(f"{out}: cannot be written")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_failure_in_the_middle_leaves_nothing(clip, tmp_path):
    class Failing(Scene):
        def __call__(self, image, boxes=None, flip_test=False):
            if boxes is not None:
                raise InputError("boxes: of no use")
            return super().__call__(image)

    assert refusal(clip, tmp_path / "out", predictor=Failing(square(20, 20))) == f"{clip}: boxes: of no use"
    assert list((tmp_path / "out").iterdir()) == []
