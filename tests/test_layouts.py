import json

import numpy as np
import pytest

from iact.convert import convert_landmarks
from iact.data.synthetic import draw_face
from iact.errors import InputError
from iact.layout_file import layout_fields, parse_layout, read_layout
from iact.layouts import COFW, LAYOUTS, W300, WFLW, find_layout, flip_landmarks

layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)


@layouts
def test_mirror_is_an_involution_over_all_landmarks(layout):
    mirror = np.array(layout.mirror)
    assert len(mirror) == layout.num_landmarks
    np.testing.assert_array_equal(mirror[mirror], np.arange(layout.num_landmarks))


@layouts
def test_mirror_swaps_the_eyes(layout):
    mirror = layout.mirror
    assert tuple(mirror[i] for i in layout.eye_corners) == layout.eye_corners[::-1]
    assert sorted(mirror[i] for i in layout.left_pupil) == sorted(layout.right_pupil)


@layouts
def test_mirror_maps_drawn_lines_onto_drawn_lines(layout):
    def edges(rename):
        return {frozenset((rename(a), rename(b))) for c in layout.curves for a, b in zip(c, c[1:], strict=False)}

    assert edges(lambda i: layout.mirror[i]) == edges(lambda i: i)


def test_landmarks_known_to_mirror_each_other():
    assert LAYOUTS["wflw"].mirror[33] == 46 and LAYOUTS["wflw"].mirror[60] == 72 and LAYOUTS["wflw"].mirror[96] == 97
    assert LAYOUTS["300w"].mirror[0] == 16 and LAYOUTS["300w"].mirror[48] == 54 and LAYOUTS["300w"].mirror[30] == 30
    assert LAYOUTS["cofw"].mirror[4] == 6 and LAYOUTS["cofw"].mirror[20] == 20


@layouts
def test_flipping_twice_is_nothing(layout):
    points = np.random.default_rng(0).uniform(0, 99, (layout.num_landmarks, 2))
    np.testing.assert_allclose(flip_landmarks(flip_landmarks(points, layout, 100), layout, 100), points)
    assert flip_landmarks(np.zeros((layout.num_landmarks, 2)), layout, 100)[0, 0] == 99


def test_unknown_layout_names_the_known_ones():
    with pytest.raises(InputError, match="'70'.*wflw, 300w, cofw"):
        find_layout("70")


FIVE = {
    "name": "five",
    "landmarks": ["left_eye", "right_eye", "nose", "left_mouth", "right_mouth"],
    "mirror": [["right_eye", "left_eye"], ["left_mouth", "right_mouth"]],
    "normaliser": ["left_eye", "right_eye"],
}
WHOLE = {
    **FIVE,
    "pupils": [["left_eye"], ["right_eye", "nose"]],
    "edges": [["left_eye", "nose", "left_eye"], ["left_mouth", "right_mouth"]],
    "box_in_face": [0, -0.08, 0.48],
}


def test_a_layout_file_is_read(tmp_path):
    (tmp_path / "layout.json").write_text(json.dumps(WHOLE), encoding="utf-8-sig")
    layout = read_layout(tmp_path / "layout.json")
    assert (layout.name, layout.num_landmarks, layout.names) == ("five", 5, tuple(FIVE["landmarks"]))
    assert layout.mirror == (1, 0, 2, 4, 3) and layout.eye_corners == (0, 1)
    assert (layout.left_pupil, layout.right_pupil) == ((0,), (1, 2))
    assert layout.curves == ((0, 2, 0), (3, 4)) and layout.box_in_face == (0.0, -0.08, 0.48)


def test_what_a_layout_file_leaves_out_is_plain():
    layout = parse_layout(FIVE, "here")
    assert (layout.left_pupil, layout.right_pupil, layout.curves) == ((0,), (1,), ())
    assert layout.box_in_face == (0.0, 0.0, 1.0)


def test_a_layout_survives_its_text():
    for fields in (FIVE, WHOLE):
        layout = parse_layout(fields, "here")
        assert parse_layout(json.loads(json.dumps(layout_fields(layout))), "there") == layout
    assert parse_layout(layout_fields(WFLW), "here") is WFLW and parse_layout({"name": "300w"}, "here") is W300


