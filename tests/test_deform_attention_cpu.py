"""The CPU kernel of `deform_attention_forward`, where it was built, against its definition in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iact.ops import info
from iact.ops.reference import deform as reference

pytestmark = pytest.mark.skipif(
    "CPU: kernel" not in info.backends("deform_attention_forward"),
    reason="the extension is not built: python setup.py build_ext",
)
LIMIT = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 4e-3, torch.float16: 1e-3}
SIZES = (1, 3, 5, 16, 17, 24, 33, 48)  # channels per head
OFFSETS = ("none", "near", "far", "on pixels", "huge", "infinite")
LAYOUTS = ("contiguous", "channels last", "strided")


def make(batch, heads, size, height, width, sets, dtype=torch.float32, offsets="near", with_bias=True, seed=0):
    """x, offset, weight, bias; the offset in float32 or better."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    channels = heads * size
    x, weight = normal(batch, channels, height, width), normal(3 * channels, size, 3, 3) / (3 * size**0.5)
    offset = moved(normal(batch, 18 * sets, height, width), offsets)
    bias = normal(3 * channels).to(dtype) if with_bias else None
    return x.to(dtype), offset.to(torch.promote_types(dtype, torch.float32)), weight.to(dtype), bias


def moved(noise, offsets):
    factor = {"none": 0, "near": 1, "far": 9, "on pixels": 3, "huge": 1e12, "infinite": math.inf}[offsets]
    return (noise * factor).round() if offsets == "on pixels" else (noise * factor).nan_to_num(0, math.inf, -math.inf)


def laid_out(t, layout):
    """The same numbers, elsewhere in memory."""
    if layout == "strided":
        return t.transpose(2, 3).contiguous().transpose(2, 3).repeat_interleave(2, dim=1)[:, ::2]
    return t.contiguous(memory_format=torch.channels_last if layout == "channels last" else torch.contiguous_format)


def run(x, offset, weight, bias, heads):
    return torch.ops.iact.deform_attention_forward(x, offset, weight, bias, heads)


def definition(x, offset, weight, bias, heads, step=1):
    """Of every `step`-th query, in float64."""
    wide = [None if t is None else t.double() for t in (x, offset, weight, bias)]
    q, k, v = reference.deform_qkv(*wide, heads)
    scores = q[:, :, ::step] @ k.transpose(2, 3) / q.shape[3] ** 0.5
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def assert_near(got, expected, limit):
    assert got.shape == expected.shape and got.isfinite().all()
    assert (got.double() - expected).norm() <= limit * expected.norm()


@settings(max_examples=150)
@given(data=st.data())
def test_equals_the_definition(data):
    batch, heads = (data.draw(st.integers(1, 3), name) for name in ("batch", "heads"))
    height, width = (data.draw(st.integers(1, 13), name) for name in ("height", "width"))
    size, sets = data.draw(st.sampled_from(SIZES), "size"), data.draw(st.sampled_from((1, 3)), "sets")
    dtype, offsets = data.draw(st.sampled_from(list(LIMIT)), "dtype"), data.draw(st.sampled_from(OFFSETS), "offsets")
    with_bias, seed = data.draw(st.booleans(), "bias"), data.draw(st.integers(0, 9), "seed")
    *maps, bias = make(batch, heads, size, height, width, sets, dtype, offsets, with_bias, seed)
    maps = [laid_out(t, data.draw(st.sampled_from(LAYOUTS), name)) for t, name in zip(maps, "xow", strict=True)]
    got = run(*maps, bias, heads)
    assert got.dtype == dtype and got.is_contiguous()
    assert_near(got, definition(*maps, bias, heads), LIMIT[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_offset_of_low_precision(dtype):
    x, offset, weight, bias = make(2, 2, 16, 5, 6, 3, dtype)
    got = run(x, offset.to(dtype), weight, bias, 2)
    assert_near(got, definition(x, offset.to(dtype), weight, bias, 2), LIMIT[dtype])


@pytest.mark.parametrize("height, width", [(64, 64), (1, 1000)])
def test_many_pixels(height, width):
    tensors = make(1, 2, 16, height, width, 1)
    assert_near(run(*tensors, 2)[:, ::29], definition(*tensors, 2, step=29), LIMIT[torch.float32])


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 5, 1), (2, 2, 3, 0, 5, 3)])
def test_nothing_to_attend(shape):
    batch, heads, size, height, width, _ = shape
    assert run(*make(*shape), heads).shape == (batch, height * width, heads * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_scores(dtype):
    """Of exact whole numbers up to thousands, so that only the softmax can err: the weights choose single channels."""
    x, offset, weight, _ = make(2, 1, 4, 9, 16, 1, dtype, "none")
    x = (20 * x).round()
    weight = torch.zeros_like(weight)
    for row in range(12):
        weight[row, row % 4, 1, 1] = 1
    assert_near(run(x, offset, weight, None, 1), definition(x, offset, weight, None, 1), 2e-6)


def test_nan_stays_nan():
    x, offset, weight, bias = make(1, 2, 16, 6, 6, 1)
    x[0, 3, 2, 2] = math.nan
    got = run(x, offset * 0, weight, bias, 2)
    assert got[..., :16].isnan().all() and got[..., 16:].isfinite().all()  # all queries of that head see the pixel


@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("dtype", LIMIT)
def test_the_same_bits_whatever_the_threads_and_the_batch(dtype, sets):
    x, offset, weight, bias = make(6, 2, 24, 12, 11, sets, dtype)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(run(x, offset, weight, bias, 2))
    torch.set_num_threads(before)
    results.append(torch.cat([run(x[i : i + 1], offset[i : i + 1], weight, bias, 2) for i in range(6)]))
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize(
    "place, wrong, message",
    [
        (0, torch.ones(4, 5, 5), "x must be"),
        (1, torch.ones(1, 9, 5, 5), "offset must be"),
        (1, torch.ones(1, 18, 5, 4), "offset must be"),
        (2, torch.ones(12, 4, 3, 3), "weight must be"),
        (3, torch.ones(4), "bias must be"),
        (4, 0, "heads must divide"),
        (4, 3, "heads must divide"),
    ],
)
def test_what_does_not_fit_is_an_error_not_a_crash(place, wrong, message):
    arguments = [*make(1, 2, 2, 5, 5, 1), 2]
    arguments[place] = wrong
    for op in (torch.ops.iact.deform_attention_forward, torch.ops.iact.deform_qkv):
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)
