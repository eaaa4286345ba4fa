"""How shapes of faces differ, and the bending of pictures."""

import numpy as np
import pytest
import torch

from iact.data.shapes import GRID, MODES, bend_points, bending, enlarged, fit_shape_modes, random_change
from iact.data.synthetic import synthetic_faces
from iact.layouts import COFW, W300

SIZE = 128


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    drawn = synthetic_faces(W300, 150, seed=0, size=64, split="train")
    return torch.tensor(np.stack([face.landmarks for face in drawn.records]), dtype=torch.float32)


def test_modes_hold_what_faces_differ_in_but_not_their_pose(faces):
    shapes = fit_shape_modes(faces, W300)
    assert shapes.mean.shape == (68,) and shapes.modes.shape == (MODES, 68)
    size = shapes.modes.abs().pow(2).sum(1)
    size[0] /= 0.09
    assert (size.diff() <= 1e-7).all() and 0.8 < size.sum() / _variance(faces, shapes.mean) < 1.0001
    turned = torch.view_as_real(torch.view_as_complex(faces) * (1.4 + 0.6j) + (30 - 11j)).contiguous()
    again = fit_shape_modes(turned, W300)
    products = (again.modes * shapes.modes.conj()).sum(1).abs() / (shapes.modes.abs().pow(2).sum(1))
    assert (again.mean * shapes.mean.conj()).sum().abs() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(products[:3], torch.ones(3), atol=1e-2, rtol=0)


def _variance(faces: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Of all coordinates of faces brought to one pose, and of their mirror images, which have the same."""
    points = torch.view_as_complex(faces)
    points = points - points.mean(1, keepdim=True)
    points = points / points.norm(dim=1, keepdim=True)
    return 2 - 2 * (points * mean.conj()).sum(1).abs().mean()  # |a - b|^2 of turned unit vectors


def test_mirrored_faces_have_the_same_modes(faces):
    mirrored = faces[:, list(W300.mirror)] * torch.tensor([-1.0, 1.0])
    one, other = fit_shape_modes(faces, W300), fit_shape_modes(mirrored, W300)
    torch.testing.assert_close(one.modes.abs(), other.modes.abs(), atol=1e-4, rtol=1e-3)


def test_few_faces_and_few_landmarks_have_fewer_modes():
    shapes = fit_shape_modes(torch.rand(2, 29, 2), COFW)
    assert shapes.modes.shape == (MODES, 29) and (shapes.modes[4:] == 0).all() and shapes.modes.isfinite().all()


def test_a_change_grows_and_turns_with_the_face(faces):
    shapes = fit_shape_modes(faces, W300)
    amounts = torch.randn(5, MODES, generator=torch.Generator().manual_seed(1))
    change = random_change(faces[:5], shapes, amounts)
    factor = 2 * np.exp(0.5j)
    turned = torch.view_as_real(torch.view_as_complex(faces[:5]) * factor + 3).contiguous()
    expected = torch.view_as_real(torch.view_as_complex(change.contiguous()) * factor)
    torch.testing.assert_close(random_change(turned, shapes, amounts), expected, atol=1e-4, rtol=1e-4)
    assert (random_change(faces[:5], shapes, torch.zeros(5, MODES)) == 0).all()


def test_points_go_where_the_picture_shows_them():
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(3, 29, 2, generator=generator) * 80 + 24
    field = bending(points, 4 * torch.randn(3, 29, 2, generator=generator), SIZE)
    assert field.shape == (3, 2, GRID, GRID) and field.abs().max() > 1
    source = torch.rand(3, 200, 2, generator=generator) * 90 + 18
    identity = torch.eye(2, 3).expand(3, -1, -1)
    found = bend_points(field, source, identity, SIZE)
    whole = enlarged(field, SIZE)
    assert whole.shape == (3, SIZE, SIZE, 2)
    for picture, there, here in zip(whole, found, source, strict=True):
        back = there - _sampled(picture, there)
        assert (back - here).abs().max() < 0.02


def _sampled(picture: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The values [N, 2] of a field [S, S, 2] at points [N, 2], bilinearly."""
    low = points.floor().long().clamp(0, SIZE - 2)
    (x, y), (u, v) = low.unbind(-1), (points - low).unbind(-1)
    upper = picture[y, x] * (1 - u)[:, None] + picture[y, x + 1] * u[:, None]
    lower = picture[y + 1, x] * (1 - u)[:, None] + picture[y + 1, x + 1] * u[:, None]
    return upper * (1 - v)[:, None] + lower * v[:, None]
