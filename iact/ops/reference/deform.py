"""The deformable Q/K/V projection in plain PyTorch: it defines `iact::deform_qkv` and serves where no kernel does.

It is two steps: `deform_columns` samples the map for every kernel tap, and one batched product turns what was sampled
into q, k and v.

The map is read as rows, one per pixel, of C channels. A sample is then a weighted sum of four rows, which is what an
embedding bag computes, and every sum of the backward pass is an embedding bag or its adjoint too. That is exact for
offsets on pixels, where the normalised coordinates of `grid_sample` can round to the wrong side and change the
gradient, adds in the same order in every run, and is as fast on CPU as `grid_sample`, some 15 times torchvision."""

from typing import NamedTuple

import torch
from torch import Tensor

KERNEL = 3
TAPS = KERNEL * KERNEL
aten = torch.ops.aten


class Corners(NamedTuple):
    """The four pixels around each sample; samples stand in the order [S, B, H, W, 3, 3]."""

    rows: Tensor  # [samples * 4] int64: b * H * W + y * W + x of upper left, upper right, lower left, lower right
    weights: Tensor  # [samples * 4]: bilinear, zero outside the map
    along_y: Tensor  # [2, S, B, H, W, 3, 3]: factors of the upper and the lower row in the weights
    along_x: Tensor  # [2, S, B, H, W, 3, 3]: factors of the left and the right column
    inside_y: Tensor  # [2, S, B, H, W, 3, 3] bool: whether that row is on the map
    inside_x: Tensor  # [2, S, B, H, W, 3, 3] bool


