"""Files of cut faces that are damaged, that cannot be written, and that several processes want at once."""

import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from crop_cases import assert_equal, file_faces, kept

from iact.data import cache
from iact.data.cache import cached_crops
from iact.data.crops import cut_faces
from iact.data.faces import Faces
from iact.data.synthetic import synthetic_faces
from iact.errors import InputError
from iact.layouts import COFW

SIZE, MARGIN = 48, 1.9
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def faces() -> Faces:
    return synthetic_faces(COFW, 5, size=64)


@pytest.mark.parametrize("bit", [0x01, 0x20, 0x80])
def test_no_damaged_byte_is_trusted(faces, tmp_path, bit):
    few = replace(faces, records=faces.records[:2])
    expected = cached_crops(few, 8, MARGIN, tmp_path)
    (path,) = kept(tmp_path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(header), *range(header, len(whole), 97), len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        crops, damage = cache._read(path, cache._key(few, 8, MARGIN))
        if crops is None:
            assert damage.startswith(f"{path}: damaged, so the faces are cut anew (") and "\n" not in damage
        else:  # blanks in the header say nothing
            assert place < header and whole[place : place + 1] == b" "
            assert_equal(crops, expected)


@pytest.mark.parametrize("length", [0, 5, 8, 100, 2000, -1])
def test_a_file_cut_short_is_made_anew_with_one_sentence(faces, tmp_path, length):
    expected, said = cached_crops(faces, SIZE, MARGIN, tmp_path), []
    (path,) = kept(tmp_path)
    whole = path.read_bytes()
    path.unlink()  # the crops above are still mapped
    path.write_bytes(whole[:length])
    assert_equal(cached_crops(faces, SIZE, MARGIN, tmp_path, said.append), expected)
    assert ["damaged" in sentence for sentence in said] == [True, False]
    assert kept(tmp_path) == [path] and path.read_bytes() == whole


def test_a_file_under_the_name_of_another_is_not_trusted(faces, tmp_path):
    cached_crops(faces, SIZE, MARGIN, tmp_path)
    (path,) = kept(tmp_path)
    other = replace(faces, records=faces.records[::-1])
    cached_crops(other, SIZE, MARGIN, tmp_path)
    (second,) = set(kept(tmp_path)) - {path}
    os.replace(path, second)
    assert_equal(cached_crops(other, SIZE, MARGIN, tmp_path), cut_faces(other, SIZE, MARGIN))


def test_a_folder_that_cannot_be_made(faces, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        said = []
        assert_equal(cached_crops(faces, SIZE, MARGIN, folder, said.append), cut_faces(faces, SIZE, MARGIN))
        assert len(said) == 1 and said[0].startswith(f"{folder}: the cut faces cannot be kept there (")
    assert (tmp_path / "file").read_text() == "no folder"


def test_nobody_s_home(faces, monkeypatch):
    monkeypatch.setenv("IACT_CACHE", "~nobody-of-that-name/cache")
    said = []
    assert_equal(cached_crops(faces, SIZE, MARGIN, None, said.append), cut_faces(faces, SIZE, MARGIN))
    assert len(said) == 1 and said[0].startswith("the cut faces are in memory only, and not kept")


def test_files_of_others_stay_where_they_may_not_be_removed(faces, tmp_path, monkeypatch):
    first = cached_crops(faces, SIZE, MARGIN, tmp_path, lambda _: None)
    (old,) = kept(tmp_path)
    os.utime(old, (0, 0))
    monkeypatch.setattr(cache, "KEPT_BYTES", 1)
    unlink, said = Path.unlink, []

    def refuse(path, missing_ok=False):
        if path == old:
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    second = cached_crops(faces, SIZE, 1.5, tmp_path, said.append)
    assert len(kept(tmp_path)) == 2 and not any("removed" in sentence for sentence in said)
    assert len(first) == len(second)


def test_a_folder_in_the_place_of_the_file(faces, tmp_path):
    cached_crops(faces, SIZE, MARGIN, tmp_path)
    (path,) = kept(tmp_path)
    path.unlink()
    path.mkdir()
    said = []
    assert_equal(cached_crops(faces, SIZE, MARGIN, tmp_path, said.append), cut_faces(faces, SIZE, MARGIN))
    assert "the cut faces are in memory only" in said[-1] and kept(tmp_path) == [path]


def test_a_full_disk(faces, tmp_path):
    limits, said = resource.getrlimit(resource.RLIMIT_FSIZE), []
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        crops = cached_crops(faces, SIZE, MARGIN, tmp_path, said.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_equal(crops, cut_faces(faces, SIZE, MARGIN))
    assert said[1].startswith("the cut faces are in memory only: ") and "cannot be written" in said[1]
    assert len(said) == 2 and kept(tmp_path) == []


def test_a_broken_picture_is_named_as_ever_and_leaves_no_file(tmp_path):
    faces, folder = file_faces(tmp_path), tmp_path / "cache"
    path = faces.records[1].image.path
    path.write_bytes(b"nothing")
    for sentence in (f"{path}: not a picture that can be decoded", f"{path}: no such picture"):
        with pytest.raises(InputError) as caught:
            cached_crops(faces, SIZE, MARGIN, folder)
        assert str(caught.value) == sentence and kept(folder) == []
        path.unlink(missing_ok=True)
    with pytest.raises(InputError, match="no faces in this split"):
        cached_crops(replace(faces, records=()), SIZE, MARGIN, folder)


# A process that cuts faces, stops at what its second argument names, and goes on when the file "go" is there.
PROCESS = """
import os, sys, time
from pathlib import Path
from iact.data import cache
from iact.data.synthetic import synthetic_faces
from iact.layouts import COFW

folder, place = Path(sys.argv[1]), sys.argv[2]

def stop_at(module, name):
    function = getattr(module, name)
    def stopped(*arguments):
        print("stopped", flush=True)
        while not (folder / "go").exists():
            time.sleep(0.01)
        return function(*arguments)
    setattr(module, name, stopped)

if place == "cutting":
    stop_at(cache, "cut_faces")
if place == "writing":
    stop_at(os, "replace")
faces, say = synthetic_faces(COFW, 5, size=64), lambda text: print(text, flush=True)
say(int(cache.cached_crops(faces, 48, 1.9, folder / "cache", say).pictures.sum()))
"""


def start(folder: Path, place: str = "nowhere") -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROCESS, str(folder), place]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen, word: str) -> str:
    for line in process.stdout:
        if word in line:
            return line
    raise AssertionError(f"the process ended without {word!r}")


def test_of_two_processes_one_cuts_and_the_other_waits(faces, tmp_path):
    first = start(tmp_path, "cutting")
    second = None
    try:
        read_until(first, "stopped")
        second = start(tmp_path)
        assert "waiting for another process" in second.stdout.readline()
        (tmp_path / "go").touch()
        total = str(int(cut_faces(faces, SIZE, MARGIN).pictures.sum()))
        assert first.communicate(timeout=60)[0].split() == [total]
        assert second.communicate(timeout=60)[0].split() == [total], "it cut the faces once more"
    finally:
        for process in filter(None, (first, second)):
            process.kill()
            process.wait()
    assert len(kept(tmp_path / "cache")) == 1


@pytest.mark.parametrize("place", ["cutting", "writing"])
def test_a_killed_process_leaves_nothing_that_harms_the_next(faces, tmp_path, place):
    process, folder = start(tmp_path, place), tmp_path / "cache"
    try:
        read_until(process, "stopped")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert len(kept(folder)) == (place == "writing")
    said = []
    assert_equal(cached_crops(faces, SIZE, MARGIN, folder, said.append), cut_faces(faces, SIZE, MARGIN))
    assert len(said) == 1 and said[0].startswith("cutting 5 faces")
    assert [path.suffix for path in kept(folder)] == [".safetensors"]
