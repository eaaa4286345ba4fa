"""Softmax attention over the pixels of a map (the paper, section 2.1.2, equation 3)."""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from iact.errors import InputError
from iact.ops.reference import attention as reference
from iact.ops.registry import LIBRARY, add_cuda_kernel, autocast, define, differentiate, refuse_second_derivative

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNEL_SIZE = 64  # the longest row
KERNEL_WORDS = "kernel, for D up to 64 (others: PyTorch reference)"


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale) v, [B, heads, N, D], contiguous, in q's dtype; scores and softmax in float32 or better.

    Args:
        q, k, v: [B, heads, N, D] each, of one shape and dtype.
        scale: the factor of the scores, 1/sqrt(D) when None.

    Raises:
        InputError: a shape or dtype does not fit.

    Source: Vaswani et al. 2017, equation 1; the paper, equation 3."""
    _check(q, k, v)
    return torch.ops.iact.attention(q, k, v, scale)[0]


def seen_dtype(t: Tensor) -> torch.dtype:
    """The dtype in which an op gets a tensor: autocast, where it is on, changes all floating ones but float64."""
    if not torch.amp.is_autocast_available(t.device.type):  # such as meta
        return t.dtype
    kept = t.dtype == torch.float64 or not t.is_floating_point() or not torch.is_autocast_enabled(t.device.type)
    return t.dtype if kept else torch.get_autocast_dtype(t.device.type)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 4 or not q.is_floating_point():
        raise InputError(f"q: expected floating-point [B, heads, N, D], got {q.dtype} {list(q.shape)}")
    for name, tensor in (("k", k), ("v", v)):
        if list(tensor.shape) != list(q.shape):
            raise InputError(f"{name}: expected the shape of q {list(q.shape)}, got {list(tensor.shape)}")
        if seen_dtype(tensor) != seen_dtype(q):
            raise InputError(f"{name}: expected the dtype of q {q.dtype}, got {tensor.dtype}")


def _fake(q, k, v, scale):
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


def _fake_backward(grad, q, k, v, out, logsumexp, scale):
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _setup_context(ctx, inputs, output):
    q, k, v, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx, grad, _):
    return *torch.ops.iact.attention_backward(grad, *ctx.saved_tensors, ctx.scale), None


def _autocast(dtype, q, k, v, scale):
    return *(t if t.dtype == torch.float64 else t.to(dtype) for t in (q, k, v)), scale


def _fits(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> bool:
    """Whether the CUDA kernels take it."""
    size = q.shape[-1]
    # below 0 the highest score would not have the highest power
    fits = q.dtype in KERNEL_DTYPES and size <= KERNEL_SIZE and (scale is None or 0 <= scale < math.inf)
    return fits and q.numel() > 0


def _fits_backward(grad, q, k, v, out, logsumexp, scale):
    return _fits(q, k, v, scale)


define(
    "attention(Tensor q, Tensor k, Tensor v, float? scale) -> (Tensor out, Tensor logsumexp)",
    reference.attention,
    _fake,
)
define(
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, float? scale) "
    "-> (Tensor, Tensor, Tensor)",
    reference.attention_backward,
    _fake_backward,
)
LIBRARY.impl("attention", reference.attention_cpu, "CPU")
LIBRARY.impl("attention_backward", reference.attention_backward_cpu, "CPU")
add_cuda_kernel("attention", reference.attention, _fits, KERNEL_WORDS)
add_cuda_kernel("attention_backward", reference.attention_backward, _fits_backward, KERNEL_WORDS)
differentiate("attention", _backward, _setup_context)
refuse_second_derivative("attention_backward")
autocast("attention", _autocast)


@register_flop_formula(torch.ops.iact.attention)
def _flops(q_shape, k_shape, v_shape, scale=None, **_) -> int:
    """Two products of N x N x D for each head."""
    batch, heads, length, size = q_shape
    return 2 * 2 * batch * heads * length * length * size


@register_flop_formula(torch.ops.iact.attention_backward)
def _flops_backward(grad_shape, q_shape, *_, **__) -> int:
    """Five such products: the scores once more, and the gradients of v, probabilities, q and k."""
    batch, heads, length, size = q_shape
    return 5 * 2 * batch * heads * length * length * size
