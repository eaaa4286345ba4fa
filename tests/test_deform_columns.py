"""The sampling step of `deform_qkv`: the compiled kernel, where it was built, against its reference."""

import pytest
import torch

import iact.ops  # noqa: F401 (registers the ops)
from iact.ops.reference import deform as reference


def _columns_case(batch, channels, height, width, heads, sets, dtype, spread=3.0):
    generator = torch.Generator().manual_seed(batch + 10 * height)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows = torch.randn(batch, height, width, channels, generator=generator, dtype=wide)
    offset = torch.randn(batch, 18 * sets, height, width, generator=generator, dtype=wide) * spread
    grad = torch.randn(sets * heads, batch * height * width, 9 * channels // heads, generator=generator).to(dtype)
    return rows, offset, grad


@pytest.mark.parametrize("shape", [(1, 4, 1, 1, 2, 3), (3, 6, 5, 7, 3, 1), (7, 32, 4, 4, 2, 3), (2, 40, 8, 3, 1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.0, 3.0, 1e9])
def test_columns_agree_with_their_reference(shape, dtype, spread):
    heads = shape[4]
    rows, offset, grad = _columns_case(*shape, dtype, spread)
    columns = torch.ops.iact.deform_columns(rows, offset, heads, dtype)
    expected = reference.deform_columns(rows, offset, heads, dtype)
    torch.testing.assert_close(columns, expected, rtol=1e-2 if dtype == torch.bfloat16 else 2e-3, atol=1e-5)
    grads = torch.ops.iact.deform_columns_backward(grad, rows, offset, heads)
    for found, wanted in zip(grads, reference.deform_columns_backward(grad, rows, offset, heads), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_columns_read_strided_offsets():
    rows, offset, _ = _columns_case(3, 8, 5, 4, 2, 3, torch.float32)
    strided = offset.contiguous(memory_format=torch.channels_last)
    plain = torch.ops.iact.deform_columns(rows, offset, 2, torch.float32)
    torch.testing.assert_close(torch.ops.iact.deform_columns(rows, strided, 2, torch.float32), plain, rtol=0, atol=0)


def test_columns_do_not_depend_on_the_number_of_threads():
    rows, offset, grad = _columns_case(5, 16, 6, 6, 2, 3, torch.float32)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(torch.ops.iact.deform_columns_backward(grad, rows, offset, 2))
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_columns_opcheck():
    rows, offset, grad = _columns_case(2, 4, 3, 3, 2, 1, torch.float32)
    torch.library.opcheck(torch.ops.iact.deform_columns.default, (rows, offset, 2, torch.bfloat16))
    torch.library.opcheck(torch.ops.iact.deform_columns_backward.default, (grad, rows, offset, 2))
