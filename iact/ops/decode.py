"""Decoding: heatmaps -> landmarks."""

import importlib.util
import os
import shutil
import sysconfig

import torch

from iact import heatmaps as codec
from iact.errors import InputError
from iact.heatmaps import DecodeMethod, window_radius
from iact.ops.registry import add_kernel, define

METHODS = ("argmax", "window", "topk")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def decode_heatmaps(
    heatmaps: torch.Tensor,
    *,
    method: DecodeMethod = "window",
    radius: int = window_radius(),
    k: int = 9,
    to_image: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates [B, K, 2] (x, y) in heatmap px and scores [B, K] of heatmaps [B, K, H, W], both float32.

    "argmax": the brightest pixel, the lowest index among equals. "window" (default): the mean position weighted by the
    non-negative values within `radius` of it, or the brightest pixel itself where none is positive. "topk": the mean
    position of the k brightest pixels weighted by the softmax of their values (Yu & Tao 2021). The score is the
    maximum. A NaN pixel counts as minus infinity; heatmaps are read as float32. Affine maps `to_image` [B, 2, 3]
    (float32) from heatmap px to image px are applied to the coordinates. Not differentiable. InputError for wrong
    arguments."""
    check_heatmaps("heatmaps", heatmaps)
    pixels = heatmaps.shape[-2] * heatmaps.shape[-1]
    if pixels == 0:
        raise InputError(f"decode_heatmaps: heatmaps: expected maps with pixels, got {tuple(heatmaps.shape)}")
    if method not in METHODS:
        raise InputError(f"decode_heatmaps: method: expected one of {', '.join(METHODS)}, got {method!r}")
    if method == "window" and radius < 0:
        raise InputError(f"decode_heatmaps: radius: expected 0 or more heatmap px, got {radius}")
    if method == "topk" and not 1 <= k <= pixels:
        raise InputError(f"decode_heatmaps: k: expected 1 to {pixels} (the pixels of a map), got {k}")
    if to_image is not None:
        _check_maps(heatmaps, to_image)
    return torch.ops.iact.decode_heatmaps(heatmaps.detach(), method, radius, k, to_image)


def check_heatmaps(name: str, heatmaps: torch.Tensor) -> None:
    """Raises InputError where they are not floating-point [B, K, H, W]."""
    if heatmaps.dim() != 4 or heatmaps.dtype not in DTYPES:
        raise InputError(f"{name}: expected floating-point [B, K, H, W], got {heatmaps.dtype} {tuple(heatmaps.shape)}")


def _check_maps(heatmaps: torch.Tensor, to_image: torch.Tensor) -> None:
    shape = (heatmaps.shape[0], 2, 3)
    if tuple(to_image.shape) != shape or to_image.dtype != torch.float32 or to_image.device != heatmaps.device:
        raise InputError(
            f"decode_heatmaps: to_image: expected float32 {shape} on {heatmaps.device}, "
            f"got {to_image.dtype} {tuple(to_image.shape)} on {to_image.device}"
        )


def _fake_decode(heatmaps, method, radius, k, to_image=None):
    batch, landmarks = heatmaps.shape[:2]
    return heatmaps.new_empty(batch, landmarks, 2, dtype=torch.float32), heatmaps.new_empty(
        batch, landmarks, dtype=torch.float32
    )


def _decode_on_gpu(heatmaps, method, radius, k, to_image=None):
    from iact.ops.decode_triton import decode  # here: importing the ops must not cost the import of Triton

    with torch.cuda.device(heatmaps.device):
        return decode(heatmaps, method, radius, k, to_image)


def triton_is_usable() -> bool:
    """Whether Triton is installed, and with it what its launcher is built from: a C compiler and Python's headers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h"))
    return bool(importlib.util.find_spec("triton") and compiler and headers)


define(
    "decode_heatmaps(Tensor heatmaps, str method, int radius, int k, Tensor? to_image=None) -> (Tensor, Tensor)",
    codec.decode_heatmaps,
    _fake_decode,
)
if triton_is_usable():  # without, the reference serves, and `iact info` says so
    add_kernel("decode_heatmaps", "CUDA", _decode_on_gpu, "Triton kernel")
