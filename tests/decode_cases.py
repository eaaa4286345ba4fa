"""Heatmaps to decode, in every memory layout, and what they decode to, computed apart from the package."""

import numpy as np
import torch

METHODS = ("argmax", "window", "topk")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "cropped", "transposed", "every_other", "some_channels", "pixels_first")
TOLERANCE = 1e-4  # px; a pixel more or less in a mean moves it by a hundred times that


def random_heatmaps(shape, dtype=torch.float32, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def odd_heatmaps(shape, dtype=torch.float32, seed=0) -> torch.Tensor:
    """A few values only, so that nearly every pixel is a tie; some maps also with NaN, infinities and both zeros."""
    generator = torch.Generator().manual_seed(seed)
    heatmaps = (torch.randn(shape, generator=generator) * 2).round() / 4
    draw = torch.rand(shape, generator=generator)
    heatmaps[draw < 0.3] = -0.0
    maps = heatmaps.reshape(-1, shape[-2] * shape[-1])
    draw = draw.reshape(maps.shape)
    for index, (value, share) in enumerate([(torch.nan, 0.5), (-torch.inf, 0.9), (torch.inf, 0.2), (torch.nan, 1.0)]):
        maps[index::7][draw[index::7] < share] = value
    maps[4::7] -= 10  # nothing is positive
    maps[5::7] = maps[5::7].minimum(torch.where(draw[5::7] < 0.6, -0.0, 0.0))  # a zero of either sign is the maximum
    return heatmaps.to(dtype)


def laid_out(heatmaps: torch.Tensor, layout: str) -> torch.Tensor:
    """The same heatmaps lying otherwise in memory; what lies between them would win."""
    batch, channels, height, width = heatmaps.shape
    if layout == "channels_last":
        return heatmaps.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return heatmaps.mT.contiguous().mT
    if layout == "pixels_first":
        return heatmaps.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    whole, part = {
        "contiguous": (heatmaps.shape, (...,)),
        "cropped": ((batch, channels, height + 2, width + 3), (..., slice(1, -1), slice(1, -2))),
        "every_other": ((batch, channels, height, 2 * width), (..., slice(None, None, 2))),
        "some_channels": ((batch, channels + 5, height, width), (slice(None), slice(3, -2))),
    }[layout]
    memory = torch.full(whole, torch.inf, dtype=heatmaps.dtype)
    if layout == "some_channels":
        memory = memory.contiguous(memory_format=torch.channels_last)
    memory[part] = heatmaps
    return memory[part]


def expected(heatmaps, method, radius=5, k=9, to_image=None) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [B, K, 2] and scores [B, K] in float64, map by map, pixel by pixel."""
    maps = heatmaps.float().numpy().astype(np.float64)
    points, scores = np.zeros((*maps.shape[:2], 2)), np.zeros(maps.shape[:2])
    for b, c in np.ndindex(maps.shape[:2]):
        values = np.where(np.isnan(maps[b, c]), -np.inf, maps[b, c])
        points[b, c], scores[b, c] = _expected_of_map(values, method, radius, k)
        if to_image is not None:
            matrix = to_image[b].double().numpy()
            points[b, c] = matrix[:, :2] @ points[b, c] + matrix[:, 2]
    return points, scores


def _expected_of_map(values: np.ndarray, method: str, radius: int, k: int):
    flat = values.ravel()
    falling = np.lexsort((np.arange(flat.size), -flat))
    y, x = np.divmod(falling, values.shape[1])
    peak, score = np.array([x[0], y[0]], np.float64), flat[falling[0]]
    if method == "topk":
        weight = np.array([1.0 if value == score else np.exp(value - score) for value in flat[falling[:k]]])
        return np.array([weight @ x[:k], weight @ y[:k]]) / weight.sum(), score
    inside = (abs(x - x[0]) <= radius) & (abs(y - y[0]) <= radius)
    weight = np.where(inside, np.maximum(flat[falling], 0), 0)
    if method == "argmax" or not np.isfinite(weight.sum()) or weight.sum() <= 1e-12:
        return peak, score
    return np.array([weight @ x, weight @ y]) / weight.sum(), score


def check(decoded, heatmaps, method, radius=5, k=9, to_image=None, tolerance=TOLERANCE) -> None:
    """Fails where what was decoded (coordinates and scores) is not what the heatmaps decode to."""
    points, scores = expected(heatmaps, method, radius, k, to_image)
    assert decoded[0].dtype == decoded[1].dtype == torch.float32
    np.testing.assert_array_equal(decoded[1].cpu().numpy(), scores)
    np.testing.assert_allclose(decoded[0].cpu().numpy(), points, rtol=0, atol=tolerance)
    assert decoded[0].is_contiguous() and decoded[1].is_contiguous()
