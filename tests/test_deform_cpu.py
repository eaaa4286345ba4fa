"""The CPU kernel of `deform_qkv`, where it was built, against the reference."""

import pytest
import torch

from iact.ops import info
from iact.ops.reference import deform as reference

pytestmark = pytest.mark.skipif(
    "CPU: kernel" not in info.backends("deform_qkv"), reason="the extension is not built: python setup.py build_ext"
)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1, 4, 1, 1, 2, 3), (3, 6, 5, 7, 3, 1), (7, 32, 4, 4, 2, 3), (2, 40, 8, 5, 1, 1), (2, 96, 9, 11, 2, 3)]
LIMIT = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def case(batch, channels, height, width, heads, sets, dtype=torch.float32, spread=1.0):
    """x, offset, weight, bias and the gradients of q, k, v."""
    generator = torch.Generator().manual_seed(batch + 10 * height)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, weight, bias = normal(batch, channels, height, width), normal(3 * channels, channels // heads, 3, 3), None
    offset = normal(batch, 18 * sets, height, width) * spread
    bias = normal(3 * channels) if sets == 3 else None
    grads = [normal(batch, heads, height * width, channels // heads).to(dtype) for _ in range(3)]
    coordinates = dtype if dtype == torch.float64 else torch.float32
    tensors = x.to(dtype), offset.to(coordinates), weight.to(dtype) / 3, None if bias is None else bias.to(dtype)
    return tensors, grads


def wide(tensors):
    return [None if tensor is None else tensor.double() for tensor in tensors]


def assert_near(got, expected, limit):
    for ours, exact in zip(got, expected, strict=True):
        assert ours.shape == exact.shape and ours.isfinite().all()
        assert (ours.double() - exact).norm() <= limit * exact.norm()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [0.0, 1.0, 1e9])
def test_forward_and_backward_agree_with_the_reference(shape, dtype, spread):
    tensors, grads = case(*shape, dtype, spread)
    heads = shape[4]
    forward = torch.ops.iact.deform_qkv(*tensors, heads)
    assert_near(forward, reference.deform_qkv(*wide(tensors), heads), LIMIT[dtype])
    backward = torch.ops.iact.deform_qkv_backward(*grads, *tensors, heads)
    assert_near(backward, reference.deform_qkv_backward(*wide(grads), *wide(tensors), heads), LIMIT[dtype])
    assert all(tensor.dtype == dtype for tensor in (*forward, backward[0], *backward[2:]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts_change_nothing_but_layout(layout):
    (x, offset, weight, bias), grads = case(3, 8, 5, 4, 2, 3)
    expected = torch.ops.iact.deform_qkv(x, offset, weight, bias, 2)
    expected_grads = torch.ops.iact.deform_qkv_backward(*grads, x, offset, weight, bias, 2)
    others = [tensor.contiguous(memory_format=layout) for tensor in (x, offset, weight)]
    strided = [tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in (x, offset, weight)]
    for tensors in (others, strided):
        for got, want in zip(torch.ops.iact.deform_qkv(*tensors, bias, 2), expected, strict=True):
            assert torch.equal(got, want)
        got_grads = torch.ops.iact.deform_qkv_backward(*grads, *tensors, bias, 2)
        for got, want, like in zip(got_grads, expected_grads, (*tensors, bias), strict=True):
            assert torch.equal(got, want) and got.stride() == torch.empty_like(like).stride()


def test_the_same_bits_whatever_the_number_of_threads():
    tensors, grads = case(5, 16, 9, 8, 2, 3)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        forward = torch.ops.iact.deform_qkv(*tensors, 2)
        results.append([*forward, *torch.ops.iact.deform_qkv_backward(*grads, *tensors, 2)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(other, results[0], strict=True))


@pytest.mark.parametrize("spoil", [lambda grad: grad[:, :, :-1], lambda grad: grad.double()], ids=["shape", "dtype"])
@pytest.mark.parametrize("place", range(3))
def test_gradients_of_something_else_are_refused(spoil, place):
    tensors, grads = case(3, 8, 5, 4, 2, 3)
    grads[place] = spoil(grads[place])
    with pytest.raises(RuntimeError, match="must have the elements and the dtype of x"):
        torch.ops.iact.deform_qkv_backward(*grads, *tensors, 2)
