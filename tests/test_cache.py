"""Cut faces in a file: what is read back, what makes it another file, where it is and how long."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from crop_cases import assert_equal, file_faces, kept

from iact.data import cache, read_faces
from iact.data.cache import cached_crops
from iact.data.crops import cut_faces
from iact.data.faces import Face, Faces
from iact.data.synthetic import synthetic_faces
from iact.layouts import COFW
from iact.plots import save_image

SIZE, MARGIN = 48, 1.9


@pytest.fixture
def faces() -> Faces:
    return synthetic_faces(COFW, 5, size=64)


@pytest.fixture
def no_cutting(monkeypatch):
    """Call it, and from then on faces can no longer be cut."""

    def refuse(*_):
        raise AssertionError("faces were cut although their file was there")

    return lambda: monkeypatch.setattr(cache, "cut_faces", refuse)


def test_the_second_start_reads_what_the_first_cut(faces, tmp_path, no_cutting):
    said = []
    first = cached_crops(faces, SIZE, MARGIN, tmp_path, said.append)
    (path,) = kept(tmp_path)
    assert path.name.startswith("cofw_train-48px-") and said == [f"cutting 5 faces to 48 px, once, into {path}"]
    assert_equal(first, cut_faces(faces, SIZE, MARGIN))
    no_cutting()
    said.clear()
    again = cached_crops(synthetic_faces(COFW, 5, size=64), SIZE, MARGIN, tmp_path, said.append)
    assert_equal(again, first)
    assert not said and not np.array_equal(again.visible, np.ones((5, 29)))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")
def test_the_file_is_mapped_and_outlives_its_name(faces, tmp_path):
    expected = cut_faces(faces, SIZE, MARGIN)
    crops = cached_crops(faces, SIZE, MARGIN, tmp_path, print)
    (path,) = kept(tmp_path)
    before, address = path.read_bytes(), crops.pictures.data_ptr()
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [[int(number, 16) for number in line[0].split("-")] for line in mapped]
    assert any(low <= address < high for low, high in ranges)
    changed = cached_crops(faces, SIZE, MARGIN, tmp_path, print)
    changed.pictures.zero_()
    assert path.read_bytes() == before, "who changes crops in place must not change the file"
    path.unlink()
    assert_equal(crops, expected)


def test_a_whole_number_as_margin(faces, tmp_path, no_cutting):
    first = cached_crops(faces, SIZE, 2, tmp_path)
    no_cutting()
    assert_equal(cached_crops(faces, SIZE, 2.0, tmp_path), first)


def renamed(face: Face) -> Face:
    return replace(face, name="other")


def moved(face: Face) -> Face:
    return replace(face, landmarks=face.landmarks + 1e-9)


def covered(face: Face) -> Face:
    return replace(face, visible=~face.visible)


def all_visible(face: Face) -> Face:
    return replace(face, visible=None)


def drawn_otherwise(face: Face) -> Face:
    return replace(face, image=replace(face.image, seed=1))


@pytest.mark.parametrize("change", [renamed, moved, covered, all_visible, drawn_otherwise])
def test_another_face_makes_another_file(faces, tmp_path, change):
    cached_crops(faces, SIZE, MARGIN, tmp_path)
    others = replace(faces, records=(*faces.records[:-1], change(faces.records[-1])))
    assert_equal(cached_crops(others, SIZE, MARGIN, tmp_path), cut_faces(others, SIZE, MARGIN))
    assert len(kept(tmp_path)) == 2


def test_other_settings_and_other_code_make_other_files(faces, tmp_path, monkeypatch):
    cached_crops(faces, SIZE, MARGIN, tmp_path)
    cached_crops(faces, SIZE + 1, MARGIN, tmp_path)
    cached_crops(faces, SIZE, MARGIN + 0.1, tmp_path)
    cached_crops(replace(faces, records=faces.records[::-1]), SIZE, MARGIN, tmp_path)
    monkeypatch.setattr(cache.cv2, "__version__", "0")
    cached_crops(faces, SIZE, MARGIN, tmp_path)
    monkeypatch.setattr(cache, "_CODE", ("geometry.py",))
    cached_crops(faces, SIZE, MARGIN, tmp_path)
    assert len(kept(tmp_path)) == 6


def test_the_code_that_makes_the_pictures_is_there():
    for pattern in cache._CODE:
        assert list(cache._PACKAGE.glob(pattern)), pattern


def test_a_picture_that_changed_is_cut_anew(tmp_path):
    faces, folder = file_faces(tmp_path), tmp_path / "cache"
    first = cached_crops(faces, SIZE, MARGIN, folder)
    path = faces.records[0].image.path
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert_equal(cached_crops(faces, SIZE, MARGIN, folder), first)
    assert len(kept(folder)) == 2
    save_image(path, np.zeros((60, 60, 3), np.uint8))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = cached_crops(faces, SIZE, MARGIN, folder)
    assert len(kept(folder)) == 3 and not changed.pictures[0].any()


@dataclass(frozen=True)
class Part:
    """A picture in a larger file, as those of COFW."""

    path: Path
    index: int

    def read(self) -> np.ndarray:
        return np.full((60, 60, 3), self.path.read_bytes()[self.index], np.uint8)


def test_a_file_of_many_pictures_that_changed_is_read_anew(tmp_path):
    path, folder = tmp_path / "pictures", tmp_path / "cache"
    landmarks = np.random.default_rng(0).uniform(20, 40, (29, 2))
    faces = Faces(COFW, "train", (Face("a", Part(path, 0), landmarks, "a"), Face("b", Part(path, 1), landmarks, "b")))
    path.write_bytes(bytes([10, 20]))
    cached_crops(faces, SIZE, 1.2, folder)
    path.write_bytes(bytes([30, 40, 50]))
    crops = cached_crops(faces, SIZE, 1.2, folder)
    assert crops.pictures.amax((1, 2, 3)).tolist() == [30, 40]


def test_where_the_folder_is(faces, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("IACT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    cached_crops(faces, SIZE, MARGIN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cached_crops(faces, SIZE, MARGIN)
    monkeypatch.setenv("IACT_CACHE", str(tmp_path / "own"))
    cached_crops(replace(faces, split="helen/test set"), SIZE, MARGIN)
    for folder in ("home/.cache/iact", "xdg/iact", "own"):
        assert len(kept(tmp_path / folder)) == 1, folder
    assert kept(tmp_path / "own")[0].name.startswith("cofw_helen_test_set-48px-")


def test_what_was_used_least_recently_makes_room(faces, tmp_path, monkeypatch):
    own = tmp_path / "own.safetensors"
    own.write_bytes(bytes(100_000))
    for number, days in enumerate((9, 3, 5, 0.5)):
        cached_crops(faces, SIZE + number, MARGIN, tmp_path)
        (path,) = tmp_path.glob(f"*-{SIZE + number}px-*.safetensors")
        os.utime(path, (time.time() - days * 86400,) * 2)
    cached_crops(faces, SIZE, MARGIN, tmp_path)  # used: now it is the newest
    monkeypatch.setattr(cache, "KEPT_BYTES", 160_000)  # four of the five
    said = []
    cached_crops(faces, 47, MARGIN, tmp_path, said.append)
    assert [path.name.split("-")[1] for path in kept(tmp_path) if path != own] == ["47px", "48px", "49px", "51px"]
    assert said[1].startswith(f"{tmp_path}: removed 0.0 GB of cut faces") and own.exists()
    monkeypatch.setattr(cache, "KEPT_BYTES", 0)
    cached_crops(faces, 46, MARGIN, tmp_path)
    assert [path.name.split("-")[1] for path in kept(tmp_path) if path != own] == ["46px", "47px", "48px", "51px"]


def test_real_faces(real_data, tmp_path, no_cutting):
    for data, split in (("300w", "helen/testset"), ("cofw", "test"), ("wflw", "test")):
        faces = read_faces(data, real_data / data, split)
        faces = replace(faces, records=faces.records[:12])
        expected = cut_faces(faces, 97, MARGIN)
        assert_equal(cached_crops(faces, 97, MARGIN, tmp_path), expected)
    no_cutting()
    assert_equal(cached_crops(faces, 97, MARGIN, tmp_path), expected)
