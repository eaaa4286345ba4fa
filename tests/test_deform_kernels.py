"""The CUDA kernels of the deformable projection and of its gradient by x, run by the emulator, against float64."""

import numpy as np
import pytest
import torch
from emulator import build

from iact.ops import deform
from iact.ops.reference import deform as reference

if build.obstacle():
    pytest.skip(build.obstacle(), allow_module_level=True)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BOUND = {"float32": 1e-5, "bfloat16": 4e-3, "float16": 1e-3}
BITS = {2: torch.int16, 4: torch.int32}
READER = np.dtype([("row", np.int32), ("weight", np.float32)])
# batch, heads, channels per head, height, width, offset sets; a block takes 128 tokens
SHAPES = [
    (1, 1, 16, 1, 1, 3),
    (3, 2, 16, 5, 7, 1),
    (1, 1, 16, 1, 131, 3),
    (1, 1, 16, 16, 16, 1),
    (2, 1, 48, 8, 8, 1),
    (2, 1, 48, 4, 9, 3),
    (1, 1, 32, 9, 13, 3),
    (7, 1, 32, 1, 5, 1),
    (1, 1, 64, 3, 7, 1),
    (5, 1, 64, 3, 3, 3),
]
CASES = [(dtype, shape) for dtype in DTYPES for shape in SHAPES if dtype != "float16" or shape[2] in (16, 48)]


@pytest.fixture(scope="module")
def kernels():
    return build.load("deform")


