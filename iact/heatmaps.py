"""The heatmap codec in plain PyTorch: landmarks -> heatmaps -> landmarks (Yu & Tao 2021, as the paper uses it).

Everything is in heatmap px, pixel centres at integers. These functions define what the ops compute."""

import math
from typing import Literal

import torch

DecodeMethod = Literal["argmax", "window", "topk"]
SIGMA = 1.5  # heatmap px
REACH = 3.0  # sigmas along x or y beyond which the Gaussian of a rounded landmark is an exact zero
_WORD = 0xFFFFFFFF


def window_radius(sigma: float = SIGMA) -> int:
    """The smallest window around the maximum that holds both Gaussians a rounded landmark may draw, whole."""
    return math.floor(REACH * sigma) + 1


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A 32-bit integer hash with full avalanche (xorshift-multiply), on int64: the same bits on every device."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def uniform(seed: torch.Tensor, shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Numbers in [0, 1), float32, that depend on the seed (int64, 0-d) and their position alone."""
    key = _mix(_mix(seed & _WORD) ^ ((seed >> 32) & _WORD))
    index = torch.arange(math.prod(shape), device=device)
    return ((_mix(index ^ key) >> 8).float() / (1 << 24)).reshape(shape)


def round_randomly(landmarks: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Each coordinate rounded up with a probability equal to its fraction, so that its expectation is itself."""
    lower = landmarks.floor()
    return lower + (uniform(seed, landmarks.shape, landmarks.device) < landmarks - lower)


def encode_heatmaps(
    landmarks: torch.Tensor, height: int, width: int, sigma: float = SIGMA, seed: torch.Tensor | None = None
) -> torch.Tensor:
    """Heatmaps [B, K, H, W], float32: a Gaussian of height 1 on each of the landmarks [B, K, 2].

    With a seed (int64, 0-d) the landmarks are rounded at random first and the Gaussian is cut at `REACH`. Without, it
    is centred exactly and whole: cut between two pixels it would lean to one side."""
    centres, reach = landmarks.float(), math.inf
    if seed is not None:
        centres, reach = round_randomly(centres, seed.to(landmarks.device)), REACH * sigma
    x = _bell(torch.arange(width, device=landmarks.device), centres[..., 0], sigma, reach)
    y = _bell(torch.arange(height, device=landmarks.device), centres[..., 1], sigma, reach)
    return y[..., :, None] * x[..., None, :]


def _bell(pixels: torch.Tensor, centre: torch.Tensor, sigma: float, reach: float) -> torch.Tensor:
    distance = pixels - centre[..., None]
    return torch.exp(-0.5 * (distance / sigma) ** 2) * (distance.abs() <= reach)


def dilated_weight(heatmaps: torch.Tensor, factor: float, threshold: float = 0.2) -> torch.Tensor:
    """Adaptive Wing's weight map: 1 + factor where the heatmap, dilated by 3x3, reaches the threshold; 1 elsewhere."""
    dilated = torch.nn.functional.max_pool2d(heatmaps, 3, stride=1, padding=1)
    return 1 + factor * (dilated >= threshold)


def window_mean(heatmaps: torch.Tensor, centre: torch.Tensor, radius: int) -> torch.Tensor:
    """The mean position [B, K, 2], weighted by the non-negative values within `radius` of centre [B, K, 2].

    Differentiable with respect to the heatmaps. Where nothing in the window is positive, it is the centre itself."""
    height, width = heatmaps.shape[-2:]
    x = torch.arange(width, device=heatmaps.device)
    y = torch.arange(height, device=heatmaps.device)
    inside_x = (x - centre[..., 0, None]).abs() <= radius
    inside_y = (y - centre[..., 1, None]).abs() <= radius
    values = heatmaps.float().clamp(min=0)
    along_x = (values * inside_y[..., :, None]).sum(-2) * inside_x
    along_y = (values * inside_x[..., None, :]).sum(-1) * inside_y
    total = along_x.sum(-1)
    mean = torch.stack([(along_x * x).sum(-1), (along_y * y).sum(-1)], dim=-1) / total.clamp(min=1e-12)[..., None]
    return torch.where(total[..., None] > 1e-12, mean, centre.float())


def brightest_pixel(heatmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates [B, K, 2] (float32) of each map's maximum and its value [B, K]; the lowest index wins a tie."""
    width = heatmaps.shape[-1]
    index = heatmaps.flatten(2).argmax(dim=-1)
    score = heatmaps.flatten(2).gather(-1, index[..., None])[..., 0]
    return torch.stack([index % width, index // width], dim=-1).float(), score


def decode_heatmaps(
    heatmaps: torch.Tensor, method: DecodeMethod, radius: int, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates [B, K, 2] (x, y) in heatmap px and scores [B, K] (the maximum), both float32.

    "window": mean weighted by the non-negative values within `radius` of the maximum. "topk": mean of the k largest
    pixels weighted by the softmax of their values (H3R). A NaN pixel counts as minus infinity."""
    heatmaps = heatmaps.float()
    heatmaps = torch.where(heatmaps.isnan(), -torch.inf, heatmaps)
    peak, score = brightest_pixel(heatmaps)
    if method == "argmax":
        return peak, score
    if method == "window":
        return window_mean(heatmaps, peak, radius), score
    values, index = heatmaps.flatten(2).topk(k, dim=-1)
    weights = torch.softmax(values, dim=-1)
    width = heatmaps.shape[-1]
    return torch.stack([(weights * (index % width)).sum(-1), (weights * (index // width)).sum(-1)], dim=-1), score
