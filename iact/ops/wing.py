"""Smooth Wing (equation 6 of the paper) and Adaptive Wing (Wang et al. 2019) heatmap losses."""

import math
from typing import Literal

import torch
from torch import Tensor

from iact.errors import InputError
from iact.ops.reference.wing import layout_of
from iact.ops.reference.wing import wing_loss as reference
from iact.ops.registry import add_cuda_kernel, define, differentiate

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DEFAULTS = (14.0, 0.05, 0.5, 2.1, 1.0)  # omega, theta1, theta2, alpha, epsilon: the paper, section 2.3
Reduction = Literal["mean", "none"]


def smooth_wing_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    omega: float = 14.0,
    theta1: float = 0.05,
    theta2: float = 0.5,
    alpha: float = 2.1,
    epsilon: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Smooth Wing loss of heatmaps [B, K, H, W] (any one shape) against target heatmaps with values in [0, 1].

    The mean over all pixels (scalar, 0 for no pixels), or with reduction="none" the loss of each pixel; times `weight`,
    which broadcasts to `pred`. Float64 for float64 predictions, float32 for all others (so too under autocast).
    The gradient goes to `pred` only: target and weight are constants, and there is no second derivative.

    Raises:
        InputError: shape, dtype or device does not fit, or not 1e-15 <= theta1 <= 1, theta1 < theta2 <= 1e6 epsilon,
            alpha > 1, (theta2 / epsilon)^alpha <= 1e35.

    Source: the paper, equation 6, its constants repaired by continuity of value and slope at theta1 and theta2."""
    _check_tensors("smooth_wing_loss", pred, target, weight)
    _check_numbers("smooth_wing_loss", reduction, alpha, theta2, epsilon, omega=omega, theta1=theta1)
    if not 1e-15 <= theta1 <= 1 or theta1 >= theta2:  # its square is a divisor in float32
        expected = f"1e-15 to 1, and below theta2 ({theta2})"
        raise InputError(f"smooth_wing_loss: theta1: expected {expected}, got {theta1}")
    numbers = (omega, theta1, theta2, alpha, epsilon)
    return torch.ops.iact.wing_loss(pred, target, weight, True, *numbers, reduction == "mean")[0]


def adaptive_wing_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    omega: float = 14.0,
    theta: float = 0.5,
    alpha: float = 2.1,
    epsilon: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Adaptive Wing loss of heatmaps [B, K, H, W]; all else as in `smooth_wing_loss`.

    Raises:
        InputError: shape, dtype or device does not fit, or not 0 < theta <= 1e6 epsilon, alpha > 1,
            (theta / epsilon)^alpha <= 1e35.

    Source: Wang et al. 2019, Adaptive Wing Loss for Robust Face Alignment via Heatmap Regression, equation 4."""
    _check_tensors("adaptive_wing_loss", pred, target, weight)
    _check_numbers("adaptive_wing_loss", reduction, alpha, theta, epsilon, omega=omega)
    numbers = (omega, 0.0, theta, alpha, epsilon)
    return torch.ops.iact.wing_loss(pred, target, weight, False, *numbers, reduction == "mean")[0]


def _check_tensors(loss: str, pred: Tensor, target: Tensor, weight: Tensor | None) -> None:
    tensors = {"pred": pred, "target": target} | ({} if weight is None else {"weight": weight})
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise InputError(f"{loss}: {name}: expected float32, float64, bfloat16 or float16, got {tensor.dtype}")
        if tensor.device != pred.device:
            raise InputError(f"{loss}: {name}: expected the device of pred, {pred.device}, got {tensor.device}")
    if target.shape != pred.shape:
        raise InputError(f"{loss}: target: expected the shape of pred, {list(pred.shape)}, got {list(target.shape)}")
    if weight is not None and not _broadcasts(weight.shape, pred.shape):
        expected = f"a shape that broadcasts to that of pred, {list(pred.shape)}"
        raise InputError(f"{loss}: weight: expected {expected}, got {list(weight.shape)}")


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size == 1 or size == full for size, full in pairs)


def _check_numbers(loss: str, reduction: str, alpha: float, theta2: float, epsilon: float, **positive: float) -> None:
    for name, value in (positive | {"theta2": theta2, "epsilon": epsilon}).items():
        if not (value > 0 and math.isfinite(value)):
            raise InputError(f"{loss}: {name}: expected a positive number, got {value}")
    if theta2 / epsilon > 1e6:  # its powers would leave the range of float32
        raise InputError(f"{loss}: epsilon: expected at least a millionth of theta2 ({theta2}), got {epsilon}")
    if not (alpha > 1 and math.isfinite(alpha)):  # the exponent alpha - target has to stay positive
        raise InputError(f"{loss}: alpha: expected a number above 1, got {alpha}")
    if alpha * math.log10(theta2 / epsilon) > 35:  # as above
        raise InputError(f"{loss}: alpha: expected (theta2 / epsilon)^alpha of at most 1e35, got alpha {alpha}")
    if reduction not in ("mean", "none"):
        raise InputError(f'{loss}: reduction: expected "mean" or "none", got {reduction!r}')


def _fake(pred, target, weight, smooth, omega, theta1, theta2, alpha, epsilon, reduce):
    slope = torch.empty_like(pred, memory_format=layout_of(pred))
    wide = torch.promote_types(pred.dtype, torch.float32)
    return pred.new_empty((), dtype=wide) if reduce else torch.empty_like(slope, dtype=wide), slope


def _setup_context(ctx, inputs, output):
    ctx.reduce = inputs[-1]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or zeros as large as the slope stand for its own gradient
    ctx.save_for_backward(output[1])


def _backward(ctx, grad, _grad_of_slope):
    (slope,) = ctx.saved_tensors
    return (scale_mean(slope, grad) if ctx.reduce or grad is None else scale(slope, grad)), *[None] * 9


def scale(slope: Tensor, grad: Tensor) -> Tensor:
    """slope * grad in the dtype of the slope, computed in that of `grad`."""
    return (slope.to(grad.dtype) * grad).to(slope.dtype)


def scale_mean(slope: Tensor, grad: Tensor | None) -> Tensor | None:
    """The gradient of the prediction of a mean loss whose own gradient is the scalar `grad`; None without one.

    Where the slope is not needed again it becomes the gradient itself, and where `grad` is 1 nothing is left to do: the
    forward pass has written the gradient."""
    if grad is None:
        return None
    if slope.dtype == torch.float16:
        grad = grad / max(slope.numel(), 1)  # what `slope_factor` left out
    if torch._C._autograd._get_current_graph_task_keep_graph() or type(slope) is not Tensor:  # a tracer's, or kept
        return scale(slope, grad)
    torch.ops.iact.scale_(slope, grad)
    return slope


def _scale_in_place(slope: Tensor, grad: Tensor) -> None:
    if grad.is_cuda or grad.item() != 1:  # asking a GPU would stall the host
        slope.copy_(scale(slope, grad))


define(
    "wing_loss(Tensor pred, Tensor target, Tensor? weight, bool smooth, float omega, float theta1, float theta2, "
    "float alpha, float epsilon, bool reduce) -> (Tensor loss, Tensor slope)",
    reference,
    _fake,
)
add_cuda_kernel("wing_loss", reference)
differentiate("wing_loss", _backward, _setup_context)
define("scale_(Tensor(a!) slope, Tensor grad) -> ()", _scale_in_place, lambda slope, grad: None)
add_cuda_kernel("scale_", _scale_in_place)
