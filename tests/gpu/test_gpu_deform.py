"""`deform_qkv`, and the whole attention by one kernel, on a GPU: against float64, torchvision and each other, the same
bits again and again, in a captured graph, no wait."""

import pytest
import torch
from graphs import captured

from iact.ops import deform, deform_attention, deform_qkv
from iact.ops.reference import attention as attention_reference
from iact.ops.reference import deform as reference

BUILT = hasattr(torch.ops.iact_cuda, "deform_qkv")
pytestmark = pytest.mark.skipif(not BUILT, reason="the extension is not built with CUDA kernels")
BOUND = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}  # relative L2
OFFSETS = ("near", "on pixels", "anywhere")
# batch, heads, channels per head, height, width, offset sets
SHAPES = [
    (1, 1, 16, 1, 1, 3),
    (3, 2, 16, 5, 7, 1),
    (2, 5, 16, 33, 47, 3),
    (13, 3, 32, 9, 13, 3),
    (7, 2, 32, 1, 131, 1),
    (11, 8, 48, 8, 8, 1),
    (5, 4, 48, 16, 16, 3),
    (1, 2, 48, 70, 71, 3),
    (3, 1, 64, 3, 7, 1),
    (2, 3, 64, 20, 18, 3),
]

# for the whole attention in one kernel: these fit the shared memory of any GPU
MAPS = [
    (1, 1, 16, 1, 1, 3),
    (37, 3, 16, 5, 7, 1),
    (13, 2, 32, 7, 7, 3),
    (2, 8, 48, 8, 8, 1),
    (5, 8, 48, 8, 8, 3),
    (3, 2, 16, 10, 13, 3),
]


def case(shape, dtype=torch.float32, offsets="near", layout=torch.channels_last, seed=0):
    """x, offset, weight and bias on the GPU; the offset in float32."""
    generator = torch.Generator().manual_seed(seed)
    batch, heads, size, height, width, sets = shape
    channels = heads * size
    sizes = [(batch, channels, height, width), (3 * channels, size, 3, 3), (3 * channels,)]
    x, weight, bias = (torch.randn(s, generator=generator).to(dtype) for s in sizes)
    offset = 2 * torch.randn(batch, sets * 18, height, width, generator=generator)
    if offsets == "on pixels":
        offset = offset.round()
    elif offsets == "anywhere":
        values = torch.tensor([-1.0, 1.0, -1.5, 3.0, -20.0, 1e9, -1e30, torch.inf, 0.5, -0.25])
        offset = values[torch.randint(len(values), offset.shape, generator=generator)]
    tensors = [t.contiguous(memory_format=layout) for t in (x, offset, weight)]
    return [t.cuda() for t in (*tensors, bias)]


