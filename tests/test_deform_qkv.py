"""`deform_qkv` and `deform_attention` against torchvision's deformable convolution and the definition of attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

from iact.errors import InputError
from iact.ops.attention import attention
from iact.ops.deform import deform_attention, deform_qkv

BOUND = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float64: 1e-12}
# batch, channels, heads, height, width, offset sets
SHAPES = [(2, 8, 2, 5, 7, 1), (3, 6, 1, 1, 1, 3), (1, 8, 4, 4, 1, 3), (7, 12, 3, 6, 6, 3), (1, 4, 4, 1, 5, 1)]


def make(batch, channels, heads, height, width, sets, dtype=torch.float64, spread=2.0, seed=0):
    """x, offset, weight, bias."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, channels, height, width), (batch, sets * 18, height, width)]
    shapes += [(3 * channels, channels // heads, 3, 3), (3 * channels,)]
    x, offset, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return [t.to(dtype) for t in (x, offset * spread, weight, bias)]


def torchvision_qkv(x, offset, weight, bias, heads):
    channels, results = x.shape[1], []
    for s in range(3):
        part = slice(s * channels, (s + 1) * channels)
        own = offset if offset.shape[1] == 18 else offset[:, 18 * s : 18 * s + 18]
        y = deform_conv2d(x, own, weight[part], None if bias is None else bias[part], padding=1)
        results.append(y.unflatten(1, (heads, -1)).flatten(3).transpose(2, 3))
    return results


def run(function, x, offset, weight, bias, heads, seed=1):
    """Outputs and gradients of all tensors."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, offset, weight, bias)]
    outputs = function(*leaves, heads=heads)
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs]
    return [o.detach() for o in outputs], torch.autograd.grad(outputs, [t for t in leaves if t is not None], grads)


def assert_equals_torchvision(tensors, heads):
    got, expected = run(deform_qkv, *tensors, heads), run(torchvision_qkv, *tensors, heads)
    for g, e in zip(got[0] + list(got[1]), expected[0] + list(expected[1]), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_torchvision(shape, with_bias):
    x, offset, weight, bias = make(*shape)
    assert_equals_torchvision((x, offset, weight, bias if with_bias else None), shape[2])


@pytest.mark.parametrize("offset", [0.0, 1.0, -1.0, 0.5, 5.0, -5.0, 1e9, -1e30, float("inf")])
def test_equals_torchvision_where_samples_meet_pixels_or_leave_the_map(offset):
    x, template, weight, bias = make(2, 4, 2, 3, 4, 1)
    # torchvision casts the coordinate to int even when it is far off the map: it cannot be asked about infinity
    asked = torch.full_like(template, offset)
    got, expected = (
        run(deform_qkv, x, asked, weight, bias, 2),
        run(torchvision_qkv, x, asked.clamp(-99, 99), weight, bias, 2),
    )
    for g, e in zip(got[0] + list(got[1]), expected[0] + list(expected[1]), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_equals_torchvision_anywhere(data):
    batch, heads, size = (data.draw(st.integers(1, n), name) for n, name in ((3, "batch"), (3, "heads"), (3, "size")))
    height, width = (data.draw(st.integers(1, 5), name) for name in ("height", "width"))
    sets = data.draw(st.sampled_from((1, 3)), "sets")
    x, offset, weight, bias = make(batch, heads * size, heads, height, width, sets, seed=data.draw(st.integers(0, 99)))
    special = st.one_of(st.integers(-7, 7).map(float), st.floats(-8, 8), st.sampled_from((-1e9, 1e9, -0.5, 1.5)))
    values = torch.tensor(data.draw(st.lists(special, min_size=5, max_size=20)), dtype=torch.float64)
    places = torch.arange(offset.numel()) * 7 % len(values)
    assert_equals_torchvision((x, values[places].view(offset.shape), weight, bias), heads)


@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("dtype", BOUND)
def test_accuracy(dtype, sets):
    """Relative L2 against float64 on the same, already rounded, inputs."""
    x, offset, weight, bias = make(2, 32, 2, 8, 8, sets, dtype)
    offset = offset.to(torch.promote_types(dtype, torch.float32))
    got = run(deform_qkv, x, offset, weight, bias, 2)
    expected = run(deform_qkv, x.double(), offset.double(), weight.double(), bias.double(), 2)
    for g, e in zip(got[0], expected[0], strict=True):
        assert g.dtype == dtype and (g.double() - e).norm() <= BOUND[dtype] * e.norm()
    for g, e, t in zip(got[1], expected[1], (x, offset, weight, bias), strict=True):
        # the incoming gradient is rounded to the outputs' dtype too
        assert g.dtype == t.dtype and (g.double() - e).norm() <= 2 * BOUND[dtype] * e.norm()


def test_low_precision_keeps_float32_coordinates():
    """Far from the origin a bfloat16 coordinate has steps of 0.5 px: the result must follow smaller offsets."""
    x = torch.arange(128.0).expand(1, 1, 1, 128).bfloat16()
    weight = torch.zeros(3, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    offset = torch.full((1, 18, 1, 128), 0.25)
    offset[:, ::2] = 0
    q, _, _ = deform_qkv(x.float(), offset.bfloat16().float(), weight, heads=1)
    low, _, _ = deform_qkv((x - 96).bfloat16(), offset.bfloat16(), weight.bfloat16(), heads=1)
    torch.testing.assert_close(low[0, 0, 64:127, 0].float(), q[0, 0, 64:127, 0] - 96, rtol=4e-3, atol=0)


@pytest.mark.parametrize("shape", [(2, 4, 2, 3, 2, 1), (1, 3, 1, 2, 3, 3)])
def test_gradcheck(shape):
    x, offset, weight, bias = make(*shape, spread=1.0)
    offset = offset.floor() + 0.2 + 0.6 * (offset - offset.floor())  # the derivative jumps at pixels
    leaves = [t.requires_grad_() for t in (x, offset, weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: deform_qkv(*t, heads=shape[2]), leaves, fast_mode=True)
    assert torch.autograd.gradcheck(lambda *t: deform_attention(*t, heads=shape[2]), leaves, fast_mode=True)


@pytest.mark.parametrize(
    "shape, dtype, layout, with_bias",
    [
        ((2, 6, 2, 3, 4, 1), torch.float32, torch.channels_last, True),
        ((2, 4, 1, 1, 2, 3), torch.bfloat16, torch.contiguous_format, False),
        ((0, 4, 2, 3, 3, 1), torch.float32, torch.contiguous_format, True),
    ],
)
def test_opcheck(shape, dtype, layout, with_bias):
    x, offset, weight, bias = make(*shape, dtype)
    x, offset = x.to(memory_format=layout), offset.float()
    ops, heads = torch.ops.iact, shape[2]
    bias = bias if with_bias else None
    leaves = tuple(None if t is None else t.detach().requires_grad_() for t in (x, offset, weight, bias))
    torch.library.opcheck(ops.deform_qkv, (*leaves, heads))
    grads = ops.deform_qkv(x, offset, weight, bias, heads)
    torch.library.opcheck(ops.deform_qkv_backward, (*grads, x, offset, weight, bias, heads))
    torch.library.opcheck(ops.deform_attention, (*leaves, heads))
    torch.library.opcheck(ops.deform_attention_forward, (x, offset, weight, bias, heads))


@pytest.mark.parametrize("sets", [1, 3])
def test_layouts(sets):
    """Channels-last tensors give the same numbers; gradients are laid out as their tensors."""
    tensors = make(3, 8, 2, 4, 5, sets, torch.float32)
    last = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    outputs, grads = run(deform_qkv, *tensors, 2)
    last_outputs, last_grads = run(deform_qkv, *last, 2)
    for a, b in zip(outputs, last_outputs, strict=True):
        torch.testing.assert_close(a, b)
        assert b.is_contiguous()
    for a, b, t in zip(grads, last_grads, last, strict=True):
        torch.testing.assert_close(a, b)
        assert b.stride() == t.stride()


def test_outputs_do_not_share_memory():
    q, k, v = deform_qkv(*make(1, 4, 2, 2, 2, 3), heads=2)
    assert len({t.untyped_storage().data_ptr() for t in (q, k, v)}) == 3


def test_empty_batch():
    outputs, grads = run(deform_qkv, *make(0, 4, 2, 3, 3, 1), 2)
    assert [tuple(t.shape) for t in outputs] == [(0, 2, 9, 2)] * 3
    assert all((g == 0).all() for g in grads) and grads[2].shape == (12, 2, 3, 3)
    assert deform_attention(*make(0, 4, 2, 3, 3, 1), heads=2).shape == (0, 9, 4)


def test_there_is_no_second_derivative():
    x, offset, weight, bias = (t.requires_grad_() for t in make(*SHAPES[0]))
    outputs = deform_qkv(x, offset, weight, bias, heads=2)
    (grad,) = torch.autograd.grad(outputs[0].sum(), x, create_graph=True)  # as some do who want only this one
    with pytest.raises(NotImplementedError, match="iact::deform_qkv has no second derivative"):
        torch.autograd.grad(grad.square().sum() + outputs[0].sum(), x)


def test_backward_repeats_bit_for_bit():
    tensors = make(5, 16, 2, 6, 6, 1, torch.float32, spread=0.3)
    first, second = run(deform_qkv, *tensors, 2), run(deform_qkv, *tensors, 2)
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_autocast_lowers_all_but_the_offset():
    tensors = make(2, 8, 2, 4, 4, 1, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, grads = run(deform_qkv, *tensors, 2)
        assert deform_attention(*tensors, heads=2).dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in grads)
    x, offset, weight, bias = tensors
    expected, _ = run(deform_qkv, x.bfloat16(), offset, weight.bfloat16(), bias.bfloat16(), 2)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("sets", [1, 3])
def test_deform_attention_is_both_steps(sets):
    x, offset, weight, bias = make(2, 8, 4, 3, 5, sets)
    expected = attention(*torchvision_qkv(x, offset, weight, bias, 4))
    expected = torch.cat([expected[:, h] for h in range(4)], -1)
    torch.testing.assert_close(deform_attention(x, offset, weight, bias, heads=4), expected)
    with_gradient = deform_attention(x.requires_grad_(), offset, weight, bias, heads=4)  # in steps, not in one op
    torch.testing.assert_close(with_gradient, expected)


def test_compile_with_dynamic_shapes():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *t: [deform_attention(*t, heads=2)], fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for shape in ((2, 8, 2, 5, 7, 1), (3, 8, 2, 4, 2, 1), (5, 8, 2, 3, 3, 1)):
        tensors = make(*shape)
        got = run(lambda *t, heads: compiled(*t), *tensors, 2)
        expected = run(lambda *t, heads: [deform_attention(*t, heads=heads)], *tensors, 2)
        torch.testing.assert_close(got[0] + list(got[1]), expected[0] + list(expected[1]))


class Projection(torch.nn.Module):
    def __init__(self):
        super().__init__()
        _, _, weight, bias = make(1, 8, 2, 1, 1, 1, torch.float32)
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def forward(self, x, offset):
        return deform_attention(x, offset, self.weight, self.bias, heads=2)


def test_export_with_dynamic_batch():
    x, offset, _, _ = make(2, 8, 2, 4, 4, 1, torch.float32)
    batch, module = torch.export.Dim("batch", min=1, max=64), Projection()
    program = torch.export.export(module, (x, offset), dynamic_shapes=({0: batch}, {0: batch}))
    program = program.run_decompositions()
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "iact.deform_attention_forward.default" in names
    x, offset, _, _ = make(5, 8, 2, 4, 4, 1, torch.float32, seed=3)
    torch.testing.assert_close(program.module()(x, offset), module(x, offset))


def test_flops():
    x, offset, weight, bias = make(3, 8, 2, 4, 5, 1)
    products = 2 * 3 * 3 * 20 * 8 * 4 * 9
    with FlopCounterMode(display=False) as counter:
        outputs = deform_qkv(x.requires_grad_(), offset, weight, bias, heads=2)
    assert counter.get_total_flops() == products
    with FlopCounterMode(display=False) as counter:
        sum(o.sum() for o in outputs).backward()
    assert counter.get_total_flops() == 2 * products
    with FlopCounterMode(display=False) as counter:
        deform_attention(x, offset, weight, bias, heads=2)
    assert counter.get_total_flops() == products + 2 * 2 * 3 * 2 * 20 * 20 * 4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.ones(8, 4, 4)}, r"x: expected \[B, C, H, W\], got \[8, 4, 4\]"),
        ({"heads": 3}, "heads: expected a divisor of the 8 channels of x, got 3"),
        ({"heads": 0}, "heads: expected .*, got 0"),
        ({"offset": torch.ones(2, 36, 4, 4)}, r"offset: expected \[B, 18 or 54, H, W\], got \[2, 36, 4, 4\]"),
        ({"offset": torch.ones(1, 18, 4, 4)}, r"offset: expected the batch .*got \[1, 18, 4, 4\]"),
        ({"offset": torch.ones(2, 18, 4, 3)}, r"offset: expected the batch .*got \[2, 18, 4, 3\]"),
        ({"weight": torch.ones(24, 8, 3, 3)}, r"weight: expected \[24, 4, 3, 3\], got \[24, 8, 3, 3\]"),
        ({"bias": torch.ones(8)}, r"bias: expected \[24\], got \[8\]"),
        ({"x": torch.ones(2, 8, 4, 4).int()}, "x: expected a floating-point tensor, got torch.int32"),
        (
            {"weight": torch.ones(24, 4, 3, 3).half()},
            "weight: expected the dtype of x torch.float32, got torch.float16",
        ),
        ({"bias": torch.ones(24).double()}, "bias: expected the dtype of x torch.float32, got torch.float64"),
        ({"offset": torch.ones(2, 18, 4, 4).half()}, "offset: expected .*torch.float32.*, got torch.float16"),
    ],
)
@pytest.mark.parametrize("function", [deform_qkv, deform_attention])
def test_bad_arguments(function, change, message):
    x, offset, weight, bias = make(2, 8, 2, 4, 4, 1, torch.float32)
    with pytest.raises(InputError, match=message):
        function(**{"x": x, "offset": offset, "weight": weight, "bias": bias, "heads": 2} | change)
