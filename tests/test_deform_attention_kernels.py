"""The CUDA kernel of the whole attention on small maps, run by the emulator, against float64 and the two steps."""

import re
from pathlib import Path

import numpy as np
import pytest
import test_attention_kernels as attention_steps
import test_deform_kernels as deform_steps
import torch
from emulator import build
from hypothesis import given, settings
from hypothesis import strategies as st

from iact.ops import deform
from iact.ops.reference import attention as attention_reference
from iact.ops.reference import deform as reference

if build.obstacle():
    pytest.skip(build.obstacle(), allow_module_level=True)

DTYPES, BOUND = deform_steps.DTYPES, deform_steps.BOUND
# batch, heads, channels per head, height, width, offset sets; a block takes 64 tokens at a time
SHAPES = [
    (1, 1, 16, 1, 1, 3),
    (1, 1, 48, 8, 8, 3),
    (1, 2, 48, 8, 8, 1),
    (3, 1, 16, 5, 7, 1),
    (1, 3, 32, 7, 7, 3),
    (7, 1, 16, 1, 5, 3),
    (1, 1, 64, 3, 11, 1),
    (1, 1, 64, 5, 5, 3),
    (1, 1, 32, 5, 13, 1),
    (1, 1, 16, 10, 13, 3),
]
CASES = [(dtype, shape) for dtype in DTYPES for shape in SHAPES if dtype != "float16" or shape[2] == 48]
TEXT = (Path(build.ROOT) / "csrc" / "deform_attention_kernels.h").read_text().splitlines()
BARRIERS = [number for number, line in enumerate(TEXT, 1) if re.search(r"\b(__sync\w+|wait_for_block)\(\)", line)]


@pytest.fixture(scope="module")
def kernels():
    return build.load("deform_attention")


def case(shape, dtype="float32", offsets="near", wide=True, seed=0):
    """x, offset, weight and bias; elements of q, k and v are some units in size, so that many keys count."""
    x, offset, weight, bias = deform_steps.case(shape, dtype, offsets, wide, seed)
    return x, offset, weight / (9 * shape[2]) ** 0.5, bias


