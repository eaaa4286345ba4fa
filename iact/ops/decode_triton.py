"""Decoding on the GPU: one Triton kernel for every method, dtype and memory layout.

A program decodes MAPS maps. It walks over their pixels once, GROUPS at a time, and keeps for each group (the pixels
that are congruent modulo GROUPS) the largest value and where it stands first. The maximum of the map is the largest of
the groups; the next one in order is found by looking through the group of the last once more.

What there is one of per map (its address, the peak, the mean) is [MAPS, 1], or a scalar where MAPS is 1: a scalar has
no place among the threads and costs no exchange between them."""

import torch
import triton
import triton.language as tl

_NONE = tl.constexpr(0x7FFFFFFF)  # index of no pixel
_TAKEN = tl.constexpr(-0x80000000)  # below every float in integer order


@triton.jit
def _offset(pixel, stride_y, WIDTH: tl.constexpr, STRIDE_X: tl.constexpr, FLAT: tl.constexpr):
    """Where a pixel stands from the first of its map, in elements."""
    if FLAT:
        return pixel.to(tl.int64) * STRIDE_X
    return (pixel // WIDTH).to(tl.int64) * stride_y + (pixel % WIDTH).to(tl.int64) * STRIDE_X


@triton.jit
def _ascending(value):
    """Integers in the order of the floats; 0.0 for -0.0, and minus infinity for NaN."""
    bits = (tl.where(value == value, value, -float("inf")) + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(ascending):
    return (ascending ^ ((ascending >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _first(order, index, MAPS: tl.constexpr):
    """The largest of each map, and its lowest index."""
    if MAPS == 1:
        largest = tl.max(order)
        first = tl.min(tl.where(order == largest, index, _NONE))
    else:
        largest = tl.max(order, 1, keep_dims=True)
        first = tl.min(tl.where(order == largest, index, _NONE), 1, keep_dims=True)
    return largest, first


@triton.jit
def _sum(values, MAPS: tl.constexpr):
    return tl.sum(values) if MAPS == 1 else tl.sum(values, 1, keep_dims=True)


@triton.jit
def _scan(
    maps, pixels, stride_y, WIDTH: tl.constexpr, STRIDE_X: tl.constexpr, FLAT: tl.constexpr,
    MAPS: tl.constexpr, GROUPS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The largest value of each group, [MAPS, GROUPS], in integer order, and its lowest index."""
    group = tl.arange(0, GROUPS)[None, :]
    best = tl.full([MAPS, GROUPS], -float("inf"), tl.float32)
    index = tl.zeros([MAPS, GROUPS], tl.int32)
    for start in tl.range(0, pixels, GROUPS, loop_unroll_factor=4):
        pixel = start + group
        pointer = maps + _offset(pixel, stride_y, WIDTH, STRIDE_X, FLAT)
        if WHOLE:
            value = tl.load(pointer).to(tl.float32)
        else:
            value = tl.load(pointer, mask=pixel < pixels, other=-float("inf")).to(tl.float32)
        larger = value > best  # never for NaN
        best = tl.where(larger, value, best)
        index = tl.where(larger, start, index)
    return _ascending(best), index + group


@triton.jit
def _mean(moment, total):
    """Zero where the total is none or the quotient is not a number."""
    mean = moment / tl.where(total > 1e-12, total, 1.0)
    return tl.where((total > 1e-12) & (tl.abs(mean) < float("inf")), mean, 0.0)


@triton.jit
def _window_mean(
    maps, peak, pixels, stride_y, WIDTH: tl.constexpr, STRIDE_X: tl.constexpr, FLAT: tl.constexpr,
    MAPS: tl.constexpr, RADIUS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """From the peak to the mean position weighted by the non-negative values around it, along x and y."""
    side: tl.constexpr = 2 * RADIUS + 1
    total = tl.zeros([MAPS, CHUNK], tl.float32)
    moment_x = tl.zeros([MAPS, CHUNK], tl.float32)
    moment_y = tl.zeros([MAPS, CHUNK], tl.float32)
    for start in range(0, side * side, CHUNK):
        place = start + tl.arange(0, CHUNK)[None, :]
        dx, dy = place % side - RADIUS, place // side - RADIUS
        x, y = peak % WIDTH + dx, peak // WIDTH + dy
        pixel = y * WIDTH + x
        inside = (place < side * side) & (x >= 0) & (x < WIDTH) & (y >= 0) & (pixel < pixels)
        pointer = maps + _offset(pixel, stride_y, WIDTH, STRIDE_X, FLAT)
        value = tl.load(pointer, mask=inside, other=0).to(tl.float32)
        value = tl.where(value > 0, value, 0.0)
        total += value
        moment_x += value * dx
        moment_y += value * dy
    total = _sum(total, MAPS)
    return _mean(_sum(moment_x, MAPS), total), _mean(_sum(moment_y, MAPS), total)


@triton.jit
def _top_mean(
    maps, order, index, largest, peak, k, pixels, stride_y,
    WIDTH: tl.constexpr, STRIDE_X: tl.constexpr, FLAT: tl.constexpr,
    MAPS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """From the peak to the mean position of the k largest pixels weighted by exp(value - maximum), along x and y."""
    group, row = tl.arange(0, GROUPS)[None, :], tl.arange(0, ROWS)[None, :]
    moment_x = (peak * 0).to(tl.float32)
    moment_y = moment_x
    total = moment_x + 1.0  # the peak's own weight
    last, place = largest, peak
    for _ in range(1, k):
        pixel = place % GROUPS + row * GROUPS
        inside = pixel < pixels
        pointer = maps + _offset(pixel, stride_y, WIDTH, STRIDE_X, FLAT)
        left = _ascending(tl.load(pointer, mask=inside, other=-float("inf")).to(tl.float32))
        later = (left < last) | ((left == last) & (pixel > place))
        next_order, next_index = _first(tl.where(inside & later, left, _TAKEN), pixel, MAPS)
        same = group == place % GROUPS
        order = tl.where(same, next_order, order)
        index = tl.where(same, next_index, index)
        last, place = _first(order, index, MAPS)
        weight = tl.where(last == largest, 1.0, tl.exp(_value(last) - _value(largest)))
        total += weight
        moment_x += weight * (place % WIDTH - peak % WIDTH)
        moment_y += weight * (place // WIDTH - peak // WIDTH)
    return moment_x / total, moment_y / total


@triton.jit
def iact_decode(
    heatmaps, to_image, points, scores,
    stride_b, stride_k, stride_y, pixels, to_image_b, to_image_y, to_image_x, k,
    METHOD: tl.constexpr, RADIUS: tl.constexpr,
    LANDMARKS: tl.constexpr, WIDTH: tl.constexpr, STRIDE_X: tl.constexpr, FLAT: tl.constexpr, WHOLE: tl.constexpr,
    MAPS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Writes the coordinates and scores of MAPS maps of one image; `decode` launches it and says what it is given."""
    blocks: tl.constexpr = (LANDMARKS + MAPS - 1) // MAPS
    image = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    landmark = tl.where(block < blocks - 1, block * MAPS, LANDMARKS - MAPS)  # the last may repeat some of those before
    if MAPS > 1:
        landmark += tl.arange(0, MAPS)[:, None]
    maps = heatmaps + image * stride_b + landmark.to(tl.int64) * stride_k
    order, index = _scan(maps, pixels, stride_y, WIDTH, STRIDE_X, FLAT, MAPS, GROUPS, WHOLE)
    largest, peak = _first(order, index, MAPS)
    x, y = (peak % WIDTH).to(tl.float32), (peak // WIDTH).to(tl.float32)
    if METHOD == "window":
        right, down = _window_mean(maps, peak, pixels, stride_y, WIDTH, STRIDE_X, FLAT, MAPS, RADIUS, CHUNK)
        x, y = x + right, y + down
    if METHOD == "topk":
        right, down = _top_mean(
            maps, order, index, largest, peak, k, pixels, stride_y,
            WIDTH, STRIDE_X, FLAT, MAPS, GROUPS, ROWS,
        )  # fmt: skip
        x, y = x + right, y + down
    if to_image is not None:
        row = to_image + image * to_image_b
        a, b, c = tl.load(row), tl.load(row + to_image_x), tl.load(row + 2 * to_image_x)
        row += to_image_y
        d, e, f = tl.load(row), tl.load(row + to_image_x), tl.load(row + 2 * to_image_x)
        x, y = a * x + b * y + c, d * x + e * y + f
    to = image * LANDMARKS + landmark
    tl.store(points + 2 * to, x)
    tl.store(points + 2 * to + 1, y)
    tl.store(scores + to, _value(largest))


def plan(heatmaps: torch.Tensor, method: str, radius: int) -> tuple[dict, int]:
    """The compile-time arguments of the kernel for such heatmaps, and the warps of a program.

    Where channels lie side by side a program takes up to 16 maps, so that it reads whole memory sectors; else one."""
    landmarks, height, width = heatmaps.shape[1:]
    _, stride_k, stride_y, stride_x = heatmaps.stride()
    pixels = height * width
    maps = min(16, 2 ** (landmarks.bit_length() - 1)) if stride_k == 1 and stride_x != 1 else 1
    warps = 8 if maps > 1 else 4 if pixels >= 2**14 else 1
    groups = min(256 if maps > 1 else 256 * warps, triton.next_power_of_2(pixels))
    constants = dict(
        METHOD=method,
        RADIUS=min(radius, max(height, width)) if method == "window" else 0,
        LANDMARKS=landmarks,
        WIDTH=width,
        STRIDE_X=stride_x,
        FLAT=stride_y == width * stride_x and stride_x < 2**20,
        WHOLE=pixels % groups == 0,
        MAPS=maps,
        GROUPS=groups,
        ROWS=triton.next_power_of_2(triton.cdiv(pixels, groups)) if method == "topk" else 1,
        CHUNK=32 if maps > 1 else 128,
    )
    return constants, warps


def decode(
    heatmaps: torch.Tensor, method: str, radius: int, k: int, to_image: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`iact.heatmaps.decode_heatmaps` on the current CUDA device; heatmaps are read where they lie."""
    batch, landmarks, height, width = heatmaps.shape
    points = heatmaps.new_empty(batch, landmarks, 2, dtype=torch.float32)
    scores = heatmaps.new_empty(batch, landmarks, dtype=torch.float32)
    if scores.numel() == 0:
        return points, scores
    constants, warps = plan(heatmaps, method, radius)
    programs = batch * triton.cdiv(landmarks, constants["MAPS"])
    strides = heatmaps.stride()[:3]
    to_strides = (0, 0, 0) if to_image is None else to_image.stride()
    arguments = (heatmaps, to_image, points, scores, *strides, height * width, *to_strides, k)
    iact_decode[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)
    return points, scores
