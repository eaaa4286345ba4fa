"""Smooth Wing and Adaptive Wing in plain PyTorch: the definition that every kernel is compared with."""

import torch
from torch import Tensor


def wing_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    smooth: bool,
    omega: float,
    theta1: float,
    theta2: float,
    alpha: float,
    epsilon: float,
    reduce: bool,
) -> tuple[Tensor, Tensor]:
    """The loss of `pred` against `target` (one shape) and its gradient along `pred`, both times `weight` (broadcast).

    The loss is the mean over all pixels where `reduce` is set (0 for no pixels), in float64 for float64 predictions and
    float32 otherwise. The gradient, in the dtype and layout of `pred`, is that of the loss, but for float16 where
    `reduce` is set: there it is left times the number of pixels, by which division would leave nothing (see
    `slope_factor`). Computed in float64 throughout, which leaves float32 results exact to their last bit or two.

    Source: equation 6 of the paper with its constants repaired by continuity; Adaptive Wing (Wang et al. 2019,
    equation 4) for `smooth=False`, where `theta2` is its theta."""
    value, slope = wing(pred.double(), target.double(), smooth, omega, theta1, theta2, alpha, epsilon)
    if weight is not None:
        value, slope = value * weight.double(), slope * weight.double()
    slope = slope * slope_factor(pred, reduce)
    wide = torch.promote_types(pred.dtype, torch.float32)
    layout = layout_of(pred)
    if reduce:
        loss = (value.sum() / max(value.numel(), 1)).to(wide)
    else:
        loss = value.to(wide).contiguous(memory_format=layout)
    return loss, slope.to(pred.dtype).contiguous(memory_format=layout)


def slope_factor(pred: Tensor, reduce: bool) -> float:
    """What the ops multiply the slope of each pixel by: 1 / numel for a mean, but 1 for float16."""
    return 1 / max(pred.numel(), 1) if reduce and pred.dtype != torch.float16 else 1.0


def layout_of(pred: Tensor) -> torch.memory_format:
    """The memory format of per-pixel results: channels_last for a channels_last `pred`, contiguous for any other."""
    if pred.dim() == 4 and not pred.is_contiguous() and pred.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def wing(
    pred: Tensor,
    target: Tensor,
    smooth: bool,
    omega: float,
    theta1: float,
    theta2: float,
    alpha: float,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Loss and slope per pixel, in the dtype of the inputs.

    The pieces share one power, taken at the error clamped to [theta1, theta2]: value and slope there are the middle
    piece, the straight outer piece leaves from them, and the inner piece is made to meet them."""
    difference = pred - target
    error = difference.abs()
    nearest = error.clamp(theta1 if smooth else 1e-300, theta2)  # above 0, where the power is 0 and so is its slope
    exponent = alpha - target
    power = (nearest / epsilon) ** exponent
    value = omega * torch.log1p(power)
    slope = omega * exponent * power / ((1 + power) * nearest)
    if smooth:
        inner_value, inner_slope = _inner_piece(error, value, slope, theta1)
        is_inner = error < theta1
        value = torch.where(is_inner, inner_value, value + slope * (error - nearest))
        slope = torch.where(is_inner, inner_slope, slope)
    else:
        value = value + slope * (error - nearest)
    return value, slope * difference.sign()


def _inner_piece(error: Tensor, value: Tensor, slope: Tensor, theta1: float) -> tuple[Tensor, Tensor]:
    """K log(1 + e^2) + M e^2, with K and M such that it meets `value` and `slope` at theta1.

    K and M are huge and nearly cancel, so the piece is written around theta1, with only terms of the result's size."""
    u = theta1**2
    deficit = _log_deficit(u)
    bend = (2 * value - slope * theta1) * (1 + u) / (2 * (1 - (1 + u) * deficit))
    x = error**2
    part = x / u
    inner_value = part * (value + bend * (deficit - part * _log_deficit(x)))
    inner_slope = 2 * error / u * (value + bend * (deficit - part / (1 + x)))
    return inner_value, inner_slope


def _log_deficit(x):
    """(x - log(1 + x)) / x^2 for x in [0, 1], to 3e-10, and to float64's last bit below 0.09; no cancellation.

    With z = x / (2 + x): log(1 + x) = 2 z (1 + z^2/3 + z^4/5 + ...) and x - 2 z = x z."""
    z = x / (2 + x)
    series = 1 / 17
    for odd in (15, 13, 11, 9, 7, 5, 3):
        series = series * z**2 + 1 / odd
    return (1 - 2 * z / (2 + x) * series) / (2 + x)
