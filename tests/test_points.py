"""The reader of one's own faces: what is in the table is what comes out, and every mistake is one sentence."""

import numpy as np
import pytest
from own_set import HEADER, draw_set, points_of, write_layout, write_table

from iact.data import read_faces
from iact.data.points import read_points
from iact.data.synthetic import draw_face
from iact.errors import InputError
from iact.layouts import W300
from iact.plots import save_image

POINTS = ["10", "20", "30", "20.5", "20", "30", "12", "40", "28", "40"]
GOOD = ["a.png", *POINTS]


@pytest.fixture
def root(tmp_path):
    """A folder with a layout and a picture, without a table."""
    write_layout(tmp_path)
    save_image(tmp_path / "a.png", np.zeros((60, 60, 3), np.uint8))
    return tmp_path


def test_drawn_faces_come_back_from_their_table(tmp_path):
    faces = read_faces("points", draw_set(tmp_path, train=3, test=1), "train")
    assert (faces.layout.name, faces.split, faces.missing) == ("five", "train", ())
    for index, face in enumerate(faces.records):
        image, landmarks, _ = draw_face(0, index, W300, 128)
        np.testing.assert_array_equal(face.image.read(), image)
        np.testing.assert_array_equal(face.landmarks, points_of(landmarks))
        assert face.name == f"pictures/train {index}.png:{index + 2}" and face.box is None and face.visible is None
    assert len(read_faces("points", tmp_path, "test")) == 1


def test_columns_stand_in_any_order(root):
    order = np.random.default_rng(0).permutation(len(HEADER))
    write_table(root / "train.csv", [GOOD])
    plain = read_points(root, "train").records[0].landmarks
    write_table(root / "train.csv", [[GOOD[i] for i in order]], [HEADER[i] for i in order])
    np.testing.assert_array_equal(read_points(root, "train").records[0].landmarks, plain)
    np.testing.assert_array_equal(plain, np.reshape(POINTS, (5, 2)).astype(float))


def test_boxes_and_hidden_landmarks_are_read(root):
    header = [*HEADER, "box_x0", "box_y0", "box_x1", "box_y1", "nose_visible"]
    write_table(root / "train.csv", [[*GOOD, 1, 2, 50, 55.5, 0], [*GOOD, 1, 2, 50, 55.5, 1]], header)
    hidden, plain = read_points(root, "train").records
    assert hidden.box.tolist() == [1, 2, 50, 55.5] and hidden.visible.tolist() == [True, True, False, True, True]
    assert plain.visible is None and hidden.image == plain.image and hidden.name != plain.name
    write_table(root / "train.csv", [[*GOOD, 1, 2, 1e30, 55.5, 0]], header)
    with pytest.raises(InputError, match="train.csv:2: the box .* lies far from any picture"):
        read_points(root, "train")


def test_tables_that_spreadsheets_write_are_read(root):
    text = "\r\n".join([",".join(HEADER), ",".join(GOOD), ",,,,,,,,,,", '"a.png",' + ", ".join(POINTS), ""])
    (root / "train.csv").write_text(text, encoding="utf-8-sig", newline="")
    assert [face.name for face in read_points(root, "train").records] == ["a.png:2", "a.png:4"]


def test_paths_from_windows_are_read(root):
    save_image(root / "below" / "b.png", np.zeros((60, 60, 3), np.uint8))
    write_table(root / "train.csv", [["below\\b.png", *POINTS]])
    assert read_points(root, "train").records[0].image.read().shape == (60, 60, 3)


def test_landmarks_of_a_built_in_layout_go_by_index(root):
    (root / "layout.json").write_text('{"name": "300w"}')
    header = ["image", *(f"{index}_{axis}" for index in range(68) for axis in "xy")]
    write_table(root / "train.csv", [["a.png", *range(136)]], header)
    faces = read_points(root, "train")
    assert faces.layout is W300 and faces.records[0].landmarks[67].tolist() == [134, 135]


