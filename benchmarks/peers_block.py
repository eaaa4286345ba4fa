"""What one would write or pick in place of the deformable projection and of attention.

Arguments and results are those of `iact.ops.deform_qkv` and `iact.ops.attention`."""

import sys
from functools import cache

import torch
import torch.nn.functional as F
from machine import ROOT
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(ROOT))

from iact.capture import recording  # noqa: E402

TAPS = 9
SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def deform_qkv(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, ...]:
    """`grid_sample` for each set of offsets, in float32 as autocast would have it, then one batched product."""
    (batch, _, height, width), size = x.shape, weight.shape[1]
    sets = offset.shape[1] // (2 * TAPS)
    wide, parts = x.float(), []
    matrices = weight.view(sets, 3 // sets, heads, size, -1).transpose(1, 2).reshape(sets, heads, -1, TAPS * size)
    biases = bias.view(sets, 3 // sets, heads, size).transpose(1, 2).reshape(sets, heads, 1, -1)
    for grid, matrix, added in zip(_grids(offset.float(), sets), matrices, biases, strict=True):
        samples = F.grid_sample(wide, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        columns = samples.to(x.dtype).view(batch * heads, TAPS * size, height * width).transpose(1, 2)
        rows, product = (t.expand(batch, *t.shape).flatten(0, 1) for t in (added, matrix.transpose(1, 2)))
        projected = torch.baddbmm(rows, columns, product).view(batch, heads, height * width, -1)
        parts += projected.split(size, dim=-1)
    q, k, v = parts
    return q, k, v


def _grids(offset: Tensor, sets: int) -> tuple[Tensor, ...]:
    """The sampling points of each set, [B, 9*H, W, 2] (x, y) from -1 to 1."""
    batch, _, height, width = offset.shape
    taps = torch.arange(3, device=offset.device) - 1
    y = torch.arange(height, device=offset.device).view(-1, 1) + taps.repeat_interleave(3).view(TAPS, 1, 1)
    x = torch.arange(width, device=offset.device) + taps.repeat(3).view(TAPS, 1, 1)
    dy, dx = offset.view(batch, sets, TAPS, 2, height, width).unbind(3)
    normalised = torch.stack([2 * (dx + x) / (width - 1) - 1, 2 * (dy + y) / (height - 1) - 1], dim=-1)
    return normalised.view(batch, sets, TAPS * height, width, 2).unbind(1)


def torchvision_qkv(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, ...]:
    """torchvision's operator three times, in float32 whatever the input: so autocast runs it."""
    results = torchvision_same_dtype(x.float(), offset.float(), weight.float(), bias.float(), heads)
    q, k, v = (result.to(x.dtype) for result in results)
    return q, k, v


def torchvision_same_dtype(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, ...]:
    """torchvision's operator three times in the input's dtype, in which it then computes the coordinates too."""
    from torchvision.ops import deform_conv2d

    if x.is_cuda and not can_be_captured() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("this torchvision launches its kernels outside the current stream")
    batch, channels, height, width = x.shape
    sets = offset.to(x.dtype).split(2 * TAPS, dim=1)
    kernels, biases = weight.split(channels), bias.split(channels)
    maps = [deform_conv2d(x, sets[s % len(sets)], kernels[s], biases[s], padding=1) for s in range(3)]
    q, k, v = (t.view(batch, heads, channels // heads, height * width).transpose(2, 3).contiguous() for t in maps)
    return q, k, v


@cache
def can_be_captured() -> bool:
    """Whether a CUDA graph holds all of torchvision's operator. Older versions ignore the current stream: the kernels
    then run once, at the capture, and a replay is faster than it should be. The first call must not be captured."""
    from torchvision.ops import deform_conv2d

    x, offset, weight = (torch.rand(shape, device="cuda") for shape in ((1, 4, 8, 8), (1, 18, 8, 8), (4, 4, 3, 3)))
    deform_conv2d(x, offset, weight, padding=1)  # whatever it loads cannot be captured
    graph = torch.cuda.CUDAGraph()
    try:
        with recording(graph, torch.cuda.Stream()):
            result = deform_conv2d(x, offset, weight, padding=1)
        x.copy_(torch.rand_like(x))
        graph.replay()
    except RuntimeError:
        torch.cuda.synchronize()
        return False
    return torch.allclose(result, deform_conv2d(x, offset, weight, padding=1), rtol=1e-3)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, written so that torch.compile knows it and may put a fused kernel in its place."""
    return torch.matmul(q, k.transpose(-2, -1)).mul(q.shape[-1] ** -0.5).softmax(dim=-1).matmul(v)


def sdpa(backend: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`scaled_dot_product_attention` by that backend and no other; RuntimeError where it cannot."""
    with sdpa_kernel(SDPA[backend]):
        return F.scaled_dot_product_attention(q, k, v)
