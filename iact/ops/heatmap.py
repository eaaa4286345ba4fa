"""The heatmap loss whose target is drawn from landmarks."""

import math
from typing import Literal

import torch

from iact import heatmaps as codec
from iact.errors import InputError
from iact.heatmaps import SIGMA
from iact.ops.decode import check_heatmaps
from iact.ops.reference.wing import layout_of, wing_loss
from iact.ops.registry import add_cuda_kernel, define, differentiate
from iact.ops.wing import DEFAULTS, scale_mean

KINDS = ("smooth_wing", "adaptive_wing")


def heatmap_loss(
    pred: torch.Tensor,
    landmarks: torch.Tensor,
    visible: torch.Tensor | None = None,
    *,
    kind: Literal["smooth_wing", "adaptive_wing"] = "smooth_wing",
    sigma: float = SIGMA,
    seed: int | torch.Tensor | None = None,
    map_factor: float = 0.0,
) -> torch.Tensor:
    """The mean loss (scalar, float32) of heatmaps [B, K, H, W] against Gaussians on landmarks [B, K, 2] in heatmap px.

    Value and gradient are those of `encode_heatmaps` followed by the loss; a landmark where `visible` [B, K] is false
    adds nothing, whatever it and its heatmap hold. `seed` rounds the landmarks at random (same seed, same pixels on
    every device; a tensor seed can change under a captured graph); None centres the Gaussians exactly. `map_factor`
    weights pixels near a landmark by 1 + factor (Adaptive Wing's weight map). The target is drawn where it is used and
    never stored; the forward pass computes the gradient too. InputError for wrong arguments."""
    check_heatmaps("pred", pred)
    if tuple(landmarks.shape) != (*pred.shape[:2], 2):
        raise InputError(
            f"heatmap_loss: landmarks: expected shape {(*pred.shape[:2], 2)}, got {tuple(landmarks.shape)}"
        )
    if visible is not None and visible.shape != pred.shape[:2]:
        raise InputError(f"heatmap_loss: visible: expected {tuple(pred.shape[:2])}, got {tuple(visible.shape)}")
    for name, tensor in (("landmarks", landmarks), ("visible", visible)):
        if tensor is not None and tensor.device != pred.device:
            expected = f"the device of pred, {pred.device}"
            raise InputError(f"heatmap_loss: {name}: expected {expected}, got {tensor.device}")
    _check_numbers(kind, sigma, map_factor)
    seed = None if seed is None else _seed(seed, pred.device)
    visible = None if visible is None else visible.bool()
    smooth = kind == "smooth_wing"
    return torch.ops.iact.heatmap_loss(pred, landmarks.float(), visible, seed, smooth, sigma, map_factor)[0]


def _check_numbers(kind: str, sigma: float, map_factor: float) -> None:
    if kind not in KINDS:
        raise InputError(f"heatmap_loss: kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if not 0 < sigma < math.inf:
        raise InputError(f"heatmap_loss: sigma: expected a positive number of heatmap px, got {sigma}")
    if not 0 <= map_factor < math.inf:
        raise InputError(f"heatmap_loss: map_factor: expected 0 or a positive number, got {map_factor}")


def _seed(seed: int | torch.Tensor, device: torch.device) -> torch.Tensor:
    """As the kernels read it: one int64 on the device."""
    if not isinstance(seed, torch.Tensor):
        return torch.full((), seed, dtype=torch.int64, device=device)  # no copy from the host, which would wait
    if seed.numel() != 1 or seed.is_floating_point() or seed.is_complex():
        raise InputError(f"heatmap_loss: seed: expected one whole number, got {seed.dtype} {tuple(seed.shape)}")
    return seed.to(device, torch.int64)


def reference(
    pred: torch.Tensor,
    landmarks: torch.Tensor,
    visible: torch.Tensor | None,
    seed: torch.Tensor | None,
    smooth: bool,
    sigma: float,
    map_factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op in plain PyTorch: targets drawn by the codec, then the reference of the wing loss."""
    shown = torch.ones(landmarks.shape[:2], dtype=torch.bool, device=pred.device) if visible is None else visible
    shown = shown[..., None, None]
    target = codec.encode_heatmaps(torch.where(shown[..., 0], landmarks, 0), *pred.shape[-2:], sigma, seed)
    weight = codec.dilated_weight(target, map_factor) if map_factor else None
    hidden_alike = torch.where(shown, target, 0)  # no difference, no loss, whatever the prediction
    return wing_loss(torch.where(shown, pred, 0), hidden_alike, weight, smooth, *DEFAULTS, True)


def _fake_loss(pred, landmarks, visible, seed, smooth, sigma, map_factor):
    accumulator = torch.float64 if pred.dtype == torch.float64 else torch.float32
    return pred.new_empty((), dtype=accumulator), torch.empty_like(pred, memory_format=layout_of(pred))


def _keep_slope(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or zeros as large as the slope stand for its own gradient
    ctx.save_for_backward(output[1])


def _scale_slope(ctx, grad_loss, _grad_slope):
    (slope,) = ctx.saved_tensors
    return scale_mean(slope, grad_loss), *[None] * 6


define(
    "heatmap_loss(Tensor pred, Tensor landmarks, Tensor? visible, Tensor? seed, bool smooth, float sigma, "
    "float map_factor) -> (Tensor, Tensor)",
    reference,
    _fake_loss,
)
add_cuda_kernel("heatmap_loss", reference)
differentiate("heatmap_loss", _scale_slope, _keep_slope)
