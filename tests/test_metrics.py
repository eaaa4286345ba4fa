import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import simpson
from scipy.stats import binomtest

from iact.errors import InputError
from iact.layouts import COFW, LAYOUTS, W300, WFLW
from iact.metrics import (
    areas,
    auc,
    bootstrap_interval,
    box_size,
    ced,
    failure_rate,
    failures,
    interocular,
    interpupil,
    landmark_distances,
    nme,
    rate_interval,
    usable_normaliser,
)

errors_per_face = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 25))
shapes = arrays(np.float64, (3, 5, 2), elements=st.floats(-100, 100))


def test_nme_by_hand():
    truth = np.zeros((2, 2, 2))
    predicted = np.array([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])  # distances 5, 0 and 1, 1
    assert nme(predicted, truth, np.array([10.0, 4.0])) == pytest.approx([25.0, 25.0])


def test_nme_is_a_mean_per_face_and_not_pooled():
    predicted = np.array([[[1.0, 0.0]], [[1.0, 0.0]]])
    errors = nme(predicted, np.zeros((2, 1, 2)), np.array([10.0, 100.0]))
    assert errors.mean() == pytest.approx((10 + 1) / 2)
    pooled = 100 * 2 / (10 + 100)
    assert errors.mean() != pytest.approx(pooled)


@settings(max_examples=50, deadline=None)
@given(shapes, shapes, st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(0.01, 100))
def test_nme_ignores_where_and_how_large_the_face_is(predicted, truth, dx, dy, scale):
    truth[:, 1] = truth[:, 0] + (50, 0)
    corners = dataclasses.replace(COFW, num_landmarks=5, eye_corners=(0, 1))
    moved_predicted, moved_truth = scale * predicted + (dx, dy), scale * truth + (dx, dy)
    expected = nme(predicted, truth, interocular(truth, corners))
    assert nme(moved_predicted, moved_truth, interocular(moved_truth, corners)) == pytest.approx(expected, abs=1e-6)


def test_normalisers_by_hand():
    truth = np.zeros((1, 98, 2))
    truth[0, 60], truth[0, 72] = (10, 20), (40, 60)
    truth[0, 96], truth[0, 97] = (0, 0), (5, 12)
    assert interocular(truth, WFLW) == pytest.approx([50.0])
    assert interpupil(truth, WFLW) == pytest.approx([13.0])
    assert box_size(truth) == pytest.approx([np.sqrt(40 * 60)])


def test_a_pupil_of_300w_is_the_mean_of_six_landmarks():
    truth = np.zeros((1, 68, 2))
    truth[0, 36:42, 0] = (0, 1, 2, 3, 4, 5)
    truth[0, 42:48, 0] = (10, 11, 12, 13, 14, 18)
    assert interpupil(truth, W300) == pytest.approx([13.0 - 2.5])
    assert interocular(truth, W300) == pytest.approx([13.0])  # landmarks 36 and 45


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_normalisers_are_the_same_on_the_mirrored_face(layout):
    truth = np.random.default_rng(0).uniform(0, 100, (4, layout.num_landmarks, 2))
    mirrored = truth[:, list(layout.mirror)] * (-1, 1)
    assert interocular(mirrored, layout) == pytest.approx(interocular(truth, layout))
    assert interpupil(mirrored, layout) == pytest.approx(interpupil(truth, layout))


def test_a_profile_face_has_no_usable_normaliser():
    truth = np.zeros((4, 3, 2))
    truth[:, 2] = (0, 200)  # box side 200 px: the bound is 0.2 px
    assert usable_normaliser(np.array([0.0, 0.19, 0.21, np.nan]), truth).tolist() == [False, False, True, False]
    assert not usable_normaliser(np.zeros(1), np.ones((1, 3, 2))).any()  # all landmarks in one point


@pytest.mark.parametrize("normaliser", [0.0, -1.0, np.nan, np.inf])
def test_nme_refuses_a_useless_normaliser_and_names_the_face(normaliser):
    with pytest.raises(InputError, match=r"normaliser: .*\(faces 1\)"):
        nme(np.zeros((2, 5, 2)), np.zeros((2, 5, 2)), np.array([1.0, normaliser]))


def test_failure_rate_counts_faces_strictly_above():
    assert failure_rate([1.0, 10.0, 10.001, 50.0], 10) == 50.0