def run(tensors, heads, seed=1, function=deform_qkv):
    """Outputs, and gradients of all tensors (None is passed on), for the same random gradients of the outputs."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    outputs = function(*leaves, heads=heads)
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(o.shape, generator=generator).to(o.device, tensors[0].dtype).to(o.dtype) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [t for t in leaves if t is not None], grads)]


def expected(tensors, heads, dtype):
    """The same from the reference in float64, for gradients of the outputs that are rounded to dtype."""
    x, offset, weight, bias = (None if t is None else t.double() for t in tensors)
    outputs = reference.deform_qkv(x, offset, weight, bias, heads)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(o.shape, generator=generator).to(o.device, dtype).double() for o in outputs]
    results = reference.deform_qkv_backward(*grads, x, offset, weight, bias, heads)
    return [*outputs, *results[: 3 if bias is None else 4]]


def assert_close(got, wanted, bound):
    for ours, exact in zip(got, wanted, strict=True):
        assert ours.shape == exact.shape
        assert (ours.double() - exact).norm() <= bound * exact.norm()


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_float64(shape, dtype):
    for seed, offsets in enumerate(OFFSETS):
        x, offset, weight, bias = case(shape, dtype, offsets, seed=seed)
        for given in (offset, offset.clamp(-99, 99).to(dtype)):  # two dtypes of offsets
            tensors = (x, given, weight, None if offsets == "on pixels" else bias)
            assert_close(run(tensors, shape[1]), expected(tensors, shape[1], dtype), BOUND[dtype])


@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("dtype", BOUND)
def test_at_the_sizes_of_the_model(dtype, sets, small):
    for channels, height in ((96, 32), (192, 16), (384, 8)):
        heads = channels // 48
        tensors = case((1 if small else 32, heads, 48, height, height, sets), dtype)
        assert_close(run(tensors, heads), expected(tensors, heads, dtype), BOUND[dtype])


def test_equals_torchvision():
    deform_conv2d = pytest.importorskip("torchvision.ops").deform_conv2d
    heads = 3
    x, offset, weight, bias = case((3, heads, 16, 9, 7, 3))

    def convolutions(x, offset, weight, bias, *, heads):
        parts = zip(offset.split(18, 1), weight.chunk(3), bias.chunk(3), strict=True)
        results = [deform_conv2d(x, o, w, b, padding=1) for o, w, b in parts]
        return [r.unflatten(1, (heads, -1)).flatten(3).transpose(2, 3) for r in results]

    wanted = run((x, offset, weight, bias), heads, function=convolutions)
    assert_close(run((x, offset, weight, bias), heads), wanted, 2e-5)


@pytest.mark.parametrize("dtype", BOUND)
def test_layouts(dtype):
    """Any layout gives the same bits; gradients are laid out as their tensors."""
    last = case((2, 2, 16, 6, 5, 3), dtype)
    plain = [t.contiguous() for t in last]
    odd = [t.flatten().new_zeros(t.numel() + 1)[1:].as_strided(t.shape, t.stride()).copy_(t) for t in last]
    assert all(t.data_ptr() % 16 for t in odd)
    wanted = run(last, 2)
    for tensors in (last, plain, odd, [last[0], plain[1], plain[2], last[3]]):
        got = run(tensors, 2)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        assert [g.stride() for g in got[3:]] == [t.stride() for t in tensors]


def test_gradients_that_are_views():
    x, offset, weight, bias = case((2, 2, 16, 6, 5, 3))
    leaf = x.clone().requires_grad_()
    q, k, _ = deform_qkv(leaf, offset, weight, bias, heads=2)
    (q.sum() + k.transpose(1, 2).square().sum()).backward()
    wide = x.double().requires_grad_()
    exact = deform_qkv(wide, offset.double(), weight.double(), bias.double(), heads=2)
    (exact[0].sum() + exact[1].square().sum()).backward()
    assert_close([leaf.grad], [wide.grad], 1e-5)


@pytest.mark.parametrize("heads, dtype", [(1, torch.bfloat16), (8, torch.float32), (2, torch.float64)])
def test_what_the_kernels_do_not_take_goes_to_the_reference(heads, dtype):
    """40, 5 and 20 channels per head, and float64."""
    x, offset, weight, bias = case((2, 1, 40, 5, 6, 1), dtype)
    tensors = (x, offset.to(dtype), weight[:, : 40 // heads], bias)
    bound = 8e-3 if dtype == torch.bfloat16 else 1e-5
    assert_close(run(tensors, heads), expected(tensors, heads, dtype), bound)


def test_no_images():
    for t in run(case((0, 2, 16, 4, 4, 3)), 2):
        assert t.numel() == 0 or not t.any()


@pytest.mark.parametrize("dtype", BOUND)
def test_opcheck(dtype):
    x, offset, weight, bias = case((2, 2, 16, 3, 4, 1), dtype)
    leaves = [t.detach().requires_grad_() for t in (x, offset, weight, bias)]
    torch.library.opcheck(torch.ops.iact.deform_qkv, (*leaves, 2))
    grads = torch.ops.iact.deform_qkv(x, offset, weight, bias, 2)
    torch.library.opcheck(torch.ops.iact.deform_qkv_backward, (*grads, x, offset, weight, bias, 2))


def test_compiled():
    tensors = case((2, 2, 16, 6, 5, 3))
    compiled = torch.compile(lambda *t, heads: [deform_attention(*t, heads=heads)], fullgraph=True)
    plain = run(tensors, 2, function=lambda *t, heads: [deform_attention(*t, heads=heads)])
    assert_close(run(tensors, 2, function=compiled), plain, 1e-5)


@pytest.mark.parametrize("sets", [1, 3])
def test_the_same_bits_twenty_times(sets, small):
    tensors = case((2 if small else 32, 2, 48, 32, 32, sets), torch.bfloat16)
    first = run(tensors, 2)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(run(tensors, 2), first, strict=True))


def test_captured_in_a_graph():
    tensors = case((4, 2, 48, 16, 16, 3), torch.bfloat16)
    grads = [torch.randn(4, 2, 256, 48, device="cuda", dtype=torch.bfloat16) for _ in range(3)]

    def step():
        leaves = [t.detach().requires_grad_() for t in tensors]
        outputs = deform_qkv(*leaves, heads=2)
        return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]

    graph, results = captured(step)
    for seed in (5, 6):
        for t, new in zip(tensors, case((4, 2, 48, 16, 16, 3), torch.bfloat16, seed=seed), strict=True):
            t.copy_(new)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(results, step(), strict=True))


def test_waits_for_nothing():
    leaves = [t.requires_grad_() for t in case((2, 2, 48, 8, 8, 3), torch.bfloat16)]
    sum(t.sum() for t in deform_qkv(*leaves, heads=2)).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(t.sum() for t in deform_qkv(*leaves, heads=2)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_current_stream():
    x, offset, weight, bias = case((8, 2, 48, 32, 32, 3), torch.bfloat16)
    wanted = run((x, offset, weight, bias), 2)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # work in front of the copy, which the kernels have to wait for
        late = torch.zeros_like(x).copy_(x)
        got = run((late, offset, weight, bias), 2)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def attention_case(shape, dtype, offsets="near", seed=0):
    """Elements of q, k and v are some units in size, so that many keys count."""
    x, offset, weight, bias = case(shape, dtype, offsets, seed=seed)
    return x, offset, weight / (9 * shape[2]) ** 0.5, bias


def by_one_kernel(tensors, heads):
    return torch.ops.iact_cuda.deform_attention_forward(*tensors, heads)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("shape", MAPS)
def test_one_kernel_equals_float64_and_the_two_steps(shape, dtype):
    heads, bound = shape[1], BOUND[dtype]
    for seed, offsets in enumerate(OFFSETS):
        x, offset, weight, bias = attention_case(shape, dtype, offsets, seed)
        for given in (offset, offset.clamp(-99, 99).to(dtype)):
            tensors = (x, given, weight, None if offsets == "on pixels" else bias)
            got = by_one_kernel(tensors, heads)
            exact = reference.deform_qkv(*(None if t is None else t.double() for t in tensors), heads)
            wanted = attention_reference.attention(*exact, None)[0].transpose(1, 2).flatten(2)
            assert_close([got], [wanted], bound)
            assert_close([got], [deform._in_steps(*tensors, heads).double()], bound)


@pytest.mark.parametrize(
    "height, size, dtype, fits",
    [
        (8, 48, torch.float32, True),
        (8, 64, torch.bfloat16, True),
        (8, 64, torch.float32, False),
        (9, 48, torch.bfloat16, False),
    ],
)
def test_small_maps_go_to_one_kernel(height, size, dtype, fits):
    tensors = attention_case((3, 2, size, height, 8, 3), dtype)
    wanted = by_one_kernel(tensors, 2) if fits else deform._in_steps(*tensors, 2)
    assert torch.equal(deform_attention(*tensors, heads=2), wanted)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("sets", [1, 3])
def test_one_kernel_gives_the_same_bits_twenty_times_for_any_layout(sets, dtype, small):
    x, offset, weight, bias = attention_case((2 if small else 64, 8, 48, 8, 8, sets), dtype)
    first = by_one_kernel((x, offset, weight, bias), 8)
    assert torch.equal(by_one_kernel((x.contiguous(), offset.contiguous(), weight.contiguous(), bias), 8), first)
    for _ in range(20):
        assert torch.equal(by_one_kernel((x, offset, weight, bias), 8), first)


def test_one_kernel_captured_in_a_graph():
    shape = (4, 8, 48, 8, 8, 3)
    tensors = attention_case(shape, torch.bfloat16)
    graph, result = captured(lambda: deform_attention(*tensors, heads=8))
    for seed in (5, 6):
        for t, new in zip(tensors, attention_case(shape, torch.bfloat16, seed=seed), strict=True):
            t.copy_(new)
        graph.replay()
        assert torch.equal(result, deform_attention(*tensors, heads=8))


def test_a_map_that_shared_memory_does_not_hold_is_refused():
    with pytest.raises(RuntimeError, match="bytes of shared memory"):
        by_one_kernel(attention_case((1, 1, 64, 40, 40, 1), torch.float32), 1)
