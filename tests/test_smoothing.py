"""One-Euro smoothing of landmarks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iact.errors import InputError
from iact.metrics import normalised_mean_flicker
from iact.predictor import PredictedFace
from iact.video.smoothing import CUTOFF_PER_SPEED, OneEuro, Smoother
from iact.video.tracking import TrackedFace

FACE = np.random.default_rng(0).uniform(0, 100, (68, 2))
SIZE = float(np.sqrt(np.ptp(FACE, axis=0).prod()))
steps = st.lists(st.floats(1e-3, 1), min_size=2, max_size=20)


def smoothed(landmarks: np.ndarray, times: np.ndarray) -> np.ndarray:
    smooth = OneEuro()
    return np.array([smooth(points, time) for points, time in zip(landmarks, times, strict=True)])


@given(steps)
def test_what_rests_stays(durations):
    times = np.cumsum(durations)
    np.testing.assert_allclose(smoothed(np.tile(FACE, (len(times), 1, 1)), times), np.tile(FACE, (len(times), 1, 1)))


@given(steps, st.integers(0, 1000))
def test_nothing_overshoots_what_was_given(durations, seed):
    times, generator = np.cumsum(durations), np.random.default_rng(seed)
    given_points = FACE + generator.normal(0, 5, (len(times), 68, 2))
    found = smoothed(given_points, times)
    assert (found <= np.maximum.accumulate(given_points) + 1e-9).all()
    assert (found >= np.minimum.accumulate(given_points) - 1e-9).all()


def test_after_a_step_it_arrives():
    times = np.arange(90) / 30
    landmarks = np.tile(FACE, (90, 1, 1))
    landmarks[1:] += 20
    distance = np.abs(smoothed(landmarks, times) - landmarks).max(axis=(1, 2))
    assert distance[1] > 0.01 and (np.diff(distance[1:]) <= 1e-9).all() and distance[-1] < 0.05


def test_noise_on_a_face_at_rest_flickers_less_than_half_as_much():
    truth = np.tile(FACE, (120, 1, 1))
    noisy = truth + np.random.default_rng(1).normal(0, 0.003 * SIZE, truth.shape)
    before = normalised_mean_flicker(noisy, truth)
    after = normalised_mean_flicker(smoothed(noisy, np.arange(120) / 30), truth)
    assert after < before / 2


@pytest.mark.parametrize("angle", [0, 10, 45, 90])
def test_landmarks_on_a_line_are_steadied_too(angle):
    eyes = 60 * np.array([[0, 0], [np.cos(np.radians(angle)), np.sin(np.radians(angle))]])
    truth = np.tile(eyes, (120, 1, 1))
    noisy = truth + np.random.default_rng(1).normal(0, 0.003 * 60, truth.shape)
    steadied = np.diff(smoothed(noisy, np.arange(120) / 30), axis=0).std()
    assert steadied < np.diff(noisy, axis=0).std() / 2


@given(st.floats(0.01, 5), st.floats(15, 120))
def test_the_lag_at_any_constant_speed_is_bounded(speed, rate):
    times = np.arange(int(4 * rate)) / rate
    landmarks = FACE + (speed * SIZE * times)[:, None, None] * np.array([0.6, 0.8])
    behind = np.linalg.norm(landmarks - smoothed(landmarks, times), axis=2)[-1]
    assert behind.max() < SIZE / (2 * np.pi * CUTOFF_PER_SPEED)


@given(st.floats(0.01, 100))
def test_near_and_far_faces_are_smoothed_alike(scale):
    times = np.arange(30) / 30
    landmarks = FACE + np.random.default_rng(2).normal(0, 2, (30, 68, 2)).cumsum(axis=0)
    np.testing.assert_allclose(smoothed(scale * landmarks, times), scale * smoothed(landmarks, times), rtol=1e-9)


def test_a_longer_step_takes_more_of_the_new_frame():
    landmarks = np.stack([FACE, FACE + 1])
    moved = [smoothed(landmarks, np.array([0, step]))[1, 0, 0] - FACE[0, 0] for step in (0.01, 0.04, 0.2)]
    assert 0 < moved[0] < moved[1] < moved[2] < 1


@pytest.mark.parametrize("time", [1.0, 0.5, float("nan")])
def test_time_has_to_pass(time):
    smooth = OneEuro()
    smooth(FACE, 1.0)
    with pytest.raises(InputError, match="time: expected seconds after"):
        smooth(FACE, time)


def test_each_face_has_a_filter_that_ends_when_it_leaves():
    def face(id: int, shift: float) -> TrackedFace:
        plain = PredictedFace(np.zeros(4), FACE + shift, np.ones(68))
        return TrackedFace(plain.box, plain.landmarks, plain.scores, id)

    smooth = Smoother()
    smooth([face(0, 0), face(1, 500)], 0.0)
    first, second = smooth([face(1, 501), face(2, 9)], 0.04)
    assert 500 < first.landmarks[0, 0] - FACE[0, 0] < 501 and first.id == 1
    np.testing.assert_array_equal(second.landmarks, FACE + 9)
    np.testing.assert_array_equal(smooth([face(0, 40)], 0.08)[0].landmarks, FACE + 40)
