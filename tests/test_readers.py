"""The readers of WFLW, 300W and COFW: exact counts and values of real files, a sentence for every kind of bad one."""

import pickle
import shutil
from multiprocessing import get_context

import cv2
import h5py
import numpy as np
import pytest

from iact.data import read_faces
from iact.data.cofw import MatImage, read_cofw
from iact.data.w300 import read_pts, read_w300
from iact.data.wflw import read_wflw
from iact.errors import InputError
from iact.layouts import COFW, W300, WFLW

POINTS_68 = [f"{10 + index} {20.5 + index}" for index in range(68)]


def pts(points=POINTS_68, header="version: 1\nn_points: 68\n{\n", end="\n}\n"):
    return header + "\n".join(points) + end


def write_picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (120, 100, 3), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix.lower(), image)[1].tobytes())


def write_w300(root, part, name, text=None, suffix=".jpg"):
    write_picture(root / part / (name + suffix))
    path = root / part / f"{name}.pts"
    path.write_text(pts() if text is None else text)
    return path


def test_w300_faces_of_one_photograph_say_so(tmp_path):
    for part, name in (("afw", "134212_1"), ("afw", "134212_2"), ("lfpw/trainset", "image_0001"), ("afw", "92_1")):
        write_w300(tmp_path, part, name)
    found = {face.name: face.photograph for face in read_w300(tmp_path, "train").records}
    assert found["afw/134212_1"] == found["afw/134212_2"] == "afw/134212"
    assert found["lfpw/trainset/image_0001"] == "lfpw/trainset/image_0001" and found["afw/92_1"] == "afw/92"


def wflw_tokens(path="0--Parade/a.jpg", flags="000000"):
    return [f"{value / 4:.6f}" for value in range(196)] + ["1", "2", "30", "40", *flags, path]


def write_wflw(root, lines, split="train", picture="0--Parade/a.jpg"):
    write_picture(root / "WFLW_images" / picture)
    folder = root / "WFLW_annotations/list_98pt_rect_attr_train_test"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"list_98pt_rect_attr_{split}.txt"
    path.write_text("".join(" ".join(tokens) + "\n" for tokens in lines))
    return path


def write_cofw(root, split="train", faces=3, points=None, images=None, drop=None):
    """A file in the official layout: [W, H] or [3, W, H] pictures behind references, everything transposed."""
    suffix = {"train": "Tr", "test": "T"}[split]
    path = root / f"COFW_{split}_color.mat"
    generator = np.random.default_rng(0)
    if images is None:
        images = [generator.integers(0, 256, ((3, 50, 40) if i % 2 else (50, 40)), np.uint8) for i in range(faces)]
    if points is None:
        points = np.concatenate([generator.uniform(1, 40, (58, faces)), np.zeros((29, faces))])
    with h5py.File(path, "w") as file:
        references = [file.create_dataset(f"#refs#/{index}", data=image).ref for index, image in enumerate(images)]
        arrays = {"phis": points, "bboxes": np.array([[5.0], [6], [20], [30]]).repeat(faces, axis=1)}
        for key, array in arrays.items():
            if key != drop:
                file[key + suffix] = array
        file.create_dataset("Is" + suffix, data=np.array([references], dtype=h5py.ref_dtype))
    return path


# Real files


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


@pytest.mark.parametrize(("split", "count", "official"), [("train", 640, 1345), ("test", 69, 507)])
def test_real_cofw(real_data, split, count, official):
    faces = read_cofw(real_data / "cofw", split)
    assert (len(faces), faces.layout, faces.missing) == (count, COFW, (f"{split}: {count} of {official} faces",))
    assert all(face.visible.all() for face in faces.records)
    colour, grey = faces.records[0].image.read(), faces.records[1].image.read()
    assert np.ptp(colour, axis=2).any() and not np.ptp(grey, axis=2).any()
    assert colour.shape[2] == grey.shape[2] == 3


