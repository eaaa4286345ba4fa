"""Deformable Q/K/V projection, the first half of the paper's attention (section 2.1.2, equations 2 to 4)."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from iact.errors import InputError
from iact.ops.attention import seen_dtype
from iact.ops.reference import deform as reference
from iact.ops.registry import LIBRARY, add_cuda_kernel, autocast, define, differentiate, refuse_second_derivative

OFFSETS = 2 * reference.TAPS
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNEL_SIZES = (16, 32, 48, 64)  # channels per head
KERNEL_WORDS = "kernel, for 16 to 64 channels per head in steps of 16 (others: PyTorch reference)"
# One kernel makes a head of an image in one block. On larger maps that is too long a task for too few blocks.
FUSED_TOKENS = 64
FUSED_BYTES = 192  # of one head's channels: those of a map of 64 tokens then fit the shared memory of every GPU
FUSED_WORDS = f"one kernel, for maps of up to {FUSED_TOKENS} pixels (others: deform_qkv, then attention)"


def deform_qkv(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None, *, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values from three deformable 3x3 convolutions of one map.

    Each equals `torchvision.ops.deform_conv2d(x, offset_s, weight[s*C:(s+1)*C], bias[s*C:(s+1)*C], padding=1)` for
    s = 0, 1, 2, with its C channels cut into heads, for any finite offsets.

    Args:
        x: [B, C, H, W], contiguous or channels-last.
        offset: [B, 18, H, W], shared by q, k and v, or [B, 54, H, W], a set for each, in px of the map;
            (dy, dx) per kernel tap. Either float32 or x's dtype; under autocast it keeps its precision.
        weight: [3C, C/heads, 3, 3], q's rows first, then k's, then v's.
        bias: [3C] or None.
        heads: the number of convolution groups, a divisor of C.

    Returns:
        q, k, v, each [B, heads, H*W, C/heads], contiguous, in x's dtype.

    Raises:
        InputError: a shape or dtype does not fit.

    Source: Dai et al. 2017 (deformable convolution); the paper, equation 2."""
    _check(x, offset, weight, bias, heads)
    return torch.ops.iact.deform_qkv(x, offset, weight, bias, heads)


def deform_attention(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None, *, heads: int) -> Tensor:
    """Multi-head attention with deformable projections, up to the concatenation of heads: [B, H*W, C].

    Arguments and errors as for `deform_qkv`; the scores are scaled by 1/sqrt(C/heads).

    Source: the paper, equations 2 to 4."""
    _check(x, offset, weight, bias, heads)
    return torch.ops.iact.deform_attention(x, offset, weight, bias, heads)


