"""The reader of COFW: exact counts and values of real files, a sentence for every kind of bad one."""

import pickle
from multiprocessing import get_context

import cv2
import h5py
import numpy as np
import pytest
from official_files import write_cofw

from iact.data.cofw import MatImage, read_cofw
from iact.errors import InputError
from iact.layouts import COFW


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
