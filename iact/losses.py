"""Training losses over predicted heatmaps: the heatmap's own, and one on the coordinates it decodes to."""

from typing import Literal

import torch
import torch.nn.functional as F

from iact import heatmaps as codec
from iact import ops

HeatmapLoss = Literal["smooth_wing", "adaptive_wing", "mse"]


def mse_loss(
    pred: torch.Tensor, landmarks: torch.Tensor, visible: torch.Tensor | None, sigma: float, seed: torch.Tensor | None
) -> torch.Tensor:
    """Mean squared error (scalar) of heatmaps [B, K, H, W] against Gaussians on landmarks [B, K, 2] in heatmap px."""
    target = codec.encode_heatmaps(landmarks, *pred.shape[-2:], sigma, seed)
    error = (pred.float() - target) ** 2
    return (error if visible is None else error * visible[..., None, None]).mean()


def wing_loss(pred: torch.Tensor, target: torch.Tensor, width: float = 10.0, curvature: float = 2.0) -> torch.Tensor:
    """Mean Wing loss (Feng et al. 2018, eq. 5) of coordinates of any shape, in px of the network's input."""
    error = (pred - target).abs()
    offset = width - width * torch.log1p(torch.tensor(width / curvature))
    return torch.where(error < width, width * torch.log1p(error / curvature), error - offset).mean()


def coordinate_loss(
    pred: torch.Tensor, landmarks: torch.Tensor, visible: torch.Tensor | None, radius: int, knee: float
) -> torch.Tensor:
    """Mean smooth-L1 (scalar, heatmap px) between landmarks [B, K, 2] and what the heatmaps [B, K, H, W] decode to.

    The decoding is the window mean of inference, differentiated at a fixed window."""
    peak, _ = codec.brightest_pixel(pred.detach())
    decoded = codec.window_mean(pred, peak, radius)
    error = F.smooth_l1_loss(decoded, landmarks, beta=knee, reduction="none").sum(-1)
    return (error if visible is None else error * visible).mean()


def landmark_loss(
    pred: torch.Tensor,
    landmarks: torch.Tensor,
    visible: torch.Tensor | None,
    *,
    kind: HeatmapLoss,
    sigma: float,
    map_factor: float,
    coordinate_weight: float,
    seed: torch.Tensor,
) -> torch.Tensor:
    """What the trainer minimises (scalar): the heatmap loss with random rounding, plus the weighted coordinate loss."""
    if kind == "mse":
        loss = mse_loss(pred, landmarks, visible, sigma, seed)
    else:
        loss = ops.heatmap_loss(pred, landmarks, visible, kind=kind, sigma=sigma, seed=seed, map_factor=map_factor)
    if coordinate_weight:
        radius = codec.window_radius(sigma)
        loss = loss + coordinate_weight * coordinate_loss(pred, landmarks, visible, radius, knee=0.3)
    return loss
