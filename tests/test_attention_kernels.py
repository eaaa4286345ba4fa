"""The CUDA kernels of attention, run by the emulator, against the definition in float64."""

import numpy as np
import pytest
import torch
from emulator import build
from test_attention import BOUND, exact, make

from iact.ops.attention import _fits, _fits_backward
from iact.ops.reference import attention as reference

if build.obstacle():
    pytest.skip(build.obstacle(), allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# batch, heads, tokens, elements of a row; a block takes 64 or 128 tokens, which meet others in steps of 16, 32 or 64
SHAPES = [
    (3, 2, 1, 16),
    (2, 1, 7, 24),
    (1, 2, 64, 48),
    (1, 1, 65, 32),
    (1, 1, 130, 64),
    (1, 1, 33, 40),
]
CASES = [(d, shape) for d in DTYPES for shape in SHAPES if d != torch.float16 or 32 < shape[3] <= 48]
CASES += [(torch.bfloat16, (1, 1, 256, 48))]
BITS = {2: torch.int16, 4: torch.int32}


@pytest.fixture(scope="module")
def kernels():
    return build.load("attention")


def raw(tensor: torch.Tensor) -> np.ndarray:
    """All memory of a tensor, in its order, as integers."""
    memory = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    return memory.contiguous().view(BITS[tensor.element_size()]).numpy()


def run(kernels, q, k, v, grad, scale=None, aligned=None, tiles=2, schedule=0, hardware=0):
    """Output, gradients of q, k and v, and logsumexp, as the CUDA ops give them; all tensors of the strides of q."""
    assert all(t.stride() == q.stride() for t in (k, v, grad))
    vector = 16 // q.element_size()
    aligned = q.shape[3] % vector == 0 if aligned is None else aligned
    scale = q.shape[3] ** -0.5 if scale is None else scale
    name = str(q.dtype).removeprefix("torch.")
    case = kernels.Case(name, list(q.shape), list(q.stride()[:3]), aligned, scale, tiles, schedule, hardware)
    memory = [np.zeros(q.numel(), raw(q).dtype) for _ in range(4)]
    logsumexp = np.zeros(q.shape[:3], np.float32)
    kernels.forward(case, raw(q), raw(k), raw(v), memory[0], logsumexp)
    out, *gradients = (torch.from_numpy(m).view(q.dtype).reshape(q.shape) for m in memory)
    strided = torch.empty_strided(q.shape, q.stride(), dtype=q.dtype).copy_(out)
    kernels.backward(case, [raw(t) for t in (q, k, v, grad, strided)], logsumexp, memory[1:])
    return out, *gradients, torch.from_numpy(logsumexp)


def assert_close(got, expected, bound):
    for g, e in zip(got, expected, strict=True):
        # with one token the gradients of q and k are differences of equal numbers
        assert (g.double() - e).norm() <= bound * e.norm().clamp(min=0.1), (g.dtype, g.shape)


def assert_accurate(got, tensors, scale=None, factor=1):
    bound = factor * BOUND[tensors[0].dtype]
    expected = exact(*tensors, scale)
    assert_close(got[:1], expected[:1], bound)
    assert_close(got[1:4], expected[1:], 2 * bound)
    q, k, v = (t.double() for t in tensors[:3])
    torch.testing.assert_close(got[4].double(), reference.attention(q, k, v, scale)[1], rtol=1e-6, atol=2e-6)


def assert_same_bits(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype, shape", CASES)
def test_accuracy(kernels, dtype, shape):
    tensors = make(shape, dtype)
    assert_accurate(run(kernels, *tensors), tensors)


@pytest.mark.parametrize("dtype, size", [(torch.bfloat16, 16), (torch.bfloat16, 32), (torch.float16, 48)])
def test_results_do_not_depend_on_the_rows_of_a_warp(kernels, dtype, size):
    tensors = make((1, 2, 130, size), dtype)
    assert_same_bits(run(kernels, *tensors, tiles=1), run(kernels, *tensors, tiles=2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_under_any_schedule(kernels, dtype):
    tensors = make((1, 1, 70, 48), dtype)
    first = run(kernels, *tensors)
    for schedule in (1, 2):
        assert_same_bits(run(kernels, *tensors, schedule=schedule), first)


def test_float32_keeps_its_digits_whatever_the_hardware_makes_of_its_approximations(kernels):
    tensors = make((1, 1, 33, 48))
    for hardware in range(4):
        assert_accurate(run(kernels, *tensors, hardware=hardware), tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_do_not_overflow(kernels, dtype):
    q, k, v, grad = make((1, 1, 70, 48), dtype)
    tensors = (10 * q, 10 * k, v, grad)  # scores of some hundreds
    got = run(kernels, *tensors)
    assert_close(got[:1], exact(*tensors)[:1], BOUND[dtype])
    # few probabilities are not next to 0 or 1: gradients are small differences, in low precision of rounded numbers
    assert_close(got[1:4], exact(*tensors)[1:], 4 * BOUND[dtype])
    far = run(kernels, 1000 * q.float(), k.float(), v.float(), grad.float(), scale=10.0)
    assert all(t.isfinite().all() for t in far)


@pytest.mark.parametrize("sign", [1, -1])
def test_tokens_that_do_not_exist_add_nothing_however_far_the_scores_are_from_zero(kernels, sign):
    q, k, v, grad = make((1, 1, 37, 16))
    q[..., 0], k[..., 0] = sign * 25, 25  # scores near 156 or -156, where those of zeros would be 0
    got, expected = run(kernels, q, k, v, grad), exact(q, k, v, grad)
    assert_close(got[:4], expected, 2e-4)


@pytest.mark.parametrize("scale", [0.0, 0.01, 3.0])
def test_scales(kernels, scale):
    tensors = make((1, 1, 37, 16))
    assert_accurate(run(kernels, *tensors, scale=scale), tensors, scale, factor=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides_of_image_head_and_token(kernels, dtype):
    tensors = make((2, 3, 35, 16), dtype)
    expected = run(kernels, *tensors)
    assert_same_bits(run(kernels, *(t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors)), expected)
    assert_same_bits(run(kernels, *tensors, aligned=False), expected)


@pytest.mark.parametrize("dtype, size", [(torch.float32, 20), (torch.float32, 5), (torch.bfloat16, 23)])
def test_nothing_behind_a_row_is_seen(kernels, dtype, size):
    tensors = make((1, 2, 33, size), dtype)
    padded = [torch.nn.functional.pad(t, (0, 32 - size), value=torch.nan) for t in tensors]
    got = run(kernels, *(t[..., :size] for t in padded))
    assert_accurate(got, tensors)
    assert_same_bits(got, run(kernels, *tensors))


def test_nan_reaches_its_query_and_all_gradients_of_keys_only(kernels):
    q, k, v, grad = make((1, 1, 70, 16))
    q[0, 0, 65, 3] = torch.nan
    out, grad_q, grad_k, grad_v, _ = run(kernels, q, k, v, grad)
    for rows in (out, grad_q):
        assert rows[0, 0, 65].isnan().all() and rows[0, 0].isnan().any(-1).sum() == 1
    assert grad_k.isnan().all() and grad_v.isnan().all()


@pytest.mark.parametrize(
    "shape, dtype, scale, fits",
    [
        ((1, 2, 5, 64), torch.float32, None, True),
        ((1, 2, 5, 7), torch.bfloat16, 0.0, True),
        ((1, 2, 5, 80), torch.float32, None, False),
        ((1, 2, 5, 8), torch.float64, None, False),
        ((1, 2, 5, 8), torch.float32, -1.0, False),
        ((1, 2, 0, 8), torch.float32, None, False),
        ((1, 2, 5, 0), torch.float32, 1.0, False),
    ],
)
def test_what_the_kernels_take(shape, dtype, scale, fits):
    q, k, v, grad = make(shape, dtype)
    assert _fits(q, k, v, scale) == fits
    assert _fits_backward(grad, q, k, v, *reference.attention(q, k, v, scale), scale) == fits