def run(kernels, x, offset, weight, bias, heads, schedule=0, hardware=0, skipped=0):
    raw, (batch, channels, height, width) = deform_steps.raw, x.shape
    memory = np.zeros(x.numel(), raw(x).dtype)
    shape = [batch, height, width, heads, offset.shape[1] // 18]
    layout = (channels // heads, shape, offset.dtype == torch.float32, list(offset.stride()))
    inputs = (raw(x), raw(offset), raw(weight), None if bias is None else raw(bias))
    kernels.run(deform_steps.name_of(x), *layout, *inputs, memory, schedule, hardware, skipped)
    return torch.from_numpy(memory).view(x.dtype).view(batch, height * width, channels)


def in_steps(q, k, v):
    return attention_reference.attention(q, k, v, None)[0].transpose(1, 2).flatten(2)


def assert_accurate(got, tensors, heads):
    expected = in_steps(*reference.deform_qkv(*(None if t is None else t.double() for t in tensors), heads))
    bound = BOUND[deform_steps.name_of(got)]
    assert (got.double() - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("dtype, shape", CASES)
def test_accuracy(kernels, dtype, shape):
    seed = SHAPES.index(shape)
    x, offset, weight, bias = case(shape, dtype, seed=seed, wide=seed % 3 != 0)
    tensors = (x, offset, weight, None if seed == 2 else bias)
    assert_accurate(run(kernels, *tensors, shape[1]), tensors, shape[1])


@given(data=st.data())
@settings(max_examples=10, derandomize=True)
def test_accuracy_for_drawn_shapes(kernels, data):
    batch, heads, sets = (data.draw(st.sampled_from(values)) for values in ((1, 2, 3, 5), (1, 2, 3), (1, 3)))
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    dtype, offsets = (
        data.draw(st.sampled_from(["float32", "bfloat16"])),
        data.draw(st.sampled_from(["near", "anywhere"])),
    )
    shape = (batch, heads, 16, height, width, sets)
    tensors = case(shape, dtype, offsets, seed=data.draw(st.integers(0, 9)))
    assert_accurate(run(kernels, *tensors, heads, data.draw(st.integers(0, 99))), tensors, heads)


@pytest.mark.parametrize("offsets", ["on pixels", "anywhere"])
@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_offsets_on_pixels_on_edges_and_far_away(kernels, dtype, sets, offsets):
    size = 48 if dtype == "float16" else 16
    tensors = case((2, 1, size, 6, 5, sets), dtype, offsets, wide=sets == 1, seed=sets)
    assert_accurate(run(kernels, *tensors, 1), tensors, 1)


@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("dtype, height", [("float32", 2), ("bfloat16", 4), ("float16", 4)])
def test_gives_the_bits_of_the_two_steps_where_all_keys_are_seen_at_once(kernels, dtype, height, sets):
    tensors = case((1, 1, 48, height, 8, sets), dtype)
    q, k, v = deform_steps.run_qkv(build.load("deform"), *tensors, 1)
    out = attention_steps.run(build.load("attention"), q, k, v, torch.zeros_like(q))[0]
    assert torch.equal(run(kernels, *tensors, 1), out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sets", [1, 3])
def test_the_same_bits_under_any_schedule(kernels, dtype, sets):
    tensors = case((1, 1, 48, 5, 7, sets), dtype)
    first = run(kernels, *tensors, 1)
    assert all(torch.equal(run(kernels, *tensors, 1, schedule), first) for schedule in (1, 2))


def test_float32_keeps_its_digits_whatever_the_hardware_makes_of_its_approximations(kernels):
    tensors = case((1, 1, 16, 6, 6, 1))
    for hardware in range(4):
        assert_accurate(run(kernels, *tensors, 1, hardware=hardware), tensors, 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_tokens_that_do_not_exist_add_nothing_however_far_the_scores_are_from_zero(kernels, sign):
    x, offset, weight, bias = case((1, 1, 16, 1, 37, 3))
    bias[0], bias[16] = sign * 25, 25  # of a channel of q and of k: scores near 156 or -156
    tensors = (x, 0 * offset, weight, bias)
    got = run(kernels, *tensors, 1)
    expected = in_steps(*reference.deform_qkv(*(t.double() for t in tensors), 1))
    assert (got.double() - expected).norm() <= 2e-4 * expected.norm()


def test_large_scores_do_not_overflow(kernels):
    x, offset, weight, bias = case((1, 1, 16, 5, 9, 1))
    assert run(kernels, 1000 * x, offset, weight, bias, 1).isfinite().all()


@pytest.mark.parametrize("line", BARRIERS, ids=lambda line: TEXT[line - 1].strip())
def test_no_barrier_can_be_left_out(kernels, line):
    found = 0
    for sets in (1, 3):
        tensors = case((1, 1, 48, 9, 8, sets), "bfloat16")
        for schedule in range(3):
            try:
                run(kernels, *tensors, 1, schedule, skipped=line)
            except RuntimeError as error:
                assert "race in shared memory" in str(error)
                found += 1
    assert found in (3, 6)  # under any schedule, if not for both kinds of offsets


def test_all_barriers_are_tried():
    assert len(BARRIERS) == 5


@pytest.mark.parametrize(
    "height, width, size, dtype, fits",
    [
        (8, 8, 64, torch.bfloat16, True),
        (8, 8, 48, torch.float32, True),
        (1, 1, 16, torch.float16, True),
        (5, 13, 16, torch.bfloat16, False),
        (16, 16, 48, torch.bfloat16, False),
        (8, 8, 64, torch.float32, False),
    ],
)
def test_which_maps_go_to_the_kernel(height, width, size, dtype, fits):
    x, offset = (torch.empty(2, n, height, width, dtype=dtype, device="meta") for n in (3 * size, 18))
    weight = torch.empty(9 * size, size, 3, 3, dtype=dtype, device="meta")
    assert deform._fits_one_kernel(x, offset, weight, None, 3) == fits
