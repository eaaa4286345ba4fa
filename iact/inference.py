"""Pictures through the network to landmarks: the one path that evaluation, training and the predictor share."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import numpy as np
import torch

from iact import ops
from iact.errors import InputError
from iact.geometry import from_heatmap, invert, transform_points
from iact.heatmaps import SIGMA, window_radius
from iact.layouts import Layout
from iact.model import IACT, normalise

Precision = Literal["auto", "bf16", "fp16", "off"]
BATCH_SIZE = 64
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first CUDA device, else the CPU. InputError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: expected auto, cpu or cuda[:N], got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: expected auto, cpu or cuda[:N], got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device: {name} asked for, but {torch.cuda.device_count()} CUDA devices are visible")
    return device


def find_precision(amp: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to, or None. "auto" is bf16 on GPUs and CPUs that compute in it, else nothing.

    InputError for an unknown precision."""
    if amp not in get_args(Precision):
        raise InputError(f"amp: expected one of {', '.join(get_args(Precision))}, got {amp!r}")
    if amp == "auto":
        return torch.bfloat16 if _computes_in_bf16(device) else None
    return _DTYPES.get(amp)


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # from Ampere on
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """A context in which the network computes in that dtype, or as it is for None."""
    return torch.autocast(device.type, dtype) if dtype is not None else nullcontext()


@torch.no_grad()
def predict_batch(
    model: IACT, pictures: torch.Tensor, layout: Layout, *, sigma: float = SIGMA, flip_test: bool = False, dtype=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Landmarks [B, K, 2] in input px and scores [B, K] of pictures [B, 3, S, S] in 0..255.

    `flip_test` averages the heatmaps with those of the mirrored pictures."""
    pictures = normalise(pictures).contiguous(memory_format=torch.channels_last)
    with autocast(pictures.device, dtype):
        heatmaps = model(pictures)
        if flip_test:
            mirrored = model(pictures.flip(3))[:, list(layout.mirror)].flip(3)
            heatmaps = (heatmaps.float() + mirrored.float()) / 2
    landmarks, scores = ops.decode_heatmaps(heatmaps, radius=window_radius(sigma))
    return from_heatmap(landmarks, model.config.stride), scores


def predict_cuts(
    model: IACT,
    pictures: torch.Tensor,
    matrices: np.ndarray,
    layout: Layout,
    *,
    sigma: float = SIGMA,
    flip_test: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Landmarks [N, K, 2] in *image* px (float64) and scores [N, K] of pictures uint8 [N, 3, S, S], which `matrices`
    [N, 2, 3] mapped from image px. Both are on the model's device."""
    device = next(model.parameters()).device
    found = [
        predict_batch(model, part.to(device).float(), layout, sigma=sigma, flip_test=flip_test, dtype=dtype)
        for part in pictures.split(BATCH_SIZE)
    ]
    points, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
    return transform_points(points.double(), torch.from_numpy(invert(matrices)).to(device)), scores


def predict_arrays(
    model: IACT, pictures: torch.Tensor, matrices: np.ndarray, layout: Layout, **settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """What `predict_cuts` finds with these settings, as arrays."""
    points, scores = predict_cuts(model, pictures, matrices, layout, **settings)
    return points.cpu().numpy(), scores.cpu().numpy()