def without(key: str) -> dict:
    return {name: value for name, value in FIVE.items() if name != key}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ([], "expected an object with name, landmarks, mirror, normaliser, got []"),
        ({"name": "five"}, "no 'landmarks': expected name, landmarks"),
        (without("mirror"), "no 'mirror'"),
        (without("normaliser"), "no 'normaliser'"),
        ({**FIVE, "mirrors": []}, "unknown field 'mirrors'"),
        ({**FIVE, "name": "300w"}, "name '300w' belongs to a built-in layout"),
        ({**FIVE, "name": ""}, 'name should hold names without spaces around them, got ""'),
        ({**FIVE, "name": "two\nlines"}, "name should hold names"),
        ({**FIVE, "landmarks": 5}, "landmarks should hold a list of at least 2 values, got 5"),
        ({**FIVE, "landmarks": ["left_eye"]}, "landmarks should hold a list of at least 2 values"),
        ({**FIVE, "landmarks": ["left_eye", 7]}, "landmarks should hold names without spaces around them, got 7"),
        ({**FIVE, "landmarks": [*FIVE["landmarks"], "nose"]}, "landmarks should name a landmark only once, got 'nose'"),
        ({**FIVE, "mirror": [["left_eye", "chin"]]}, "mirror should name landmarks of this layout, got 'chin'"),
        ({**FIVE, "mirror": [["left_eye", ["nose"]]]}, "mirror should name landmarks of this layout, got ['nose']"),
        ({**FIVE, "mirror": [["left_eye"]]}, 'mirror should hold a list of 2 values, got ["left_eye"]'),
        ({**FIVE, "mirror": [["nose", "nose"]]}, "mirror should name a landmark only once, got 'nose' twice"),
        ({**FIVE, "mirror": [["nose", "left_eye"], ["right_eye", "nose"]]}, "only once, got 'nose' twice"),
        ({**FIVE, "normaliser": ["nose", "nose"]}, "normaliser should name a landmark only once, got 'nose' twice"),
        ({**FIVE, "normaliser": ["left_eye", "right_eye", "nose"]}, "normaliser should hold a list of 2 values"),
        ({**FIVE, "normaliser": None}, "normaliser should hold a list of 2 values, got null"),
        ({**FIVE, "pupils": [["left_eye"], []]}, "pupils should hold a list of at least 1 values"),
        ({**FIVE, "edges": [["nose"]]}, "edges should hold a list of at least 2 values"),
        ({**FIVE, "edges": {}}, "edges should hold a list of values"),
        ({**FIVE, "box_in_face": [0, 0, 0]}, "box_in_face should be shifts right and down and a side above 0"),
        ({**FIVE, "box_in_face": [0, float("nan"), 1]}, "box_in_face should be shifts"),
        ({**FIVE, "box_in_face": [0, 1]}, "box_in_face should hold a list of 3 values"),
    ],
    ids=str,
)
def test_a_mistake_in_a_layout_is_one_sentence(fields, sentence):
    with pytest.raises(InputError) as caught:
        parse_layout(fields, "layout.json")
    assert str(caught.value).startswith("layout.json: ") and sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"{", b"", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_file_that_is_no_json_is_one_sentence(data, tmp_path):
    (tmp_path / "layout.json").write_bytes(data)
    with pytest.raises(InputError, match="layout.json: expected a landmark layout as JSON"):
        read_layout(tmp_path / "layout.json")
    with pytest.raises(InputError, match="other.json: no such file"):
        read_layout(tmp_path / "other.json")


def test_98_landmarks_become_68():
    """A drawn face has both, but for its place and size in the picture."""
    lids, nearest = [37, 38, 40, 41, 43, 44, 46, 47], [61, 63, 65, 67, 69, 71, 73, 75]
    for index in range(10):
        dense, truth = (draw_face(0, index, layout)[1] for layout in (WFLW, W300))
        scale = np.ptp(truth[:17], axis=0).max() / np.ptp(dense[:33], axis=0).max()
        dense = (dense - dense[16]) * scale + truth[8]
        eyes = np.linalg.norm(truth[36] - truth[45])
        errors = np.linalg.norm(convert_landmarks(dense, WFLW, W300) - truth, axis=-1) / eyes
        assert errors[:17].max() < 0.01 and errors[lids].max() < 0.01 and errors.max() < 0.15
        assert errors[lids].mean() < np.linalg.norm(dense[nearest] - truth[lids], axis=-1).mean() / eyes


def test_conversion_and_mirroring_change_places():
    points = np.random.default_rng(0).uniform(0, 99, (3, 2, 98, 2))
    converted = convert_landmarks(points, WFLW, W300)
    assert converted.shape == (3, 2, 68, 2)
    mirrored = convert_landmarks(flip_landmarks(points, WFLW, 100), WFLW, W300)
    np.testing.assert_allclose(mirrored, flip_landmarks(converted, W300, 100))
    np.testing.assert_array_equal(converted[..., [8, 27, 36, 45, 48], :], points[..., [16, 51, 60, 72, 76], :])


def test_landmarks_are_picked_by_their_names():
    points = np.arange(10.0).reshape(5, 2)
    names = ["right_mouth", "left_eye"]
    two = {"name": "two", "landmarks": names, "mirror": [], "normaliser": names}
    five, picked = parse_layout(FIVE, "here"), parse_layout(two, "here")
    np.testing.assert_array_equal(convert_landmarks(points, five, picked), points[[4, 0]])
    np.testing.assert_array_equal(convert_landmarks(points, five, five), points)


def test_what_cannot_be_converted_is_refused():
    five = parse_layout(FIVE, "here")
    for source, target in ((W300, WFLW), (WFLW, COFW), (five, W300), (W300, five)):
        with pytest.raises(InputError, match=f"'{source.name}' cannot be taken for those of '{target.name}'"):
            convert_landmarks(np.zeros((source.num_landmarks, 2)), source, target)
    with pytest.raises(InputError, match=r"expected \[..., 98, 2\], got shape \(68, 2\)"):
        convert_landmarks(np.zeros((68, 2)), WFLW, W300)
