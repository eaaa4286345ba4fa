import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iact.geometry import crop_matrix, cut, from_heatmap, invert, landmark_box, to_heatmap, transform_points, warp

coordinate = st.floats(-500, 500)
side = st.floats(1, 400)


@given(x=coordinate, y=coordinate, wide=side, high=side, size=st.integers(8, 512), margin=st.floats(1, 2))
def test_crop_centres_the_box_and_leaves_the_margin(x, y, wide, high, size, margin):
    matrix = crop_matrix(np.array([x, y, x + wide, y + high]), size, margin)
    corners = transform_points(np.array([[x, y], [x + wide, y + high]]), matrix)
    np.testing.assert_allclose(corners.mean(0), [(size - 1) / 2] * 2, atol=1e-6)
    assert (corners[1] - corners[0]).max() == pytest.approx(size / margin)


@given(x=coordinate, y=coordinate, wide=side, high=side)
def test_points_come_back_through_the_inverse(x, y, wide, high):
    matrix = crop_matrix(np.array([x, y, x + wide, y + high]), 128)
    points = np.array([[x, y], [x + 3.25, y - 7.5]])
    np.testing.assert_allclose(transform_points(transform_points(points, matrix), invert(matrix)), points, atol=1e-6)


def test_points_transform_alike_in_numpy_and_torch():
    points, matrices = np.random.default_rng(0).normal(size=(5, 7, 2)), np.random.default_rng(1).normal(size=(5, 2, 3))
    expected = torch.from_numpy(points) @ torch.from_numpy(matrices)[:, :, :2].mT
    expected = expected + torch.from_numpy(matrices)[:, None, :, 2]
    np.testing.assert_allclose(transform_points(points, matrices), expected.numpy(), rtol=1e-12)
    torch.testing.assert_close(transform_points(torch.from_numpy(points), torch.from_numpy(matrices)), expected)


def test_heatmap_pixels_are_the_means_of_input_pixels():
    # Heatmap pixel 0 of a stride of 4 covers input pixels 0..3, whose centre is 1.5.
    assert from_heatmap(0.0, 4) == 1.5
    assert to_heatmap(1.5, 4) == 0.0
    points = np.array([[0.0, 127.0], [33.3, -4.0]])
    np.testing.assert_allclose(from_heatmap(to_heatmap(points, 4), 4), points)


def _blob(height: int, width: int, x: float, y: float, spread: float) -> np.ndarray:
    columns, rows = np.arange(width) - x, np.arange(height)[:, None] - y
    bell = 255 * np.exp(-(columns**2 + rows**2) / (2 * spread**2))
    return np.repeat(bell[..., None], 3, axis=2).round().astype(np.uint8)


def _centroid(picture: np.ndarray) -> np.ndarray:
    weight = picture.astype(float)
    rows, columns = np.indices(weight.shape)
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


@pytest.mark.parametrize(("box_side", "size"), [(40, 128), (100, 128), (300, 64), (701, 96)])
def test_cut_puts_a_blob_where_its_point_goes(box_side, size):
    # From enlarging to reducing eleven times: the picture must follow the points to a small share of a pixel.
    x, y = 412.3, 377.8
    image = _blob(800, 900, x, y, spread=box_side / 12)
    box = np.array([x - box_side * 0.4, y - box_side * 0.55, x + box_side * 0.6, y + box_side * 0.45])
    matrix = crop_matrix(box, size)
    expected = transform_points(np.array([[x, y]]), matrix)[0]
    np.testing.assert_allclose(_centroid(cut(image, matrix, size)[..., 0]), expected, atol=0.06)


def test_cut_does_not_alias():
    # A one-pixel checkerboard reduced eight times is grey; sampled without a filter it would stay black and white.
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    small = cut(np.repeat(board[..., None], 3, 2), crop_matrix(np.array([0, 0, 511, 511]), 64, 1.0), 64)
    assert abs(small[4:-4, 4:-4].astype(int) - 127).max() < 12


@pytest.mark.parametrize("box", [[39_000, 20, 39_050, 70], [0, 0, 39_999, 99]])
def test_cut_takes_pictures_wider_than_opencv_warps(box):
    image = np.zeros((100, 40_000, 3), np.uint8)
    image[:, 39_020:39_040] = 255
    assert cut(image, crop_matrix(np.array(box), 128), 128).shape == (128, 128, 3)
    if box[0]:
        assert cut(image, crop_matrix(np.array(box), 128, 1.0), 128)[64].mean() == pytest.approx(255 * 0.4, abs=6)


def test_cut_outside_the_image_is_black():
    image = np.full((50, 60, 3), 200, np.uint8)
    assert not cut(image, crop_matrix(np.array([500, 500, 800, 800]), 64), 64).any()
    half = cut(image, crop_matrix(np.array([-30, 10, 30, 40]), 64, 1.0), 64)
    assert not half[:, :30].any() and (half[32, 34:] == 200).all()


def test_warp_agrees_with_cut():
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    image = np.repeat(np.repeat(image, 8, 0), 8, 1)
    matrix = crop_matrix(np.array([80, 90, 200, 220]), 200)  # enlarging: nothing is reduced first
    picture = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    warped = warp(picture, torch.from_numpy(invert(matrix))[None], 200)[0].permute(1, 2, 0).numpy()
    assert np.abs(warped - cut(image, matrix, 200)).mean() < 0.6


def test_landmark_box_is_tight():
    np.testing.assert_array_equal(landmark_box(np.array([[3.0, 9], [1, 4], [2, 11]])), [1, 4, 3, 11])
