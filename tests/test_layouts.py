import numpy as np
import pytest

from iact.errors import InputError
from iact.layouts import LAYOUTS, find_layout, flip_landmarks

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