def changed(column: int, value: str) -> list[str]:
    return [*GOOD[:column], value, *GOOD[column + 1 :]]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (GOOD[:-1], "train.csv:3: expected 11 cells as in the first row, got 10"),
        ([*GOOD, "1"], "train.csv:3: expected 11 cells as in the first row, got 12"),
        (changed(3, "left"), "train.csv:3: right_eye_x should be a finite number, got 'left'"),
        (changed(3, "nan"), "train.csv:3: right_eye_x should be a finite number, got 'nan'"),
        (changed(3, "5230341170645098"), "train.csv:3: landmark 1 lies at [5230341170645098.0, 20.5], far from any"),
        (changed(6, "-inf"), "train.csv:3: nose_y should be a finite number, got '-inf'"),
        (changed(6, ""), "nose_y should be a finite number, got ''; a landmark that is hidden goes where it would be"),
        ([*GOOD[:3], *GOOD[1:3], *GOOD[5:]], "train.csv:3: left_eye and right_eye normalise errors, but are one point"),
        (
            changed(0, "../a.png"),
            "train.csv:3: image should be the path of a picture below this folder, got '../a.png'",
        ),
        (changed(0, "x/../../a.png"), "image should be the path of a picture below this folder"),
        (changed(0, "/etc/passwd"), "image should be the path of a picture below this folder, got '/etc/passwd'"),
        (changed(0, "C:\\a.png"), "image should be the path of a picture below this folder"),
        (changed(0, ""), "image should be the path of a picture below this folder, got ''"),
        (changed(0, "b.png"), "b.png does not exist"),
    ],
    ids=str,
)
def test_a_mistake_in_a_row_names_its_line(row, sentence, root):
    write_table(root / "train.csv", [GOOD, row])
    with pytest.raises(InputError) as caught:
        read_points(root, "train")
    assert sentence in str(caught.value) and f"{root / 'train.csv'}:3: " in str(caught.value)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (HEADER[1:], "train.csv:1: expected a column 'image', got left_eye_x, left_eye_y"),
        (HEADER[:-1], "train.csv:1: expected a column 'mouth_right_y', got image, left_eye_x"),
        ([";".join(HEADER)], "train.csv:1: expected a column 'image', got image;left_eye_x"),
        ([*HEADER, "chin_x"], "train.csv:1: column 'chin_x' is neither a box nor of a landmark of layout five"),
        ([*HEADER, "nose_visble"], "train.csv:1: column 'nose_visble' is neither"),
        ([*HEADER, "nose_x"], "train.csv:1: expected column 'nose_x' once, got it twice"),
        ([*HEADER, "box_x0"], "train.csv:1: expected a column 'box_y0'"),
        ([], "train.csv:1: expected a column 'image', got none"),
    ],
    ids=str,
)
def test_a_mistake_in_the_header_is_named(header, sentence, root):
    write_table(root / "train.csv", [], header)
    with pytest.raises(InputError) as caught:
        read_points(root, "train")
    assert sentence in str(caught.value)


def test_flags_are_0_or_1(root):
    write_table(root / "train.csv", [[*GOOD, "yes"]], [*HEADER, "nose_visible"])
    with pytest.raises(InputError, match="train.csv:2: nose_visible should be 0 or 1, got 'yes'"):
        read_points(root, "train")


def test_what_is_missing_is_named(root):
    with pytest.raises(InputError, match=r"no tables of faces here \(expected train.csv"):
        read_points(root, "train")
    table = write_table(root / "train.csv", [])
    with pytest.raises(InputError, match="train.csv: no face in this table"):
        read_points(root, "train")
    for split in ("test", "../train", "train.csv"):
        with pytest.raises(InputError, match="unknown split '.*' of data set 'points': expected one of train"):
            read_points(root, split)
    table.write_text('image,"nose')
    with pytest.raises(InputError, match="train.csv:1: not a table of comma-separated cells"):
        read_points(root, "train")
    (root / "layout.json").unlink()
    with pytest.raises(InputError, match="layout.json: no such file"):
        read_points(root, "train")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_points(root / "nowhere", "train")


def test_a_missing_picture_may_be_allowed(root):
    write_table(root / "train.csv", [["b.png", *POINTS]])
    assert len(read_points(root, "train", check_images=False)) == 1
