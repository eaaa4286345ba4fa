"""The CUDA kernels of the gradients of offset, weight and bias of `deform_qkv`, run by the emulator, against the
plain-PyTorch reference in float64."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from emulator import build
from torch import Tensor

from iact.ops.reference import deform as reference

if build.obstacle():
    pytest.skip(build.obstacle(), allow_module_level=True)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}  # relative L2
BITS = {2: torch.int16, 4: torch.int32}
OFFSETS = ("random", "on pixels", "outside", "huge")


@pytest.fixture(scope="module")
def kernels():
    return build.load("deform_gradients")


class Problem(NamedTuple):
    """What the backward pass of the op gets: x and weight are channels_last."""

    grads: tuple[Tensor, ...]  # of q, k and v
    x: Tensor
    offset: Tensor
    weight: Tensor
    heads: int

    @property
    def head_size(self) -> int:
        return self.weight.shape[1]

    @property
    def sets(self) -> int:
        return self.offset.shape[1] // (2 * reference.TAPS)

    @property
    def place(self) -> tuple:
        batch, _, height, width = self.x.shape
        wide = self.offset.dtype == torch.float32
        return (batch, height, width, self.heads, self.sets), wide, self.offset.stride()


def offsets(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """In float32. Among those of any kind some leave the map, and only "on pixels" has whole numbers."""
    random = 1.5 * torch.randn(shape, generator=generator)
    sign = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
    if kind == "on pixels":
        return random.round()
    if kind == "outside":
        return random + sign * max(shape[-2:])
    return torch.where(torch.rand(shape, generator=generator) < 0.5, sign * 1e30, random) if kind == "huge" else random


def problem(size=(2, 5, 7), heads=2, head_size=16, sets=3, dtype=torch.float32, kind="random", narrow=False) -> Problem:
    """Random; the offset is channels_last, and of that type where `narrow`."""
    generator = torch.Generator().manual_seed(0)
    batch, height, width = size
    channels = heads * head_size

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    grads = tuple(normal(batch, heads, height * width, head_size) for _ in range(3))
    x = normal(batch, channels, height, width).contiguous(memory_format=torch.channels_last)
    weight = normal(3 * channels, head_size, 3, 3).contiguous(memory_format=torch.channels_last)
    offset = offsets(kind, (batch, sets * 18, height, width), generator)
    offset = offset.to(dtype if narrow else torch.float32).contiguous(memory_format=torch.channels_last)
    return Problem(grads, x, offset, weight, heads)


def expected(given: Problem) -> tuple[Tensor, ...]:
    """The gradients of offset, weight and bias in float64."""
    bias = torch.zeros(given.weight.shape[0], dtype=torch.float64)
    grads = [grad.double() for grad in given.grads]
    wide = [tensor.double() for tensor in (given.x, given.offset, given.weight)]
    return reference.deform_qkv_backward(*grads, *wide, bias, given.heads)[1:]


def raw(tensor: Tensor) -> np.ndarray:
    """The memory of a dense tensor, as integers."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(BITS[tensor.element_size()]).numpy()


def leading(given: Problem) -> tuple:
    """The arguments with which both functions of the binding begin."""
    name = str(given.x.dtype).removeprefix("torch.")
    return name, given.head_size, given.place, [raw(grad) for grad in given.grads], raw(given.x), raw(given.offset)


def offset_gradient(kernels, given: Problem, taps: int = 0, seed: int = 0) -> Tensor:
    result = torch.empty(given.offset.shape)
    kernels.offset_gradient(*leading(given), raw(given.weight), taps, result.numpy(), seed)
    return result


def weight_gradient(kernels, given: Problem, slices: int = 0, seed: int = 0, bias: bool = True):
    """Of weight and bias; None for the second where there is no bias."""
    result = torch.empty_like(given.weight)
    result_bias = torch.empty(given.weight.shape[0], dtype=given.weight.dtype) if bias else None
    kernels.weight_gradient(*leading(given), slices, raw(result), raw(result_bias) if bias else None, seed)
    return result, result_bias


def assert_near(got: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert got.isfinite().all()
    assert (got.double() - exact).norm() <= TOLERANCES[dtype] * exact.norm()


def check(kernels, given: Problem) -> None:
    of_offset, of_weight, of_bias = expected(given)
    assert_near(offset_gradient(kernels, given), of_offset, given.x.dtype)
    weight, bias = weight_gradient(kernels, given)
    assert_near(weight, of_weight, given.x.dtype)
    assert_near(bias, of_bias, given.x.dtype)


@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("head_size", [16, 32, 48, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_equal_the_reference(kernels, dtype, head_size, sets):
    check(kernels, problem((1, 5, 7), 1, head_size, sets, DTYPES[dtype]))


@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("size", [(3, 1, 1), (1, 13, 7), (3, 1, 11), (2, 8, 8)])
def test_maps_of_any_size(kernels, size, sets):
    check(kernels, problem(size, 2, 16, sets, torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OFFSETS)
def test_offsets_of_any_kind(kernels, kind, dtype):
    given = problem((2, 5, 3), 2, 16, 3, DTYPES[dtype], kind)
    of_offset, of_weight, _ = expected(given)
    got = offset_gradient(kernels, given)
    assert_near(got, of_offset, given.x.dtype)
    assert not got[of_offset == 0].any()  # of what is off the map
    assert_near(weight_gradient(kernels, given)[0], of_weight, given.x.dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_offsets_of_the_type_of_x_and_of_any_strides(kernels, dtype):
    given = problem((2, 5, 3), 1, 16, 1, DTYPES[dtype], narrow=True)
    contiguous = given._replace(offset=given.offset.contiguous())
    turned = given._replace(offset=given.offset.transpose(2, 3).contiguous().transpose(2, 3))
    check(kernels, given)
    for other in (contiguous, turned, given._replace(offset=given.offset.float())):
        assert torch.equal(offset_gradient(kernels, other), offset_gradient(kernels, given))
        assert torch.equal(weight_gradient(kernels, other)[0], weight_gradient(kernels, given)[0])


@pytest.mark.parametrize("sets", [1, 3])
def test_the_same_bits_under_any_schedule(kernels, sets):
    given = problem((2, 5, 7), 2, 16, sets, torch.bfloat16)
    of_offset, (weight, bias) = offset_gradient(kernels, given), weight_gradient(kernels, given)
    for seed in range(1, 4):
        assert torch.equal(offset_gradient(kernels, given, seed=seed), of_offset)
        got = weight_gradient(kernels, given, seed=seed)
        assert torch.equal(got[0], weight) and torch.equal(got[1], bias)


@pytest.mark.parametrize("sets", [1, 3])
def test_blocks_of_three_or_nine_taps_give_the_same_offset_gradient(kernels, sets):
    given = problem((1, 5, 3), 2, 16, sets)
    one = offset_gradient(kernels, given, taps=1)
    assert torch.equal(offset_gradient(kernels, given, taps=3), one)
    assert torch.equal(offset_gradient(kernels, given, taps=9), one)


@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("slices", [1, 2, 4])
def test_slices_of_one_or_more_tiles(kernels, slices, sets):
    given = problem((1, 11, 11), 1, 16, sets)  # 4 tiles of float32, the last with 25 of 32 tokens
    weight, bias = weight_gradient(kernels, given, slices)
    assert_near(weight, expected(given)[1], torch.float32)
    assert_near(bias, expected(given)[2], torch.float32)


def test_without_a_bias_the_weight_gradient_is_the_same(kernels):
    given = problem()
    weight, none = weight_gradient(kernels, given, bias=False)
    assert none is None and torch.equal(weight, weight_gradient(kernels, given)[0])
