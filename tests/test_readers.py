"""The readers of WFLW and 300W: exact counts and values of real files, a sentence for every kind of bad one."""

import shutil

import numpy as np
import pytest
from official_files import POINTS_68, pts, wflw_tokens, write_cofw, write_w300, write_wflw

from iact.data import read_faces
from iact.data.w300 import read_pts, read_w300
from iact.data.wflw import read_wflw
from iact.errors import InputError
from iact.layouts import W300, WFLW


def test_w300_faces_of_one_photograph_say_so(tmp_path):
    for part, name in (("afw", "134212_1"), ("afw", "134212_2"), ("lfpw/trainset", "image_0001"), ("afw", "92_1")):
        write_w300(tmp_path, part, name)
    found = {face.name: face.photograph for face in read_w300(tmp_path, "train").records}
    assert found["afw/134212_1"] == found["afw/134212_2"] == "afw/134212"
    assert found["lfpw/trainset/image_0001"] == "lfpw/trainset/image_0001" and found["afw/92_1"] == "afw/92"


@pytest.mark.parametrize(
    ("split", "count", "missing"),
    [
        ("train", 337 + 870 + 805, ("helen/trainset: 870 of 2000 faces", "lfpw/trainset: 805 of 811 faces")),
        ("common", 330, ("lfpw/testset: 0 of 224 faces",)),
        ("full", 330, ("lfpw/testset: 0 of 224 faces", "ibug: 0 of 135 faces")),
        ("afw", 337, ()),
        ("helen/testset", 330, ()),
    ],
)
def test_real_300w(real_data, split, count, missing):
    faces = read_w300(real_data / "300w", split)
    assert (len(faces), faces.missing, faces.layout) == (count, missing, W300)
    assert len({face.name for face in faces.records}) == count


def test_real_300w_is_one_based(real_data):
    face = read_w300(real_data / "300w", "afw").records[0]
    assert face.name == "afw/1051618982_1"
    np.testing.assert_allclose(face.landmarks[0], [83.049504 - 1, 115.108162 - 1])
    assert face.image.read().ndim == 3


@pytest.mark.parametrize(
    ("split", "count", "official"),
    [
        ("train", 40, 7500),
        ("test", 20, 2500),
        ("pose", 3, 326),
        ("expression", 6, 314),
        ("illumination", 6, 698),
        ("make-up", 1, 206),
        ("occlusion", 4, 736),
        ("blur", 9, 773),
    ],
)
def test_real_wflw(real_data, split, count, official):
    faces = read_wflw(real_data / "wflw", split)
    assert (len(faces), faces.layout) == (count, WFLW)
    assert faces.missing == (f"{split}: {count} of {official} faces",)
    assert len({face.name for face in faces.records}) == count
    assert all(split in ("train", "test") or split in face.tags for face in faces.records)


def test_real_wflw_values(real_data):
    face = read_wflw(real_data / "wflw", "test").records[0]
    assert face.name == "46--Jockey/46_Jockey_Jockey_46_706.jpg:1"
    np.testing.assert_allclose(face.landmarks[0], [352.268005, 482.372009])
    np.testing.assert_allclose(face.box, [418, 238, 812, 790])
    assert face.tags == {"occlusion"}


def test_pts_is_read_whatever_its_spacing(tmp_path):
    spaced = pts(
        [f"  {line}\t".replace(" ", "   ") for line in POINTS_68], "version:1\r\nn_points:  68 \n\n{ \n", "\n\n}"
    )
    (tmp_path / "a.pts").write_text(spaced)
    landmarks = read_pts(tmp_path / "a.pts")
    np.testing.assert_array_equal(landmarks, [[9 + index, 19.5 + index] for index in range(68)])


def test_w300_pictures_of_any_official_kind(tmp_path):
    write_w300(tmp_path, "ibug", "image_092 _01")
    write_w300(tmp_path, "ibug", "image_1", suffix=".PNG")
    write_w300(tmp_path, "ibug", "image_2", suffix=".JPG")
    (tmp_path / "ibug/._image_2.pts").write_bytes(b"\x00\xff")
    faces = read_w300(tmp_path, "challenging")
    assert [face.name for face in faces.records] == ["ibug/image_092 _01", "ibug/image_1", "ibug/image_2"]
    assert [face.image.read().shape for face in faces.records] == [(120, 100, 3)] * 3
    assert faces.missing == ("ibug: 3 of 135 faces",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (pts(POINTS_68[:-1]), "a.pts:71: expected 68 landmarks before this line, got 67"),
        (pts([*POINTS_68, "1 2"]), "a.pts:73: .*got 69"),
        (pts(["1 2 3", *POINTS_68[1:]]), "a.pts:4: expected 2 numbers, got 3 tokens"),
        (pts(["1 x", *POINTS_68[1:]]), "a.pts:4: token 2 should be a finite number, got 'x'"),
        (pts([POINTS_68[0], "nan 1", *POINTS_68[2:]]), "a.pts:5: token 1 should be a finite number, got 'nan'"),
        (pts(end="\n"), "a.pts:71: expected a line '}' before the end"),
        (pts(end="\n\n\n", points=["", *POINTS_68]), "a.pts:72: expected a line '}' before the end"),
        (pts(header=""), "a.pts:69: expected a line '{'"),
        (pts(header="version: 1\nn_points: 49\n{\n"), "a.pts:2: expected n_points: 68, got '49'"),
        ("", "a.pts:1: expected a line '{'"),
    ],
)
def test_malformed_pts(tmp_path, text, sentence):
    write_w300(tmp_path, "afw", "a", text)
    with pytest.raises(InputError, match=sentence):
        read_w300(tmp_path, "afw")


