"""`attention` against the definition in float64, for both the plain reference and the path taken on CPU."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from iact.errors import InputError
from iact.ops.attention import attention
from iact.ops.reference import attention as reference

BOUND = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float64: 1e-12}
SHAPES = [(2, 2, 16, 24), (1, 1, 1, 1), (3, 2, 7, 5), (1, 3, 65, 48), (2, 1, 33, 64)]


def make(shape, dtype=torch.float32, spread=1.0):
    generator = torch.Generator().manual_seed(sum(shape))
    return [(torch.randn(shape, generator=generator) * spread).to(dtype) for _ in range(4)]


def exact(q, k, v, grad, scale=None):
    """Output and gradients of the definition in float64."""
    q, k, v = (t.double().requires_grad_() for t in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = torch.softmax(q @ k.transpose(-1, -2) * scale, -1) @ v
    return out.detach(), *torch.autograd.grad(out, (q, k, v), grad.double())


def run(q, k, v, grad, scale=None):
    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
    out = attention(q, k, v, scale)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(out.dtype))


def run_reference(q, k, v, grad, scale=None):
    out, logsumexp = reference.attention(q, k, v, scale)
    return out, *reference.attention_backward(grad, q, k, v, out, logsumexp, scale)


def assert_close(got, expected, bound):
    for g, e in zip(got, expected, strict=True):
        # gradients of q and k vanish where there is one token: an absolute floor keeps the quotient meaningful
        assert (g.double() - e).norm() <= bound * e.norm().clamp(min=1e-3), (g.dtype, g.shape)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", [run, run_reference])
def test_accuracy(shape, dtype, how):
    tensors = make(shape, dtype)
    # gradients in low precision pass through the rounded output, hence the factor
    got, expected = how(*tensors), exact(*tensors)
    assert_close(got[:1], expected[:1], BOUND[dtype])
    assert_close(got[1:], expected[1:], 2 * BOUND[dtype])
    assert all(t.dtype == dtype for t in got)


@pytest.mark.parametrize("how", [run, run_reference])
def test_large_scores_do_not_overflow(how):
    tensors = make((1, 2, 9, 8), spread=30.0)  # scores of some 10^4
    got = how(*tensors, scale=3.0)
    assert_close(got[:1], exact(*tensors, scale=3.0)[:1], 1e-3)
    assert all(t.isfinite().all() for t in got)


@pytest.mark.parametrize("how", [run, run_reference])
def test_scale_zero_averages(how):
    q, k, v, grad = make((2, 2, 6, 4))
    out = how(q, k, v, grad, 0.0)[0]
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(v))


def test_any_strides_in_contiguous_out():
    tensors = make((2, 3, 5, 8))
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    transposed = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in tensors]
    expected = run(*tensors)
    for inputs in (strided, transposed):
        got = run(*inputs)
        assert all(t.is_contiguous() for t in got)
        assert_close(got, [t.double() for t in expected], 1e-6)


def test_empty_batch():
    out, *grads = run(*make((0, 2, 5, 4)))
    assert out.shape == (0, 2, 5, 4) and all(g.shape == (0, 2, 5, 4) for g in grads)


def test_gradcheck():
    q, k, v, _ = (t.requires_grad_() for t in make((2, 2, 5, 3), torch.float64))
    assert torch.autograd.gradcheck(attention, (q, k, v), fast_mode=True)
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, 0.7), (q, k, v), fast_mode=True)


@pytest.mark.parametrize("shape, dtype", [((2, 2, 6, 8), torch.bfloat16), ((0, 2, 6, 8), torch.float32)])
def test_opcheck(shape, dtype):
    q, k, v, grad = make(shape, dtype)
    torch.library.opcheck(torch.ops.iact.attention, tuple(t.requires_grad_() for t in (q, k, v)) + (None,))
    q, k, v = (t.detach() for t in (q, k, v))
    out, logsumexp = torch.ops.iact.attention(q, k, v, 0.3)
    torch.library.opcheck(torch.ops.iact.attention_backward, (grad, q, k, v, out, logsumexp, 0.3))


def test_there_is_no_second_derivative():
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    out = attention(q, k, v)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="iact::attention has no second derivative"):
        torch.autograd.grad(grad.square().sum() + out.sum(), q)


def test_backward_repeats_bit_for_bit():
    tensors = make((3, 2, 37, 16))
    first, second = run(*tensors), run(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autocast_computes_in_low_precision():
    q, k, v, grad = make((2, 2, 9, 8))
    v = v.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = run(q, k, v, grad)
    assert [t.dtype for t in got] == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    low = [t.bfloat16() for t in (q, k, v, grad)]
    for g, e in zip(got, run(*low), strict=True):
        assert torch.equal(g.bfloat16(), e)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q.double(), k.double(), v.double()).dtype == torch.float64


def test_compile_with_dynamic_shapes():
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: attention(q, k, v) * 2, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in SHAPES:
        q, k, v, _ = (t.requires_grad_() for t in make(shape))
        expected, got = attention(q, k, v) * 2, compiled(q, k, v)
        torch.testing.assert_close(got, expected)
        for g, e in zip(*(torch.autograd.grad(t.sin().sum(), (q, k, v)) for t in (got, expected)), strict=True):
            torch.testing.assert_close(g, e)


def test_flops():
    q, k, v, _ = (t.requires_grad_() for t in make((3, 2, 10, 8)))
    with FlopCounterMode(display=False) as counter:
        out = attention(q, k, v)
    assert counter.get_total_flops() == 2 * 2 * 3 * 2 * 10 * 10 * 8
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 5 * 2 * 3 * 2 * 10 * 10 * 8


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            (torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.ones(2, 3, 4)),
            r"q: expected .*got torch.float32 \[2, 3, 4\]",
        ),
        ((torch.ones(1, 2, 3, 4).int(),) * 3, "q: expected floating-point.*int32"),
        ((torch.ones(1, 2, 3, 4), torch.ones(1, 2, 4, 4), torch.ones(1, 2, 3, 4)), r"k: expected .*\[1, 2, 4, 4\]"),
        ((torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4).half()), "v: expected .*float16"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        attention(*arguments)


def test_shapes_on_the_meta_device():
    q = torch.empty(2, 3, 5, 4, device="meta")
    assert attention(q, q, q).shape == q.shape
