"""Training losses over predicted heatmaps: the heatmap's own, and one on the coordinates it decodes to."""

import math
from typing import Literal

import torch
import torch.nn.functional as F

from iact import heatmaps as codec
from iact import ops

HeatmapLoss = Literal["smooth_wing", "adaptive_wing", "mse"]
CoordinateLoss = Literal["smooth_l1", "wing"]


def mse_loss(
    pred: torch.Tensor, landmarks: torch.Tensor, visible: torch.Tensor | None, sigma: float, seed: torch.Tensor | None
) -> torch.Tensor:
    """Mean squared error (scalar) of heatmaps [B, K, H, W] against Gaussians on landmarks [B, K, 2] in heatmap px."""
    target = codec.encode_heatmaps(landmarks, *pred.shape[-2:], sigma, seed)
    error = (pred.float() - target) ** 2
    return (error if visible is None else error * visible[..., None, None]).mean()


def wing_loss(pred: torch.Tensor, target: torch.Tensor, width: float, curvature: float) -> torch.Tensor:
    """The Wing loss of each coordinate (Feng et al. 2018, eq. 5), in the px that `width` and `curvature` are in."""
    error = (pred - target).abs()
    offset = width - width * math.log1p(width / curvature)
    return torch.where(error < width, width * torch.log1p(error / curvature), error - offset)


def coordinate_loss(
    pred: torch.Tensor,
    landmarks: torch.Tensor,
    visible: torch.Tensor | None,
    radius: int,
    kind: CoordinateLoss = "smooth_l1",
) -> torch.Tensor:
    """The mean loss (scalar, heatmap px) between landmarks [B, K, 2] and what the heatmaps [B, K, H, W] decode to.

    The decoding is the window mean of inference, differentiated at a fixed window. "smooth_l1" has its knee at 0.3
    heatmap px; "wing" has the published 10 and 2 px of a 256 px input, which are 2.5 and 0.5 heatmap px."""
    peak, _ = ops.decode_heatmaps(pred.detach(), method="argmax")
    decoded = codec.window_mean(pred, peak, radius)
    if kind == "wing":
        error = wing_loss(decoded, landmarks, width=2.5, curvature=0.5)
    else:
        error = F.smooth_l1_loss(decoded, landmarks, beta=0.3, reduction="none")
    error = error.sum(-1)
    return (error if visible is None else error * visible).mean()


def landmark_loss(
    pred: torch.Tensor,
    landmarks: torch.Tensor,
    centres: torch.Tensor,
    visible: torch.Tensor | None,
    *,
    kind: HeatmapLoss,
    sigma: float,
    map_factor: float,
    coordinates: CoordinateLoss,
    coordinate_weight: float,
) -> torch.Tensor:
    """What the trainer minimises (scalar): the heatmap loss, plus the weighted loss of the coordinates.

    `centres` [B, K, 2] are the landmarks rounded to whole heatmap px, on which the target's Gaussians stand."""
    # any seed: there is nothing left to round, but it says that the Gaussians end at 3 sigma
    seed = torch.zeros((), dtype=torch.int64, device=pred.device)
    if kind == "mse":
        loss = mse_loss(pred, centres, visible, sigma, seed)
    else:
        loss = ops.heatmap_loss(pred, centres, visible, kind=kind, sigma=sigma, seed=seed, map_factor=map_factor)
    if coordinate_weight:
        radius = codec.window_radius(sigma)
        loss = loss + coordinate_weight * coordinate_loss(pred, landmarks, visible, radius, coordinates)
    return loss
