"""Decoding: heatmaps -> landmarks."""

import torch

from iact import heatmaps as codec
from iact.errors import InputError
from iact.heatmaps import DecodeMethod, window_radius
from iact.ops.registry import define

METHODS = ("argmax", "window", "topk")


def decode_heatmaps(
    heatmaps: torch.Tensor, *, method: DecodeMethod = "window", radius: int = window_radius(), k: int = 9
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates [B, K, 2] (x, y) in heatmap px and scores [B, K] of heatmaps [B, K, H, W], both float32.

    "argmax": the brightest pixel, the lowest index among equals. "window" (default): the mean position weighted by the
    non-negative values within `radius` of it. "topk": the k brightest pixels weighted by the softmax of their values
    (Yu & Tao 2021). A NaN pixel counts as minus infinity. Not differentiable. InputError for wrong arguments."""
    check_heatmaps("heatmaps", heatmaps)
    if method not in METHODS:
        raise InputError(f"decode_heatmaps: method: expected one of {', '.join(METHODS)}, got {method!r}")
    pixels = heatmaps.shape[-2] * heatmaps.shape[-1]
    if method == "topk" and not 1 <= k <= pixels:
        raise InputError(f"decode_heatmaps: k: expected 1 to {pixels} (the pixels of a map), got {k}")
    return torch.ops.iact.decode_heatmaps(heatmaps, method, radius, k)


def check_heatmaps(name: str, heatmaps: torch.Tensor) -> None:
    """Raises InputError where they are not floating-point [B, K, H, W]."""
    if heatmaps.dim() != 4 or not heatmaps.is_floating_point():
        raise InputError(f"{name}: expected floating-point [B, K, H, W], got {heatmaps.dtype} {tuple(heatmaps.shape)}")


def _fake_decode(heatmaps, method, radius, k):
    batch, landmarks = heatmaps.shape[:2]
    return heatmaps.new_empty(batch, landmarks, 2, dtype=torch.float32), heatmaps.new_empty(
        batch, landmarks, dtype=torch.float32
    )


define(
    "decode_heatmaps(Tensor heatmaps, str method, int radius, int k) -> (Tensor, Tensor)",
    codec.decode_heatmaps,
    _fake_decode,
)