@settings(max_examples=50, deadline=None)
@given(errors_per_face, st.floats(0.5, 20))
def test_failure_rate_moves_in_steps_of_one_face_and_completes_the_ced(errors, threshold):
    rate = failure_rate(errors, threshold)
    assert rate * len(errors) / 100 == pytest.approx(round(rate * len(errors) / 100), abs=1e-9)
    assert rate == pytest.approx(100 * (1 - ced(errors, [threshold])[0]), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(errors_per_face)
def test_ced_rises_from_its_share_of_perfect_faces_to_one(errors):
    shares = ced(errors, np.linspace(0, 25, 101))
    assert (np.diff(shares) >= 0).all()
    assert shares[0] == np.mean(errors == 0) and shares[-1] == 1


def test_ced_by_hand():
    assert ced([4.0, 1.0, 2.0, 2.0], [0, 1, 1.5, 2, 9]) == pytest.approx([0, 0.25, 0.25, 0.75, 1])


@pytest.mark.parametrize("threshold", [5, 7, 8, 10])
@pytest.mark.parametrize("first", [1, 2, 137, 300, 498])
def test_auc_of_a_constant_error_has_a_closed_form(first, threshold):
    """Simpson over n steps of a jump to one at sample m is (n - m + 1/3) steps for even m and (n - m + 2/3) for odd."""
    error = (first - 0.5) * 0.01
    tail = round(threshold / 0.01) - first + (2 / 3 if first % 2 else 1 / 3)
    assert auc(np.full(7, error), threshold) == pytest.approx(tail * 0.01 / threshold, abs=1e-12)


@pytest.mark.parametrize("threshold", [0.2, 5, 8, 10])
def test_auc_is_simpsons_rule_on_the_curve(threshold):
    errors = np.random.default_rng(0).lognormal(1.5, 0.7, 200)
    thresholds = np.linspace(0, threshold, round(100 * threshold) + 1)
    expected = simpson(ced(errors, thresholds), x=thresholds) / threshold
    assert auc(errors, threshold) == pytest.approx(expected, abs=1e-12)


def test_what_each_face_adds_has_the_metric_as_its_mean():
    errors = np.array([0.0, 3.0, 9.99, 10.0, 10.01, np.inf])
    assert failures(errors, 10).tolist() == [0, 0, 0, 0, 100, 100]
    assert areas(errors, 10) == pytest.approx([1, 0.7, 0.001, 0, 0, 0], abs=1e-3)
    assert failure_rate(errors, 10) == failures(errors, 10).mean() and auc(errors, 10) == areas(errors, 10).mean()


def test_a_face_that_was_not_found_is_a_failure_at_any_threshold():
    assert failure_rate([1.0, np.inf], 1e6) == 50 and auc([0.0, np.inf], 10) == pytest.approx(0.5)
    assert ced([1.0, np.inf], [1e9]) == 0.5


def test_tensors_are_measured_as_arrays_are():
    """What a trainer holds on its device has the numbers that files have, and stays there."""
    predicted, truth = np.random.default_rng(0).uniform(0, 100, (2, 5, 98, 2))
    for measure in (partial(interocular, layout=WFLW), partial(interpupil, layout=WFLW), box_size):
        found = measure(torch.from_numpy(truth))
        assert isinstance(found, torch.Tensor)
        np.testing.assert_allclose(found, measure(truth), rtol=1e-13)
        expected = nme(predicted, truth, measure(truth))
        errors = nme(torch.from_numpy(predicted), torch.from_numpy(truth), found)
        assert isinstance(errors, torch.Tensor)
        np.testing.assert_allclose(errors, expected, rtol=1e-13)
        tiny = found * torch.tensor([1, 1e-9, 1, np.nan, 1])
        usable = usable_normaliser(tiny, torch.from_numpy(truth))
        assert isinstance(usable, torch.Tensor) and usable.tolist() == [True, False, True, False, True]


def test_bad_tensors_are_refused_as_arrays_are():
    good, bad = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2)
    bad[1, 2, 0] = torch.nan
    with pytest.raises(InputError, match="predicted: expected finite numbers, got nan for landmark 2 of face 1"):
        nme(bad, good, torch.ones(2))
    with pytest.raises(InputError, match=r"expected the shape of truth, \(2, 3, 2\), got \(1, 3, 2\)"):
        nme(good[:1], good, torch.ones(2))
    with pytest.raises(InputError, match=r"above zero, got 0.0 \(faces 1\)"):
        nme(good, good, torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match=r"normaliser: expected shape \(2,\), one per face, got \(3,\)"):
        nme(good, good, torch.ones(3))
    with pytest.raises(InputError, match="predicted: expected ndarray, as the truth is, got Tensor"):
        nme(good, good.numpy(), np.ones(2))
    with pytest.raises(InputError, match="normaliser: expected Tensor, as the truth is, got ndarray"):
        nme(good, good, np.ones(2))


def test_auc_at_its_ends():
    assert auc(np.zeros(3), 10) == pytest.approx(1)
    assert auc(np.full(3, 10.5), 10) == 0