def deform_qkv(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> tuple[Tensor, ...]:
    """q, k, v, each [B, heads, H*W, C/heads], contiguous."""
    batch, channels, height, width = x.shape
    shape = (batch, heads, height * width, channels // heads)
    if x.numel() == 0:
        return x.new_empty(shape), x.new_empty(shape), x.new_empty(shape)
    sets = offset.shape[1] // (2 * TAPS)
    product = _product_dtype(x)
    columns = deform_columns(_pixel_rows(x), _coordinates(offset, x), heads, product)
    matrices = _weight_matrices(weight.to(product), sets, heads)
    if bias is None:
        projected = torch.bmm(columns, matrices)
    else:
        rows = bias.to(product).view(sets, 3 // sets, heads, -1).transpose(1, 2).reshape(sets * heads, 1, -1)
        projected = torch.baddbmm(rows, columns, matrices)
    parts = projected.view(sets, heads, batch, height * width, 3 // sets, -1).permute(0, 4, 2, 1, 3, 5)
    q, k, v = (_packed(parts[s, p], x.dtype) for s in range(sets) for p in range(3 // sets))
    return q, k, v


def deform_qkv_backward(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, offset, weight and bias (empty without a bias), laid out as these are.

    Samples x again: nothing of the size of the columns is kept between the passes."""
    no_bias = weight.new_empty(0)
    if x.numel() == 0:
        return tuple(torch.zeros_like(t) for t in (x, offset, weight, no_bias if bias is None else bias))
    sets, product = offset.shape[1] // (2 * TAPS), _product_dtype(x)
    rows, coordinates = _pixel_rows(x), _coordinates(offset, x)
    grads = _projected_gradient(grad_q, grad_k, grad_v, sets).to(product)
    columns = deform_columns(rows, coordinates, heads, product)
    grad_weight = _matrices_to_weight(torch.bmm(columns.transpose(1, 2), grads), weight, sets, heads)
    grad_bias = no_bias if bias is None else _bias_gradient(grads, bias, sets, heads)
    del columns
    grad_columns = torch.bmm(grads, _weight_matrices(weight.to(product), sets, heads).transpose(1, 2))
    grad_rows, grad_offset = deform_columns_backward(grad_columns, rows, coordinates, heads)
    grad_x = torch.empty_like(x).copy_(grad_rows.permute(0, 3, 1, 2))
    return grad_x, torch.empty_like(offset).copy_(grad_offset), grad_weight, grad_bias


def deform_columns(rows: Tensor, offset: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """[S*heads, B*H*W, 9*C/heads] of that dtype: what each kernel tap reads of the map `rows` [B, H, W, C]."""
    sets = offset.shape[1] // (2 * TAPS)
    return _columns(rows.flatten(0, 2), _corners(offset, rows), sets, heads, dtype)


def deform_columns_backward(grad_columns: Tensor, rows: Tensor, offset: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Gradients of `rows` [B, H, W, C] and `offset` [B, S*18, H, W], contiguous."""
    sets, corners = offset.shape[1] // (2 * TAPS), _corners(offset, rows)
    grad_samples = _columns_to_samples(grad_columns, sets, heads, rows.dtype)
    grad_offset = _offset_gradient(grad_samples, rows.flatten(0, 2), corners, offset)
    return _map_gradient(grad_samples, corners, rows), grad_offset


def _product_dtype(x: Tensor) -> torch.dtype:
    """The precision of the matrix products; on CPU float16 products are some 20 times slower than float32 ones."""
    return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype


def _packed(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy."""
    return t.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _pixel_rows(x: Tensor) -> Tensor:
    """[B, H, W, C] in float32, or float64 for such a map: no copy of a float32 channels-last map."""
    return x.permute(0, 2, 3, 1).to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _coordinates(offset: Tensor, x: Tensor) -> Tensor:
    """The offsets in the precision of `_pixel_rows`."""
    return offset.to(torch.promote_types(x.dtype, torch.float32))


def _corners(offset: Tensor, x: Tensor) -> Corners:
    batch, height, width, _ = x.shape
    dtype = x.dtype
    sets = offset.shape[1] // (2 * TAPS)
    offsets = offset.view(batch, sets, KERNEL, KERNEL, 2, height, width).permute(4, 1, 0, 5, 6, 2, 3)
    rows, columns, taps = (torch.arange(n, device=x.device, dtype=dtype) for n in (height, width, KERNEL))
    taps = taps - KERNEL // 2
    # the whole numbers first: the sum with a tiny offset is then the nearest float, on the right side of the pixel
    y, along_y, inside_y = _along_axis(offsets[0] + (rows.view(-1, 1, 1, 1) + taps.view(-1, 1)), height)
    x_, along_x, inside_x = _along_axis(offsets[1] + (columns.view(-1, 1, 1) + taps), width)
    y = y + height * torch.arange(batch, device=x.device).view(-1, 1, 1, 1, 1)
    pixels = (y * width).unsqueeze(1) + x_
    weights = along_y.unsqueeze(1) * along_x
    flat = (t.reshape(4, -1).t().reshape(-1) for t in (pixels, weights))
    return Corners(*flat, along_y, along_x, inside_y, inside_x)


def _along_axis(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Index, weight and "is on the map" of the two pixels around each position on an axis of that size, each [2, ...].

    Positions are clamped to where both pixels are off the map: huge offsets stay harmless and get no gradient."""
    position = position.clamp(-2, size + 1)
    low = position.floor()
    fraction = position - low
    index = low.long()
    index = torch.stack((index, index + 1))
    inside = (index >= 0) & (index < size)
    return index.clamp(0, size - 1), torch.stack((1 - fraction, fraction)) * inside, inside


def _bags(table: Tensor, indices: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Row i is the weighted sum of the table's rows `indices[starts[i] : starts[i + 1]]`."""
    return aten._embedding_bag_forward_only(table, indices, starts, False, 0, False, weights)[0]


def _sample_starts(corners: Corners) -> Tensor:
    return torch.arange(0, corners.rows.shape[0], 4, device=corners.rows.device)


def _columns(rows: Tensor, corners: Corners, sets: int, heads: int, dtype: torch.dtype) -> Tensor:
    """[S*heads, B*H*W, 9*C/heads]: what each kernel tap reads, in the precision of the product."""
    pixels, channels = rows.shape
    samples = _bags(rows, corners.rows, _sample_starts(corners), corners.weights)
    samples = samples.view(sets, pixels, TAPS, heads, channels // heads).permute(0, 3, 1, 2, 4)
    return _packed(samples, dtype).view(sets * heads, pixels, -1)


def _columns_to_samples(columns: Tensor, sets: int, heads: int, dtype: torch.dtype) -> Tensor:
    """[S*B*H*W*9, C], the inverse of the reordering in `_columns`."""
    columns = columns.view(sets, heads, columns.shape[1], TAPS, -1).permute(0, 2, 3, 1, 4)
    return _packed(columns, dtype).view(-1, heads * columns.shape[-1])


def _weight_matrices(weight: Tensor, sets: int, heads: int) -> Tensor:
    """[S*heads, 9*C/heads, 3/S*C/heads]: what turns the columns of one head into its outputs."""
    size = weight.shape[1]
    taps = weight.flatten(2).view(sets, 3 // sets, heads, size, size, TAPS)
    return taps.permute(0, 2, 5, 4, 1, 3).reshape(sets * heads, TAPS * size, -1)


def _matrices_to_weight(matrices: Tensor, weight: Tensor, sets: int, heads: int) -> Tensor:
    """The inverse of `_weight_matrices`, laid out as the weight is."""
    size = weight.shape[1]
    taps = matrices.view(sets, heads, TAPS, size, 3 // sets, size).permute(0, 4, 1, 5, 3, 2)
    return torch.empty_like(weight).copy_(taps.reshape(weight.shape))


def _projected_gradient(grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, sets: int) -> Tensor:
    """[S*heads, B*H*W, 3/S*C/heads], the order of the batched product."""
    batch, heads, pixels, size = grad_q.shape
    grads = torch.stack((grad_q, grad_k, grad_v)).view(sets, 3 // sets, batch, heads, pixels, size)
    return grads.permute(0, 3, 2, 4, 1, 5).reshape(sets * heads, batch * pixels, -1)


def _bias_gradient(grads: Tensor, bias: Tensor, sets: int, heads: int) -> Tensor:
    total = grads.sum(1, dtype=torch.promote_types(bias.dtype, torch.float32))
    return total.view(sets, heads, 3 // sets, -1).transpose(1, 2).reshape(-1).to(bias.dtype)


def _map_gradient(grad_samples: Tensor, corners: Corners, rows: Tensor) -> Tensor:
    """Each pixel gathers the samples that read it, in one fixed order: scattering would add in any order on a GPU."""
    pixels, order = torch.sort(corners.rows, stable=True)
    starts = torch.searchsorted(pixels, torch.arange(rows.shape[:3].numel(), device=rows.device))
    return _bags(grad_samples, order >> 2, starts, corners.weights[order]).view(rows.shape)


def _offset_gradient(grad_samples: Tensor, rows: Tensor, corners: Corners, offset: Tensor) -> Tensor:
    starts = _sample_starts(corners)
    bag_of_corner = torch.arange(corners.rows.shape[0], device=rows.device) >> 2
    grad_weights = aten._embedding_bag_per_sample_weights_backward(
        grad_samples, rows, corners.rows, starts, bag_of_corner, 0
    )
    g = grad_weights.view(-1, 4).t().reshape(2, *corners.along_y.shape)  # [y corner, x corner, S, B, H, W, 3, 3]
    grad_y = (corners.along_x * (g[1] * corners.inside_y[1] - g[0] * corners.inside_y[0])).sum(0)
    grad_x = (corners.along_y * (g[:, 1] * corners.inside_x[1] - g[:, 0] * corners.inside_x[0])).sum(0)
    grads = torch.stack((grad_y, grad_x)).permute(2, 1, 5, 6, 0, 3, 4)
    return grads.reshape(offset.shape)
