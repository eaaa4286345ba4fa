"""The flicker metric, against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iact.errors import InputError
from iact.metrics import normalised_mean_flicker

SQUARE = np.array([(0, 0), (100, 0), (0, 100), (100, 100)], np.float64)


def still(frames: int) -> np.ndarray:
    return np.tile(SQUARE, (frames, 1, 1))


def test_one_landmark_that_jumps_there_and_back():
    predicted = still(3)
    predicted[1, 0] += (3, 4)  # 5 px of 100 away, then back: two changes of 5 % for one landmark of four
    assert normalised_mean_flicker(predicted, still(3)) == pytest.approx(100 * np.sqrt(2 * 0.05**2 / 8))


def test_each_change_counts_in_sizes_of_its_own_frame():
    truth = np.stack([SQUARE, SQUARE * (2, 0.5), SQUARE * 4])  # sqrt(width x height) is 100, 100 and 400
    predicted = truth + np.array([0, 2, 10])[:, None, None] * np.array([1.0, 0.0])
    assert normalised_mean_flicker(predicted, truth) == pytest.approx(100 * np.sqrt((0.02**2 + 0.02**2) / 2))


def test_neither_a_constant_error_nor_motion_flickers():
    truth = still(5) + np.arange(5)[:, None, None] ** 2
    assert normalised_mean_flicker(truth + (7, -3), truth) == 0


@given(st.floats(0.1, 50), st.integers(0, 1000))
def test_the_size_of_the_picture_does_not_matter(scale, seed):
    generator = np.random.default_rng(seed)
    truth = still(4) + generator.normal(0, 5, (4, 4, 2))
    predicted = truth + generator.normal(0, 2, (4, 4, 2))
    expected = normalised_mean_flicker(predicted, truth)
    assert expected > 0 and normalised_mean_flicker(scale * predicted, scale * truth) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predicted", "truth", "words"),
    [
        (still(1), still(1), "2 frames or more"),
        (still(3), still(4), "as truth has"),
        (still(2)[:, :2], still(2)[:, :2], "above zero"),  # on one line
        (still(2) * np.nan, still(2), "predicted: expected finite numbers"),
    ],
)
def test_frames_that_cannot_be_compared_are_refused(predicted, truth, words):
    with pytest.raises(InputError, match=words):
        normalised_mean_flicker(predicted, truth)