def _check(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> None:
    if x.dim() != 4:
        raise InputError(f"x: expected [B, C, H, W], got {list(x.shape)}")
    batch, channels, height, width = x.shape
    if heads < 1 or channels % heads != 0:
        raise InputError(f"heads: expected a divisor of the {channels} channels of x, got {heads}")
    if offset.dim() != 4 or offset.shape[1] not in (OFFSETS, 3 * OFFSETS):
        raise InputError(f"offset: expected [B, {OFFSETS} or {3 * OFFSETS}, H, W], got {list(offset.shape)}")
    if offset.shape[0] != batch or offset.shape[2] != height or offset.shape[3] != width:
        raise InputError(f"offset: expected the batch and size of x {list(x.shape)}, got {list(offset.shape)}")
    if list(weight.shape) != [3 * channels, channels // heads, 3, 3]:
        expected = [3 * channels, channels // heads, 3, 3]
        raise InputError(f"weight: expected {expected}, got {list(weight.shape)}")
    if bias is not None and list(bias.shape) != [3 * channels]:
        raise InputError(f"bias: expected [{3 * channels}], got {list(bias.shape)}")
    _check_dtypes(x, offset, weight, bias)


def _check_dtypes(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    dtype = seen_dtype(x)
    if not dtype.is_floating_point:
        raise InputError(f"x: expected a floating-point tensor, got {dtype}")
    if seen_dtype(weight) != dtype:
        raise InputError(f"weight: expected the dtype of x {dtype}, got {weight.dtype}")
    if bias is not None and seen_dtype(bias) != dtype:
        raise InputError(f"bias: expected the dtype of x {dtype}, got {bias.dtype}")
    if seen_dtype(offset) != dtype and offset.dtype != torch.float32:
        raise InputError(f"offset: expected torch.float32 or the dtype of x {dtype}, got {offset.dtype}")


def _fake(x, offset, weight, bias, heads):
    batch, channels, height, width = x.shape
    shape = (batch, heads, height * width, channels // heads)
    return x.new_empty(shape), x.new_empty(shape), x.new_empty(shape)


def _fake_backward(grad_q, grad_k, grad_v, x, offset, weight, bias, heads):
    grad_bias = weight.new_empty(0) if bias is None else torch.empty_like(bias)
    return torch.empty_like(x), torch.empty_like(offset), torch.empty_like(weight), grad_bias


def _setup_context(ctx, inputs, output):
    x, offset, weight, bias, heads = inputs
    ctx.save_for_backward(x, offset, weight, bias)
    ctx.heads = heads


def _backward(ctx, grad_q, grad_k, grad_v):
    x, offset, weight, bias = ctx.saved_tensors
    grads = torch.ops.iact.deform_qkv_backward(grad_q, grad_k, grad_v, x, offset, weight, bias, ctx.heads)
    return *grads[:3], None if bias is None else grads[3], None


def _autocast(dtype, x, offset, weight, bias, heads):
    low = [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x, weight, bias)]
    return low[0], offset if offset.dtype == torch.float64 else offset.float(), low[1], low[2], heads


def _fits(x, offset, weight, bias, heads) -> bool:
    """Whether the CUDA kernels take it."""
    batch, channels, height, width = x.shape
    tokens = batch * height * width
    dtypes = x.dtype in KERNEL_DTYPES and offset.dtype in (torch.float32, x.dtype)
    return dtypes and channels // heads in KERNEL_SIZES and 0 < tokens < 2**26 and tokens * heads < 2**31


def _fits_backward(grad_q, grad_k, grad_v, *inputs) -> bool:
    return _fits(*inputs)


def _fits_one_kernel(x, offset, weight, bias, heads) -> bool:
    """Whether the kernel of the whole attention takes such a map, and is worth it."""
    _, channels, height, width = x.shape
    small = height * width <= FUSED_TOKENS and channels // heads * x.element_size() <= FUSED_BYTES
    return small and _fits(x, offset, weight, bias, heads)


def _deform_attention(x, offset, weight, bias, heads):
    tensors = [t for t in (x, offset, weight, bias) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _in_steps(x, offset, weight, bias, heads)
    return torch.ops.iact.deform_attention_forward(x, offset, weight, bias, heads)


def _in_steps(x, offset, weight, bias, heads):
    q, k, v = torch.ops.iact.deform_qkv(x, offset, weight, bias, heads)
    return torch.ops.iact.attention(q, k, v, None)[0].transpose(1, 2).flatten(2)


def _fake_attention(x, offset, weight, bias, heads):
    batch, channels, height, width = x.shape
    return x.new_empty((batch, height * width, channels))


define(
    "deform_qkv(Tensor x, Tensor offset, Tensor weight, Tensor? bias, int heads) -> (Tensor, Tensor, Tensor)",
    reference.deform_qkv,
    _fake,
)
define(
    "deform_qkv_backward(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor x, Tensor offset, Tensor weight, "
    "Tensor? bias, int heads) -> (Tensor, Tensor, Tensor, Tensor)",
    reference.deform_qkv_backward,
    _fake_backward,
)
add_cuda_kernel("deform_qkv", reference.deform_qkv, _fits, KERNEL_WORDS)
add_cuda_kernel("deform_qkv_backward", reference.deform_qkv_backward, _fits_backward, KERNEL_WORDS)
differentiate("deform_qkv", _backward, _setup_context)
refuse_second_derivative("deform_qkv_backward")
autocast("deform_qkv", _autocast)
define(
    "deform_attention_forward(Tensor x, Tensor offset, Tensor weight, Tensor? bias, int heads) -> Tensor",
    _in_steps,
    _fake_attention,
)
add_cuda_kernel("deform_attention_forward", _in_steps, _fits_one_kernel, FUSED_WORDS)
autocast("deform_attention_forward", _autocast)
LIBRARY.define("deform_attention(Tensor x, Tensor offset, Tensor weight, Tensor? bias, int heads) -> Tensor")
LIBRARY.impl("deform_attention", _deform_attention, "CompositeImplicitAutograd")


@register_flop_formula(torch.ops.iact.deform_qkv)
def _flops(x_shape, offset_shape, weight_shape, bias_shape, heads, *, out_shape=None, **_) -> int:
    """The three grouped convolutions, as the flop counter counts a convolution; sampling is not counted."""
    batch, channels, height, width = x_shape
    return 2 * 3 * batch * height * width * channels * (channels // heads) * reference.TAPS


@register_flop_formula(torch.ops.iact.deform_qkv_backward)
def _flops_backward(q_shape, k_shape, v_shape, x_shape, offset_shape, weight_shape, bias_shape, heads, **_) -> int:
    """One product for the columns' gradient and one for the weight's."""
    return 2 * _flops(x_shape, offset_shape, weight_shape, bias_shape, heads)


@register_flop_formula(torch.ops.iact.deform_attention_forward)
def _flops_attention(x_shape, offset_shape, weight_shape, bias_shape, heads, **_) -> int:
    """The convolutions, and two products of N x N x C/heads for each head."""
    batch, channels, height, width = x_shape
    products = 2 * 2 * batch * channels * (height * width) ** 2
    return _flops(x_shape, offset_shape, weight_shape, bias_shape, heads) + products