def raw(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a tensor, in its order, as integers."""
    order = sorted(range(tensor.dim()), key=lambda d: -tensor.stride(d))
    return tensor.permute(order).contiguous().view(BITS[tensor.element_size()]).numpy().ravel()


def case(shape, dtype="float32", offsets="near", wide=True, seed=0):
    """x and weight (both channels-last), offset and bias; offsets of the kind asked for."""
    generator = torch.Generator().manual_seed(seed)
    batch, heads, size, height, width, sets = shape
    channels = heads * size
    sizes = [(batch, channels, height, width), (3 * channels, size, 3, 3), (3 * channels,)]
    x, weight, bias = (torch.randn(s, generator=generator).to(DTYPES[dtype]) for s in sizes)
    offset = torch.randn(batch, sets * 18, height, width, generator=generator)
    if offsets == "near":
        offset = 2 * offset
    elif offsets == "on pixels":
        offset = (2 * offset).round()
    else:  # on the map's edge, outside and far away
        values = torch.tensor([-1.0, 1.0, -1.5, 3.0, -20.0, 1e9, -1e30, torch.inf, 0.5, -0.25])
        offset = values[torch.randint(len(values), offset.shape, generator=generator)]
    offset = offset.to(torch.float32 if wide else DTYPES[dtype])
    layout = torch.channels_last if seed % 2 else torch.contiguous_format
    memory = {"memory_format": torch.channels_last}
    return x.contiguous(**memory), offset.contiguous(memory_format=layout), weight.contiguous(**memory), bias


def problem(kernels, x, offset, heads):
    batch, _, height, width = x.shape
    shape = [batch, height, width, heads, offset.shape[1] // 18]
    return kernels.Problem(shape, offset.dtype == torch.float32, list(offset.stride()))


def name_of(x):
    return str(x.dtype).removeprefix("torch.")


def empty_outputs(x, heads):
    """Memory of q, k and v, and their shape."""
    batch, channels, height, width = x.shape
    shape = (batch, heads, height * width, channels // heads)
    return [np.zeros(np.prod(shape), raw(x).dtype) for _ in range(3)], shape


def run_qkv(kernels, x, offset, weight, bias, heads, schedule=0):
    memories, shape = empty_outputs(x, heads)
    task = problem(kernels, x, offset, heads)
    biases = None if bias is None else raw(bias)
    kernels.qkv(name_of(x), shape[3], task, raw(x), raw(offset), raw(weight), biases, memories, schedule)
    return [torch.from_numpy(m).view(x.dtype).view(shape) for m in memories]


def run_lists(kernels, x, offset, heads, ranges=32, schedule=0):
    """starts [S, 9, B, H*W + 1] and readers [S, 9, 4*B*H*W]."""
    batch, _, height, width = x.shape
    sets, pixels = offset.shape[1] // 18, height * width
    starts = np.zeros((sets, 9, batch, pixels + 1), np.int32)
    readers = np.zeros((sets, 9, 4 * batch * pixels), READER)
    kernels.lists(name_of(x), problem(kernels, x, offset, heads), raw(offset), ranges, starts, readers, schedule)
    return starts, readers


def run_grad_x(kernels, grads, x, offset, weight, heads, schedule=0):
    starts, readers = run_lists(kernels, x, offset, heads, schedule=schedule)
    result, size = np.zeros_like(raw(x)), x.shape[1] // heads
    task = problem(kernels, x, offset, heads)
    kernels.grad_x(name_of(x), size, task, [raw(g) for g in grads], raw(weight), starts, readers, result, schedule)
    batch, channels, height, width = x.shape
    return torch.from_numpy(result).view(x.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)


def output_gradients(x, heads, seed=5):
    generator = torch.Generator().manual_seed(seed)
    shape = empty_outputs(x, heads)[1]
    return [torch.randn(shape, generator=generator).to(x.dtype) for _ in range(3)]


def expected_grad_x(grads, x, offset, weight, heads):
    wide = [t.double() for t in (*grads, x, offset, weight)]
    return reference.deform_qkv_backward(*wide, None, heads)[0]


def assert_close(got, expected, bound):
    assert got.dtype != torch.float64 and (got.double() - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("dtype, shape", CASES)
def test_outputs(kernels, dtype, shape):
    seed = SHAPES.index(shape)
    x, offset, weight, bias = case(shape, dtype, seed=seed, wide=seed % 3 != 0)
    bias = None if seed == 4 else bias
    got = run_qkv(kernels, x, offset, weight, bias, shape[1])
    wide = [None if t is None else t.double() for t in (x, offset, weight, bias)]
    for ours, exact in zip(got, reference.deform_qkv(*wide, shape[1]), strict=True):
        assert_close(ours, exact, BOUND[dtype])


@pytest.mark.parametrize("dtype, shape", CASES)
def test_gradient_of_x(kernels, dtype, shape):
    seed = SHAPES.index(shape)
    x, offset, weight, _ = case(shape, dtype, seed=seed, wide=seed % 3 != 0)
    grads = output_gradients(x, shape[1])
    got = run_grad_x(kernels, grads, x, offset, weight, shape[1])
    assert_close(got, expected_grad_x(grads, x, offset, weight, shape[1]), BOUND[dtype])


@pytest.mark.parametrize("offsets", ["on pixels", "anywhere"])
@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_offsets_on_pixels_on_edges_and_far_away(kernels, dtype, sets, offsets):
    heads = 2
    x, offset, weight, bias = case((2, heads, 16, 6, 5, sets), dtype, offsets, wide=sets == 1, seed=sets)
    got = run_qkv(kernels, x, offset, weight, bias, heads)
    wide = [t.double() for t in (x, offset, weight, bias)]
    for ours, exact in zip(got, reference.deform_qkv(*wide, heads), strict=True):
        assert_close(ours, exact, BOUND[dtype])
    grads = output_gradients(x, heads)
    assert_close(
        run_grad_x(kernels, grads, x, offset, weight, heads),
        expected_grad_x(grads, x, offset, weight, heads),
        BOUND[dtype],
    )


def expected_lists(x, offset, heads):
    """For each set, tap, image and pixel its readers, in the order of the kernel: 32 tokens, corners, tokens."""
    batch, _, height, width = x.shape
    sets, pixels = offset.shape[1] // 18, height * width
    corners = reference._corners(offset.float().contiguous(), torch.empty(batch, height, width, 1))
    rows, weights = (t.view(sets, batch, pixels, 9, 4) for t in (corners.rows, corners.weights))
    lists = {}
    for s, b, first, tap, corner in np.ndindex(sets, batch, -(-pixels // 32), 9, 4):
        for token in range(32 * first, min(32 * first + 32, pixels)):
            weight = weights[s, b, token, tap, corner].item()
            if weight:
                key = (s, tap, b, rows[s, b, token, tap, corner].item() - b * pixels)
                lists.setdefault(key, []).append((b * heads * pixels + token, weight))
    return lists


@pytest.mark.parametrize("offsets", ["near", "on pixels", "anywhere"])
@pytest.mark.parametrize(
    "shape, ranges", [((2, 3, 16, 5, 13, 1), 32), ((1, 1, 16, 7, 9, 3), 64), ((1, 2, 16, 1, 1, 1), 32)]
)
def test_lists_hold_every_reader_in_their_order(kernels, shape, ranges, offsets):
    x, offset, _, _ = case(shape, offsets=offsets, seed=len(offsets))
    starts, readers = run_lists(kernels, x, offset, shape[1], ranges)
    expected = expected_lists(x, offset, shape[1])
    for s, tap, b, pixel in np.ndindex(*starts.shape[:3], starts.shape[3] - 1):
        begin, end = starts[s, tap, b, pixel : pixel + 2]
        assert readers[s, tap, begin:end].tolist() == expected.get((s, tap, b, pixel), [])


def test_many_readers_of_one_pixel(kernels):
    """All samples meet in one place: lists as long as the map."""
    shape, heads = (1, 1, 16, 6, 7, 3), 1
    x, offset, weight, _ = case(shape)
    y, column = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    for tap in range(9):
        offset[0, 2 * tap :: 18] = 2.75 - (y + tap // 3 - 1)
        offset[0, 2 * tap + 1 :: 18] = 3.5 - (column + tap % 3 - 1)
    starts, readers = run_lists(kernels, x, offset, heads)
    assert (np.diff(starts).max(-1) == 42).all() and (np.diff(starts).sum(-1) == 4 * 42).all()
    grads = output_gradients(x, heads)
    got = run_grad_x(kernels, grads, x, offset, weight, heads)
    assert_close(got, expected_grad_x(grads, x, offset, weight, heads), 1e-5)


@pytest.mark.parametrize("sets", [1, 3])
def test_the_same_bits_under_any_schedule(kernels, sets):
    x, offset, weight, bias = case((3, 1, 16, 7, 9, sets), "bfloat16")
    grads = output_gradients(x, 1)
    runs = [
        [
            *run_qkv(kernels, x, offset, weight, bias, 1, schedule),
            run_grad_x(kernels, grads, x, offset, weight, 1, schedule),
        ]
        for schedule in range(3)
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize(
    "size, dtype, batch, fits",
    [
        (16, torch.float32, 2, True),
        (48, torch.bfloat16, 1, True),
        (8, torch.float32, 2, False),
        (16, torch.float64, 2, False),
        (16, torch.float32, 0, False),
    ],
)
def test_what_the_kernels_take(size, dtype, batch, fits):
    tensors = [t.to(dtype) for t in case((batch, 2, size, 3, 4, 1))]
    assert deform._fits(*tensors, 2) == fits
    assert deform._fits_backward(*reference.deform_qkv(*tensors, 2), *tensors, 2) == fits
