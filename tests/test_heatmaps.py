import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iact import ops
from iact.heatmaps import dilated_weight, encode_heatmaps, round_randomly, uniform, window_radius

SEED = torch.tensor(1234)


def _expected_heatmaps(landmarks: torch.Tensor, size: int, sigma: float) -> torch.Tensor:
    """What a perfect network learns: the mean of the targets over the four ways of rounding, by their probability."""
    lower = landmarks.floor()
    fraction = landmarks - lower
    total = torch.zeros(*landmarks.shape[:2], size, size)
    for up in ((0, 0), (0, 1), (1, 0), (1, 1)):
        up = torch.tensor(up)
        probability = torch.where(up.bool(), fraction, 1 - fraction).prod(-1)
        # whole coordinates are not moved by rounding, so any seed will do
        total += probability[..., None, None] * encode_heatmaps(lower + up, size, size, sigma, SEED)
    return total


@given(st.integers(0, 2**31), st.sampled_from([1.0, 1.5, 2.0]))
@settings(max_examples=25, deadline=None)
def test_round_trip_of_a_perfect_heatmap_errs_by_less_than_a_hundredth_pixel(seed, sigma):
    landmarks = torch.rand(4, 9, 2, generator=torch.Generator().manual_seed(seed)) * 48 + 8
    heatmaps = _expected_heatmaps(landmarks, 64, sigma)
    decoded, scores = ops.decode_heatmaps(heatmaps, radius=window_radius(sigma))
    assert (decoded - landmarks).abs().max() < 0.01
    assert (scores > 0.4).all() and (scores <= 1).all()


def test_round_trip_of_an_exact_gaussian():
    landmarks = torch.rand(8, 98, 2, generator=torch.Generator().manual_seed(0)) * 48 + 8
    decoded, _ = ops.decode_heatmaps(encode_heatmaps(landmarks, 64, 64))
    assert (decoded - landmarks).abs().max() < 0.01


def test_random_rounding_is_unbiased_and_reaches_both_neighbours():
    landmarks = torch.tensor([[[10.25, 40.75]]]).expand(1, 20000, 2)
    rounded = round_randomly(landmarks, SEED)
    assert set(rounded[..., 0].unique().tolist()) == {10.0, 11.0}
    assert (rounded.mean(1) - landmarks[:, 0]).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 20000)


def test_whole_coordinates_are_not_moved():
    landmarks = torch.tensor([[[3.0, 7.0], [0.0, -2.0]]])
    for seed in range(50):
        torch.testing.assert_close(round_randomly(landmarks, torch.tensor(seed)), landmarks)


def test_rounding_draws_anew_for_every_seed_and_repeats_for_the_same():
    landmarks = torch.full((16, 98, 2), 5.5)
    first, second = round_randomly(landmarks, torch.tensor(1)), round_randomly(landmarks, torch.tensor(2))
    assert 0.4 < (first != second).float().mean() < 0.6
    assert torch.equal(first, round_randomly(landmarks, torch.tensor(1)))
    assert not torch.equal(first, round_randomly(landmarks, torch.tensor(1 + 2**32)))  # the high word counts too


def test_uniform_numbers_are_uniform_and_known():
    numbers = uniform(SEED, (100_000,), torch.device("cpu"))
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers, 20, 0, 1)
    assert ((counts - 5000).abs() < 5 * math.sqrt(5000)).all()
    pairs = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]
    assert abs(pairs) < 0.015
    expected = [_reference_uniform(1234, index) for index in range(5)]
    np.testing.assert_array_equal(numbers[:5].numpy(), np.array(expected, np.float32))


def _reference_uniform(seed: int, index: int) -> float:
    """The hash in plain integers, to hold every other implementation to the same bits."""

    def mix(x):
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        return x ^ (x >> 16)

    return (mix(index ^ mix(mix(seed & 0xFFFFFFFF) ^ (seed >> 32))) >> 8) / 2**24


def test_target_outside_the_map_is_empty():
    assert not encode_heatmaps(torch.tensor([[[-20.0, 5.0], [70.0, 90.0]]]), 32, 32, seed=SEED).any()


def test_target_is_an_exact_zero_away_from_its_landmark():
    heatmap = encode_heatmaps(torch.tensor([[[16.0, 10.0]]]), 32, 32, seed=SEED)[0, 0]
    assert heatmap[10, 16] == 1 and heatmap[10, 20] > 0 and heatmap[10, 21] == 0 and heatmap[15, 16] == 0
    assert heatmap.count_nonzero() == 9 * 9


def test_weight_map_covers_the_landmark_and_its_surroundings():
    weight = dilated_weight(encode_heatmaps(torch.tensor([[[16.0, 10.0]]]), 32, 32), factor=10)
    assert weight[0, 0, 10, 16] == 11 and weight[0, 0, 10, 19] == 11 and weight[0, 0, 10, 23] == 1
