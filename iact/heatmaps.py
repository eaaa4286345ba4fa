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
    return round_by(landmarks, uniform(seed, landmarks.shape, landmarks.device))


def round_by(landmarks: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """Each coordinate rounded up where `chance`, from 0 to below 1 and of the same shape, is below its fraction."""
    lower = landmarks.floor()
    return lower + (chance < landmarks - lower)


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
    """The mean position [B, K, 2], weighted by the non-negative values within `radius` of the pixels centre [B, K, 2].

    Differentiable with respect to the heatmaps. Where nothing in the window is positive, or a sum overflows, it is the
    centre itself."""
    height, width = heatmaps.shape[-2:]
    radius = min(radius, max(height, width))
    steps = torch.arange(-radius, radius + 1, device=heatmaps.device)
    x, y = (centre.long()[..., axis, None] + steps for axis in (0, 1))  # [B, K, 2 * radius + 1]
    inside = ((y >= 0) & (y < height))[..., :, None] & ((x >= 0) & (x < width))[..., None, :]
    index = y.clamp(0, height - 1)[..., :, None] * width + x.clamp(0, width - 1)[..., None, :]
    values = _pick(heatmaps, index.flatten(2)).reshape(index.shape).float()  # the rest is never read
    values = torch.where(inside, values, 0).clamp(min=0)
    along_x, along_y = values.sum(-2), values.sum(-1)
    total = along_x.sum(-1)
    moment = torch.stack([(along_x * steps).sum(-1), (along_y * steps).sum(-1)], dim=-1)
    offset = moment / total.clamp(min=1e-12)[..., None]
    return centre.float() + torch.where((total[..., None] > 1e-12) & offset.isfinite(), offset, 0)


def _pick(heatmaps: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The pixels [B, K, N] of those indices. Their gradient is laid out in memory as the heatmaps are."""
    if heatmaps.is_contiguous(memory_format=torch.channels_last):
        return heatmaps.permute(0, 2, 3, 1).flatten(1, 2).gather(1, index.transpose(1, 2)).transpose(1, 2)
    return heatmaps.flatten(2).gather(2, index)


def brightest_pixel(heatmaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates [B, K, 2] (float32) of each map's maximum and its value [B, K]; the lowest index wins a tie."""
    width = heatmaps.shape[-1]
    index = heatmaps.flatten(2).argmax(dim=-1)
    score = heatmaps.flatten(2).gather(-1, index[..., None])[..., 0]
    return torch.stack([index % width, index // width], dim=-1).float(), score


def top_mean(heatmaps: torch.Tensor, k: int) -> torch.Tensor:
    """The mean position [B, K, 2] of the k brightest pixels, weighted by the softmax of their values.

    Float32 heatmaps without NaN or -0.0; among equals the lower index comes first. A pixel equal to the maximum always
    weighs exp(0) = 1, infinite or not."""
    width, pixels = heatmaps.shape[-1], heatmaps.flatten(2)
    bits = pixels.view(torch.int32)
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    index = torch.arange(pixels.shape[-1], device=heatmaps.device)
    index = ((ascending.long() << 32) - index).topk(k, dim=-1).indices  # no two keys are equal: the order is defined
    values = pixels.gather(-1, index)
    weights = torch.where(values == values[..., :1], 1, torch.exp(values - values[..., :1]))
    position = torch.stack([index % width, index // width], dim=-1)
    offset = position - position[..., :1, :]
    return position[..., 0, :] + (weights[..., None] * offset).sum(-2) / weights.sum(-1, keepdim=True)


def decode_heatmaps(
    heatmaps: torch.Tensor, method: DecodeMethod, radius: int, k: int, to_image: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates [B, K, 2] (x, y) in heatmap px and scores [B, K] (the maximum), both float32.

    "window": `window_mean` around the maximum. "topk": `top_mean` (H3R). A NaN pixel counts as minus infinity, -0.0 as
    0.0, and the lowest index wins a tie. `to_image` [B, 2, 3] maps the coordinates to image px."""
    heatmaps = heatmaps.float()
    heatmaps = torch.where(heatmaps.isnan(), -torch.inf, heatmaps) + 0.0
    points, scores = brightest_pixel(heatmaps)
    if method == "window":
        points = window_mean(heatmaps, points, radius)
    elif method == "topk":
        points = top_mean(heatmaps, k)
    if to_image is not None:
        points = (points[..., None, :] * to_image[:, None, :, :2]).sum(-1) + to_image[:, None, :, 2]
    return points, scores
