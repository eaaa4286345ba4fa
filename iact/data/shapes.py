"""Other shapes for the same pictures: how faces differ, learned from landmarks, and a picture bent to such a change."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from iact.geometry import transform_points
from iact.layouts import Layout

MODES = 16  # ways in which shapes differ that are kept: they hold 96 % of the variance of 68 landmarks
SPREAD = 0.6  # standard deviations of a random change in each of them; smoothing takes half of it away
GRID = 33  # points along a side at which the bending is computed; between them it is interpolated
REACH = 0.1  # of the side of the picture: how far a landmark takes its surroundings along
STIFFNESS = 0.3  # the weight with which everything stays where it is, in landmarks
ROUNDS = 8  # of the inversion: each makes the error about four times smaller


@dataclass(frozen=True)
class ShapeModes:
    """The mean shape [K] and the modes [M, K], as complex numbers x + iy; the mean has no offset and norm 1, and a mode
    is the change of one standard deviation."""

    mean: torch.Tensor
    modes: torch.Tensor

    def to(self, device: torch.device) -> "ShapeModes":
        return ShapeModes(self.mean.to(device), self.modes.to(device))


def fit_shape_modes(landmarks: torch.Tensor, layout: Layout) -> ShapeModes:
    """The modes of landmarks [N, K, 2] and their mirror images, brought to one place, size and angle.

    The first, which is the head turning, is kept at 0.3 of its size: a picture does not show the cheek behind."""
    shapes = torch.view_as_complex(landmarks.double().contiguous())
    shapes = torch.cat([shapes, -shapes[:, list(layout.mirror)].conj()])
    shapes = shapes - shapes.mean(1, keepdim=True)
    shapes = shapes / shapes.norm(dim=1, keepdim=True)
    mean = shapes[0]
    for _ in range(5):  # each shape turned to the mean, and the mean anew
        angle = (shapes * mean.conj()).sum(1, keepdim=True)
        shapes = shapes * (angle.conj() / angle.abs().clamp(min=1e-9))
        mean = shapes.mean(0) / shapes.mean(0).norm()
    residuals = torch.view_as_real(shapes - mean).flatten(1)
    _, sizes, directions = torch.linalg.svd(residuals, full_matrices=False)
    modes = directions[:MODES] * (sizes[:MODES, None] / len(residuals) ** 0.5)
    modes = torch.cat([0.3 * modes[:1], modes[1:], modes.new_zeros(MODES - len(modes), modes.shape[1])])
    return ShapeModes(mean.cfloat(), torch.view_as_complex(modes.float().reshape(MODES, -1, 2)))


def random_change(landmarks: torch.Tensor, shapes: ShapeModes, amounts: torch.Tensor) -> torch.Tensor:
    """How far each landmark [B, K, 2] moves, in the same px, when the shape changes by `amounts` [B, MODES] standard
    deviations of each mode."""
    points = torch.view_as_complex(landmarks)
    pose = ((points - points.mean(1, keepdim=True)) * shapes.mean.conj()).sum(1, keepdim=True)  # size and angle
    return torch.view_as_real(pose * (amounts.to(shapes.modes.dtype) @ shapes.modes))


def bending(moved: torch.Tensor, change: torch.Tensor, size: int) -> torch.Tensor:
    """The change [B, 2, GRID, GRID] of a picture of `size` px: near the landmarks `moved` [B, K, 2] their `change`
    [B, K, 2], none far from them, smooth between."""
    ramp = torch.linspace(0, size - 1, GRID, device=moved.device)
    weights = [torch.exp(-0.5 * ((ramp - moved[..., axis, None]) / (REACH * size)) ** 2) for axis in (0, 1)]
    along_x, along_y = weights  # [B, K, GRID]: a Gaussian is the product of two
    sums = torch.einsum("bkc,bky,bkx->bcyx", F.pad(change, (0, 1), value=1.0), along_y, along_x)
    return sums[:, :2] / (sums[:, 2:] + STIFFNESS)


def bend_points(field: torch.Tensor, landmarks: torch.Tensor, inverse: torch.Tensor, size: int) -> torch.Tensor:
    """Where landmarks [B, K, 2] of the source come to lie in the picture [B, K, 2] whose pixel y shows the place
    A y - D(y): `inverse` [B, 2, 3] is the inverse of A, D is the `field` as `enlarged` shows it."""
    points = transform_points(landmarks, inverse)
    for _ in range(ROUNDS):
        place = points[:, :, None] * (2 / (size - 1)) - 1
        there = F.grid_sample(field, place, padding_mode="border", align_corners=True)
        points = transform_points(landmarks + there[..., 0].transpose(1, 2), inverse)
    return points


def enlarged(field: torch.Tensor, size: int) -> torch.Tensor:
    """The field [B, 2, GRID, GRID] at every pixel, [B, size, size, 2]."""
    return F.interpolate(field, (size, size), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