def test_real_cofw_points_lie_on_the_pupils(real_data):
    """The mean picture around the pupils is mirror symmetric about the point; a pixel further right it is not."""
    faces = read_cofw(real_data / "cofw", "train").records
    patches = [_around(face.image.read(), face.landmarks[pupil]) for face in faces for pupil in (16, 17)]
    profile = np.mean(patches, axis=(0, 1))
    offsets = np.arange(-2, 2.01, 0.05)
    reach = np.linspace(0, 5, 40)
    places = np.arange(-7, 8)
    differences = [
        np.square(np.interp(offset + reach, places, profile) - np.interp(offset - reach, places, profile)).sum()
        for offset in offsets
    ]
    assert abs(offsets[np.argmin(differences)]) < 0.75  # 0.5 px here; 1.5 px with points that are not made 0-based


def _around(image, point):
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return cv2.getRectSubPix(grey, (15, 5), [float(value) for value in point])


# 300W


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


# WFLW


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


# COFW


def test_cofw_file(tmp_path):
    points = np.concatenate([np.full((29, 3), 11.0), np.full((29, 3), 7.5), np.zeros((29, 3))])
    points[58 + 4, 1] = 1
    path = write_cofw(tmp_path, points=points)
    faces = read_cofw(tmp_path, "train").records
    np.testing.assert_array_equal(faces[0].landmarks, [[10, 6.5]] * 29)
    np.testing.assert_array_equal(faces[0].box, [4, 5, 24, 35])
    assert faces[0].visible.all() and list(np.flatnonzero(~faces[1].visible)) == [4]
    with h5py.File(path) as file:
        grey, colour = (np.array(file[file["IsTr"][0, index]]) for index in (0, 1))
    np.testing.assert_array_equal(faces[0].image.read(), np.stack([grey.T] * 3, axis=-1))
    np.testing.assert_array_equal(faces[1].image.read(), colour.transpose(2, 1, 0))


def read_shape(source):
    return source.read().shape


def test_cofw_pictures_go_to_other_processes(tmp_path):
    write_cofw(tmp_path)
    source = read_cofw(tmp_path, "train").records[1].image
    assert len(pickle.dumps(source)) < 1000 and pickle.loads(pickle.dumps(source)) == source
    expected = read_shape(source)  # the file is open here when the children are forked
    with get_context("fork").Pool(2) as pool:
        assert pool.map(read_shape, [source] * 8) == [expected] * 8 == [(40, 50, 3)] * 8


def nan_points():
    points = np.zeros((87, 3))
    points[3, 2] = np.nan
    return points


def odd_flag():
    points = np.zeros((87, 3))
    points[60, 1] = 0.5
    return points


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"points": nan_points()}, r"COFW_train_color.mat, face 3: landmark 3 is not a finite number"),
        ({"points": odd_flag()}, r"COFW_train_color.mat, face 2: expected occlusion flags of 0 or 1, got 0.5"),
        ({"points": np.zeros((204, 3))}, r"COFW_train_color.mat: expected phisTr of shape \[87, 3\], got \[204, 3\]"),
        ({"points": np.zeros((87, 2))}, r"COFW_train_color.mat: expected phisTr of shape \[87, 3\], got \[87, 2\]"),
        ({"drop": "bboxes"}, r"COFW_train_color.mat: the file holds no array bboxesTr"),
    ],
)
def test_malformed_cofw(tmp_path, options, sentence):
    write_cofw(tmp_path, **options)
    with pytest.raises(InputError, match=sentence):
        read_cofw(tmp_path, "train")


def test_cofw_missing_and_truncated_files(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_cofw(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match="COFW_test_color.mat: no such file"):
        read_cofw(tmp_path, "test")
    path = write_cofw(tmp_path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="COFW_train_color.mat: not a MATLAB v7.3"):
        read_cofw(tmp_path, "train")


def test_cofw_bad_pictures(tmp_path):
    path = write_cofw(tmp_path, images=[np.zeros((4, 5, 6), np.uint8), np.zeros((5, 6)), np.zeros((5, 6), np.uint8)])
    for index, found in ((0, r"uint8 \[4, 5, 6\]"), (1, r"float64 \[5, 6\]")):
        with pytest.raises(InputError, match=rf"picture {index + 1} of IsTr: expected uint8 pixels .*got {found}"):
            MatImage(path, "IsTr", index).read()
    with pytest.raises(InputError, match="picture 8 of IsTr: cannot be read"):
        MatImage(path, "IsTr", 7).read()


# All of them


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
