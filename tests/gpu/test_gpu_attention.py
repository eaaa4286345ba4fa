"""Attention on a GPU: against the definition in float64 and PyTorch's own, the same bits again and again, in a captured
graph, with no wait."""

import pytest
import torch
from graphs import captured
from torch.nn.functional import scaled_dot_product_attention

from iact.ops import attention
from iact.ops.registry import kernels_run_on

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BOUND = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float64: 1e-12}
# batch, heads, tokens, elements of a row: the model's with few images, odd ones, and one beyond what it needs
SHAPES = [
    (8, 2, 1024, 48),
    (9, 4, 256, 48),
    (4, 8, 64, 48),
    (3, 5, 65, 64),
    (70, 2, 130, 32),
    (1, 1, 1000, 16),
    (2, 3, 7, 24),
    (5, 1, 1, 48),
    (2, 2, 77, 23),
    (1, 1, 2500, 40),
]


def make(shape, dtype=torch.bfloat16, spread=1.0):
    """q, k, v and a gradient."""
    generator = torch.Generator().manual_seed(sum(shape))
    return [(torch.randn(shape, generator=generator) * spread).to("cuda", dtype) for _ in range(4)]


def exact(q, k, v, grad, scale=None):
    """Output and gradients of the definition in float64."""
    q, k, v = (t.double().requires_grad_() for t in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = torch.softmax(q @ k.transpose(-1, -2) * scale, -1) @ v
    return out.detach(), *torch.autograd.grad(out, (q, k, v), grad.double())


def run(q, k, v, grad, scale=None, how=attention):
    q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
    out = how(q, k, v, scale=scale)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), grad)


def error(got, expected):
    """Relative; with one token the gradients of q and k are differences of equal numbers."""
    return ((got.double() - expected).norm() / expected.norm().clamp(min=0.1)).item()


def assert_accurate(tensors, scale=None):
    got, expected, bound = run(*tensors, scale), exact(*tensors, scale), BOUND[tensors[0].dtype]
    assert error(got[0], expected[0]) <= bound
    assert all(error(*pair) <= 2 * bound for pair in zip(got[1:], expected[1:], strict=True))
    assert all(t.is_contiguous() for t in got)


def test_the_kernels_are_built_for_this_gpu():
    assert kernels_run_on(torch.device("cuda", torch.cuda.current_device()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_accuracy(shape, dtype, small):
    batch, heads, tokens, size = shape
    assert_accurate(make((1, 1, min(tokens, 130), size) if small else shape, dtype))


@pytest.mark.parametrize(
    "shape, dtype, scale",
    [
        ((2, 2, 33, 96), torch.bfloat16, None),
        ((2, 2, 33, 16), torch.float64, None),
        ((2, 2, 33, 16), torch.float32, -1.0),
        ((2, 2, 33, 16), torch.float32, 0.0),
        ((2, 2, 33, 16), torch.float32, 0.7),
    ],
)
def test_what_the_kernels_leave_to_pytorch_and_other_scales(shape, dtype, scale):
    assert_accurate(make(shape, dtype), scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_less_accurate_than_the_attention_of_pytorch(dtype, small):
    tensors = make((1, 1, 130, 48) if small else (32, 4, 256, 48), dtype)
    expected = exact(*tensors)
    ours, theirs = run(*tensors), run(*tensors, how=scaled_dot_product_attention)
    for got, other, want in zip(ours, theirs, expected, strict=True):
        assert error(got, want) <= max(1.2 * error(other, want), 2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_do_not_overflow(dtype):
    q, k, v, grad = make((2, 2, 200, 48), dtype)
    tensors = (10 * q, 10 * k, v, grad)
    assert error(run(*tensors)[0], exact(*tensors)[0]) <= BOUND[dtype]
    assert all(t.isfinite().all() for t in run(*tensors, scale=100.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(dtype):
    tensors = make((2, 3, 100, 32), dtype)
    expected = run(*tensors)
    tokens_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    odd = [torch.nn.functional.pad(t, (1, 2), value=torch.nan)[..., 1:-2] for t in tensors]
    columns = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in tensors]
    for others in (tokens_first, odd, columns):
        assert all(torch.equal(a, b) for a, b in zip(run(*others), expected, strict=True))
    q, k, v, _ = (t.requires_grad_() for t in tensors)
    gradients = torch.autograd.grad(attention(q, k, v).sum(), (q, k, v))  # an expanded gradient, all strides 0
    ones = torch.autograd.grad(attention(q, k, v), (q, k, v), torch.ones_like(q))
    assert all(torch.equal(a, b) for a, b in zip(gradients, ones, strict=True))


def test_empty():
    for shape in ((0, 2, 5, 16), (2, 2, 0, 16)):
        assert all(t.shape == shape for t in run(*make(shape)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_twenty_times_and_for_an_image_alone(dtype, small):
    tensors = make((2, 2, 130, 48) if small else (64, 2, 1024, 48), dtype)
    first = run(*tensors)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(run(*tensors), first, strict=True))
    alone = run(*(t[1:2] for t in tensors))
    assert all(torch.equal(a, b[1:2]) for a, b in zip(alone, first, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_captured_in_a_graph(dtype):
    tensors, others = make((4, 2, 256, 64), dtype), make((4, 2, 256, 64), dtype, spread=0.5)
    graph, results = captured(lambda: run(*tensors))
    for tensor, other in zip(tensors, others, strict=True):
        tensor.copy_(other)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(results, run(*others), strict=True))


def test_waits_for_nothing():
    tensors = make((2, 2, 130, 48))
    run(*tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(*tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_current_stream():
    tensors = make((4, 2, 256, 48))
    expected = run(*tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # work in front of the copies, which attention has to wait for
        got = run(*(torch.zeros_like(t).copy_(t) for t in tensors))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_opcheck():
    q, k, v, grad = make((2, 2, 70, 48))
    torch.library.opcheck(torch.ops.iact.attention, tuple(t.requires_grad_() for t in (q, k, v)) + (None,))
    q, k, v = (t.detach() for t in (q, k, v))
    out, logsumexp = torch.ops.iact.attention(q, k, v, 0.3)
    torch.library.opcheck(torch.ops.iact.attention_backward, (grad, q, k, v, out, logsumexp, 0.3))


def test_autocast_computes_in_low_precision():
    q, k, v, grad = make((2, 2, 70, 48), torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        got = run(q, k, v, grad.bfloat16())
    assert [t.dtype for t in got] == [torch.bfloat16, *[torch.float32] * 3]
    low = run(*(t.bfloat16() for t in (q, k, v, grad)))
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(got, low, strict=True))