@pytest.mark.parametrize("threshold", range(1, 31))
def test_auc_does_not_look_past_the_threshold(threshold):
    """`np.arange(0, t + 0.01, 0.01)` ends one step late for t = 16 to 20, where this face would count."""
    assert auc([threshold + 0.005], threshold) == 0


@settings(max_examples=50, deadline=None)
@given(errors_per_face, st.sampled_from([5, 7, 8, 10]))
def test_auc_is_the_area_under_the_curve(errors, threshold):
    exact = np.maximum(0, 1 - errors / threshold).mean()
    fine = np.linspace(0, threshold, 200_001)
    assert np.trapezoid(ced(errors, fine), fine) / threshold == pytest.approx(exact, abs=2e-5)
    assert auc(errors, threshold) == pytest.approx(exact, abs=0.01 / threshold)  # one step


def test_bootstrap_interval_holds_the_mean_and_has_its_known_width():
    values = np.random.default_rng(0).normal(4, 1, 400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(400), rel=0.08)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)


def test_bootstrap_interval_shrinks_with_faces_and_grows_with_the_level():
    values = np.random.default_rng(0).normal(4, 1, 1600)
    low, high = bootstrap_interval(values[:100])
    many_low, many_high = bootstrap_interval(values)
    assert (many_high - many_low) == pytest.approx((high - low) / 4, rel=0.25)
    low_99, high_99 = bootstrap_interval(values[:100], level=99)
    assert low_99 < low and high < high_99


@pytest.mark.parametrize("faces", [3, 400])
def test_the_quick_bootstrap_of_a_mean_is_the_plain_one(faces):
    values = np.random.default_rng(0).normal(4, 1, faces)
    plain = bootstrap_interval(values, lambda sample: np.mean(sample))
    assert bootstrap_interval(values) == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("failed, faces", [(0, 1), (0, 330), (3, 20), (20, 20), (41, 689)])
def test_rate_interval_is_wilsons(failed, faces):
    values = 100.0 * (np.arange(faces) < failed)
    expected = binomtest(failed, faces).proportion_ci(0.9, "wilson")
    assert rate_interval(values, 90) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


def test_bootstrap_interval_of_another_statistic():
    values = np.random.default_rng(0).lognormal(1.5, 0.5, 300)
    low, high = bootstrap_interval(values, lambda sample: failure_rate(sample, 10), resamples=500)
    assert low < failure_rate(values, 10) < high


faces = np.ones((2, 5, 2))
broken = faces.copy()
broken[1, 3, 0] = np.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nme(faces[:1], faces, np.ones(2)), r"predicted: expected the shape of truth, \(2, 5, 2\)"),
        (lambda: nme(faces[:, :4], faces, np.ones(2)), r"predicted: .*got \(2, 4, 2\)"),
        (lambda: nme(faces, faces[0], np.ones(2)), r"truth: expected landmarks \[N, 5?K?, 2\], got .*\(5, 2\)"),
        (
            lambda: nme(broken, faces, np.ones(2)),
            "predicted: expected finite numbers, got nan for landmark 3 of face 1",
        ),
        (lambda: nme(faces, broken, np.ones(2)), "truth: .*nan for landmark 3 of face 1"),
        (lambda: nme(faces, faces, np.ones(3)), r"normaliser: expected shape \(2,\).*got \(3,\)"),
        (lambda: nme(faces, faces, 1.0), r"normaliser: expected shape \(2,\)"),
        (lambda: nme("faces", faces, np.ones(2)), "predicted: expected an array of numbers, got str"),
        (lambda: landmark_distances([[[1, 2]], [[1]]], faces), "predicted: expected an array of numbers, got list"),
        (lambda: interocular(faces, W300), r"truth: expected landmarks \[N, 68, 2\]"),
        (lambda: interpupil(faces, WFLW), r"truth: expected landmarks \[N, 98, 2\]"),
        (lambda: usable_normaliser(np.ones(3), faces), r"normaliser: expected shape \(2,\)"),
        (lambda: failure_rate([], 10), "nme: expected one number per face"),
        (lambda: failure_rate([1, np.nan], 10), r"nme: .*nan at \[1\]"),
        (lambda: auc([[1.0]], 10), r"nme: expected one number per face.*\(1, 1\)"),
        (lambda: auc([1.0], 0), "threshold: expected percent above zero, got 0"),
        (lambda: failure_rate([1.0], np.nan), "threshold: .*got nan"),
        (lambda: bootstrap_interval([np.inf]), r"values: .*inf at \[0\]"),
        (lambda: bootstrap_interval([1.0], level=100), "level: .*got 100"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_layout_without_pupils_is_named():
    blind = dataclasses.replace(COFW, name="blind", left_pupil=())
    with pytest.raises(InputError, match="'blind' names no pupils"):
        interpupil(np.ones((1, 29, 2)), blind)