def test_w300_missing_things(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        read_w300(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match=r"no \.pts file in the folders of split 'challenging' \(ibug\)"):
        read_w300(tmp_path, "challenging")
    for name in "abc":
        write_w300(tmp_path, "afw", name)
    for name in "bc":
        (tmp_path / f"afw/{name}.jpg").unlink()
    with pytest.raises(InputError, match=r"afw/b.pts: picture .*b.jpg does not exist \(the pictures of 2 of 3 faces"):
        read_w300(tmp_path, "afw")
    assert len(read_w300(tmp_path, "afw", check_images=False)) == 3


def test_binary_annotation(tmp_path):
    write_w300(tmp_path, "afw", "a").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="a.pts: cannot be read as text"):
        read_w300(tmp_path, "afw")


def test_wflw_line(tmp_path):
    write_wflw(tmp_path, [wflw_tokens(), wflw_tokens(flags="100101")], "test")
    first, second = read_wflw(tmp_path, "test").records
    np.testing.assert_array_equal(first.landmarks[:2], [[0, 0.25], [0.5, 0.75]])
    np.testing.assert_array_equal(first.box, [1, 2, 30, 40])
    assert first.image == second.image and first.name != second.name
    assert second.tags == {"pose", "make-up", "blur"} and not first.tags
    for split in ("pose", "largepose", "make-up", "makeup", "blur"):
        assert [face.name for face in read_wflw(tmp_path, split).records] == [second.name]
    assert len(read_wflw(tmp_path, "expression")) == 0


def test_wflw_order_of_the_flags(tmp_path):
    write_wflw(tmp_path, [wflw_tokens(flags="0" * place + "1" + "0" * (5 - place)) for place in range(6)])
    tags = [face.tags for face in read_wflw(tmp_path, "train").records]
    assert tags == [{"pose"}, {"expression"}, {"illumination"}, {"make-up"}, {"occlusion"}, {"blur"}]


def changed(position, value):
    tokens = wflw_tokens()
    tokens[position] = value
    return tokens


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (wflw_tokens()[1:], "train.txt:2: expected 207 tokens, got 206"),
        (wflw_tokens()[2:], "train.txt:2: expected 207 tokens, got 205"),
        (changed(7, "1,5"), "train.txt:2: token 8 should be a finite number, got '1,5'"),
        (changed(195, "NaN"), "train.txt:2: token 196 should be a finite number, got 'NaN'"),
        (changed(198, "inf"), "train.txt:2: token 199 should be a finite number, got 'inf'"),
        (changed(203, "2"), "train.txt:2: expected 0 or 1 for attribute make-up, got '2'"),
        (changed(206, "../a.jpg"), "train.txt:2: path '../a.jpg' leaves the folder"),
        (changed(206, "x/../../a.jpg"), "train.txt:2: path .* leaves the folder"),
        (changed(206, "/etc/passwd"), "train.txt:2: path '/etc/passwd' leaves the folder"),
        (changed(206, "..\\a.jpg"), "train.txt:2: path .* leaves the folder"),
        (changed(206, "C:\\a.jpg"), "train.txt:2: path .* leaves the folder"),
        (changed(206, "0--Parade/b.jpg"), "train.txt:2: picture .*b.jpg does not exist$"),
    ],
)
def test_malformed_wflw(tmp_path, tokens, sentence):
    write_wflw(tmp_path, [wflw_tokens(), tokens])
    with pytest.raises(InputError, match=sentence):
        read_wflw(tmp_path, "train")


def test_wflw_missing_things(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_wflw(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match="list_98pt_rect_attr_train.txt: no such file"):
        read_wflw(tmp_path, "train")
    write_wflw(tmp_path, [])
    with pytest.raises(InputError, match="train.txt: the list is empty"):
        read_wflw(tmp_path, "train")


def test_read_faces_picks_the_reader(tmp_path):
    write_w300(tmp_path, "afw", "a")
    write_wflw(tmp_path, [wflw_tokens()])
    write_cofw(tmp_path)
    found = {data: read_faces(data, tmp_path, "train").layout.name for data in ("300w", "wflw", "cofw")}
    assert found == {"300w": "300w", "wflw": "wflw", "cofw": "cofw"}


def test_read_faces_draws_faces():
    faces = read_faces("synthetic", None, "train", layout=W300, count=2, size=64)
    assert len(faces) == 2 and faces.layout == W300
    assert faces.records[0].image.read().shape == (64, 64, 3)


def test_read_faces_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(InputError, match="unknown data set 'w300': expected one of synthetic, 300w, wflw, cofw"):
        read_faces("w300", tmp_path, "train")
    with pytest.raises(InputError, match="data set 'cofw' needs a root"):
        read_faces("cofw", None, "train")
    for data, known in (("300w", "train, common, challenging, full, afw"), ("wflw", "train, test, pose")):
        with pytest.raises(InputError, match=f"unknown split 'val' of data set '{data}': expected one of {known}"):
            read_faces(data, tmp_path, "val")
    with pytest.raises(InputError, match="unknown split 'val' of data set 'cofw': expected one of train, test"):
        read_faces("cofw", tmp_path, "val")


def test_a_picture_that_disappears_is_named(tmp_path):
    write_w300(tmp_path, "afw", "a")
    face = read_w300(tmp_path, "afw").records[0]
    shutil.rmtree(tmp_path / "afw")
    with pytest.raises(InputError, match="a.jpg: no such picture"):
        face.image.read()
