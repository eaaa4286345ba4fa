"""What one would write or pick in place of the ops: plain PyTorch, each formula in the form that serves it best.

The losses compute in float32 whatever the predictions are, as autocast would, and autograd differentiates them. No
function waits for the device, so that all of them compile whole and fit in a CUDA graph."""

import math

import torch
from torch import Tensor

OMEGA, THETA1, THETA2, ALPHA = 14.0, 0.05, 0.5, 2.1  # epsilon is 1
SIGMA = 1.5
RADIUS = 5
TOP = 9


def heatmap_loss(pred: Tensor, landmarks: Tensor, noise: Tensor) -> Tensor:
    """Random rounding, Gaussians, Smooth Wing: the mean loss of heatmaps [B, K, H, W] against landmarks [B, K, 2].

    `noise` [B, K, 2] holds the random numbers of the rounding; `torch.rand` would cost one more small kernel."""
    return smooth_wing_loss(pred, encode(landmarks, noise, *pred.shape[-2:]))


def encode(landmarks: Tensor, noise: Tensor, height: int, width: int) -> Tensor:
    """Gaussians [B, K, H, W] of height 1 on the rounded landmarks, cut at three sigmas along x and y."""
    lower = landmarks.floor()
    centre = lower + (noise < landmarks - lower)
    x = _bell(torch.arange(width, device=landmarks.device) - centre[..., :1])
    y = _bell(torch.arange(height, device=landmarks.device) - centre[..., 1:])
    return y[..., :, None] * x[..., None, :]


def _bell(distance: Tensor) -> Tensor:
    return torch.exp(distance**2 * (-0.5 / SIGMA**2)) * (distance.abs() <= 3 * SIGMA)


def smooth_wing_loss(pred: Tensor, target: Tensor) -> Tensor:
    """The mean Smooth Wing loss."""
    return smooth_wing(pred, target).mean()


def smooth_wing(pred: Tensor, target: Tensor) -> Tensor:
    """Smooth Wing of each pixel; with log1p throughout, without which the inner piece cancels to noise in float32."""
    error = (pred.float() - target).abs()
    exponent = ALPHA - target
    inner_value, inner_slope = _middle_piece(THETA1, exponent)
    square = THETA1**2
    logarithm = math.log1p(square)
    k = (1 + square) * (inner_slope * THETA1 - 2 * inner_value) / (2 * square - 2 * logarithm * (1 + square))
    m = (inner_value - k * logarithm) / square
    inner = k * torch.log1p(error**2) + m * error**2
    return torch.where(error < THETA1, inner, _outer_pieces(error, exponent))


def adaptive_wing_loss(pred: Tensor, target: Tensor) -> Tensor:
    """The mean Adaptive Wing loss (Wang et al. 2019)."""
    return _outer_pieces((pred.float() - target).abs(), ALPHA - target).mean()


def _outer_pieces(error: Tensor, exponent: Tensor) -> Tensor:
    value, slope = _middle_piece(THETA2, exponent)
    return torch.where(error < THETA2, OMEGA * torch.log1p(error**exponent), value + slope * (error - THETA2))


def _middle_piece(error: float, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope of omega ln(1 + error^exponent) at one error."""
    power = error**exponent
    return OMEGA * torch.log1p(power), (OMEGA / error) * exponent * power / (1 + power)


def decode_argmax(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates [B, K, 2] (x, y) and value [B, K] of the brightest pixel."""
    pixels, width = heatmaps.flatten(2), heatmaps.shape[-1]
    if heatmaps.dtype == torch.float32:
        index = pixels.argmax(-1)  # on a CPU twice as fast as `max` in float32, and five times slower in bfloat16
        score = pixels.gather(-1, index[..., None])[..., 0]
    else:
        score, index = pixels.max(-1)
    return torch.stack([index % width, index // width], dim=-1).float(), score.float()


def decode_window(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """The mean position weighted by the non-negative values around the brightest pixel, gathered from there."""
    height, width = heatmaps.shape[-2:]
    peak, score = decode_argmax(heatmaps)
    step = torch.arange(-RADIUS, RADIUS + 1, device=heatmaps.device)
    x, y = peak[..., :1].long() + step, peak[..., 1:].long() + step
    index = y.clamp(0, height - 1)[..., :, None] * width + x.clamp(0, width - 1)[..., None, :]
    values = heatmaps.flatten(2).gather(-1, index.flatten(2)).float().clamp(min=0).view(index.shape)
    along_x = (values * ((y >= 0) & (y < height))[..., :, None]).sum(-2) * ((x >= 0) & (x < width))
    along_y = (values * ((x >= 0) & (x < width))[..., None, :]).sum(-1) * ((y >= 0) & (y < height))
    weighted = torch.stack([(along_x * x).sum(-1), (along_y * y).sum(-1)], dim=-1)
    return weighted / along_x.sum(-1, keepdim=True).clamp(min=1e-12), score


def decode_topk(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """The mean position of the nine brightest pixels, weighted by the softmax of their values (Yu & Tao 2021)."""
    width = heatmaps.shape[-1]
    values, index = heatmaps.flatten(2).topk(TOP, dim=-1)
    weights = torch.softmax(values.float(), dim=-1)
    mean = torch.stack([(weights * (index % width)).sum(-1), (weights * (index // width)).sum(-1)], dim=-1)
    return mean, values[..., 0].float()
