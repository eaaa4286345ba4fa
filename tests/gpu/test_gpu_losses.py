"""The losses on a GPU: against the reference, the same bits again and again, in a captured graph, with no wait."""

import pytest
import torch
from graphs import captured

from iact import ops
from iact.heatmaps import encode_heatmaps
from iact.ops import heatmap, registry
from iact.ops.reference import wing as reference

DEFAULTS = (14.0, 0.05, 0.5, 2.1, 1.0)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
SHAPES = [(3, 5, 64, 64), (2, 7, 13, 11), (5, 98, 1, 1), (0, 4, 8, 8), (1, 2, 200, 72)]


def case(shape, dtype=torch.float32, layout=torch.contiguous_format, noise=0.1):
    """Predictions, landmarks inside and outside the maps, and which are visible, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    batch, landmarks, height, width = shape
    points = torch.rand(batch, landmarks, 2, generator=generator) * (torch.tensor([width, height]) + 4.0) - 2
    pred = 0.9 * encode_heatmaps(points, height, width) + noise * torch.randn(shape, generator=generator)
    visible = torch.rand(batch, landmarks, generator=generator) < 0.7
    return pred.to(dtype).contiguous(memory_format=layout), points, visible


def to_gpu(*arguments):
    return [argument.cuda() if isinstance(argument, torch.Tensor) else argument for argument in arguments]


def assert_same(got, expected, drawn):
    """Value and slope alike; a drawn target differs by float32's rounding, of which the slope is up to 600 times."""
    tolerance = max(torch.finfo(got[1].dtype).eps, 4e-6)
    torch.testing.assert_close(got[0].cpu(), expected[0], rtol=5e-6, atol=0)
    assert got[1].stride() == expected[1].stride()
    scale = expected[1].abs().max().item() if expected[1].numel() else 0
    torch.testing.assert_close(got[1].cpu(), expected[1], rtol=tolerance, atol=(3e-5 if drawn else 1e-7) * scale)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_heatmap_loss(shape, dtype, layout):
    pred, points, visible = case(shape, dtype, layout)
    for smooth, seed, sigma, factor in [(True, 4, 1.5, 0.0), (False, None, 1.5, 10.0), (True, None, 0.7, 3.0)]:
        seed = None if seed is None else torch.tensor(seed)
        arguments = (pred, points, visible, seed, smooth, sigma, factor)
        expected = heatmap.reference(*arguments)
        assert_same(torch.ops.iact.heatmap_loss(*to_gpu(*arguments)), expected, drawn=True)


@pytest.mark.parametrize("shape", [*SHAPES, (100_003,), ()])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smooth", [True, False])
def test_given_targets(shape, dtype, smooth):
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(shape, generator=generator)
    pred = (target + 0.1 * torch.randn(shape, generator=generator)).to(dtype)
    weights = [None, torch.rand(shape), torch.rand((), dtype=torch.float64)]
    weights += [torch.rand(shape[1], 1, 1)] if len(shape) == 4 else []
    for weight in weights:
        for given, numbers in [(target, DEFAULTS), (target.to(dtype), (5.0, 0.2, 0.9, 1.7, 0.3))]:
            for reduce in (True, False):
                arguments = (pred, given, weight, smooth, *numbers, reduce)
                got = torch.ops.iact.wing_loss(*to_gpu(*arguments))
                assert_same(got, reference.wing_loss(*arguments), drawn=False)


def test_float32_keeps_six_digits(small):
    generator = torch.Generator().manual_seed(2)
    target = torch.rand(10_000 if small else 1_000_000, generator=generator)
    error = 10 ** (torch.rand(target.shape, generator=generator, dtype=torch.float64) * 6.3 - 6)
    pred = (target + error * (2 * torch.randint(2, target.shape, generator=generator) - 1)).float()
    for smooth in (True, False):
        got = torch.ops.iact.wing_loss(pred.cuda(), target.cuda(), None, smooth, *DEFAULTS, False)
        expected = reference.wing(pred.double(), target.double(), smooth, *DEFAULTS)
        for ours, exact in zip(got, expected, strict=True):
            torch.testing.assert_close(ours.cpu().double(), exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_rounding_gives_the_pixels_of_the_cpu(layout):
    pred, points, _ = case((4, 68, 32, 32), layout=layout)
    slopes = [ops.heatmap_loss(pred.to(device), points.to(device), seed=12) for device in ("cpu", "cuda")]
    torch.testing.assert_close(slopes[1].cpu(), slopes[0], rtol=2e-6, atol=0)
    other = ops.heatmap_loss(pred.cuda(), points.cuda(), seed=13)
    assert abs(other.item() - slopes[0].item()) > 1e-4 * slopes[0].item()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits_twenty_times(layout, small):
    pred, points, visible = to_gpu(*case((1 if small else 32, 98, 64, 64), torch.bfloat16, layout))
    seed = torch.tensor(3, device="cuda")
    first = torch.ops.iact.heatmap_loss(pred, points, visible, seed, True, 1.5, 0.0)
    for _ in range(20):
        again = torch.ops.iact.heatmap_loss(pred, points, visible, seed, True, 1.5, 0.0)
        assert all(torch.equal(got, want) for got, want in zip(again, first, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by", [1.0, 3.0])
def test_gradient_reaches_the_prediction_and_survives_retain_graph(dtype, by):
    pred, points, visible = to_gpu(*case((2, 5, 64, 64), dtype))
    pred.requires_grad_()
    loss = ops.heatmap_loss(pred, points, visible, seed=1) * by
    kept = torch.autograd.grad(loss, pred, retain_graph=True)[0]
    copy = kept.clone()
    last = torch.autograd.grad(loss, pred)[0]
    assert torch.equal(kept, copy) and torch.equal(last, copy)
    expected = heatmap.reference(pred.detach().double(), points, visible, torch.tensor(1).cuda(), True, 1.5, 0.0)[1]
    assert (last.double() - by * expected).norm() < 5e-3 * by * expected.norm()


def test_captured_in_a_graph_that_draws_anew():
    pred, points, visible = to_gpu(*case((4, 68, 64, 64), torch.bfloat16, torch.channels_last))
    pred.requires_grad_()
    seed = torch.zeros((), dtype=torch.int64, device="cuda")

    def step():
        loss = ops.heatmap_loss(pred, points, visible, seed=seed)
        return loss, torch.autograd.grad(loss, pred)[0]

    graph, results = captured(step)
    for value in (5, 6):
        seed.fill_(value)
        graph.replay()
        for got, want in zip(results, step(), strict=True):
            assert torch.equal(got, want)


def test_waits_for_nothing():
    pred, points, visible = to_gpu(*case((2, 5, 64, 64)))
    pred.requires_grad_()
    ops.heatmap_loss(pred, points, visible, seed=1).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        (2 * ops.heatmap_loss(pred, points, visible, seed=1)).backward()
        ops.smooth_wing_loss(pred, pred.detach()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_current_stream():
    pred, points, _ = to_gpu(*case((16, 98, 64, 64)))
    expected = ops.heatmap_loss(pred, points, seed=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # work in front of the copy, which the loss has to wait for
        late = torch.zeros_like(pred).copy_(pred)
        got = ops.heatmap_loss(late, points, seed=1)
    torch.cuda.synchronize()
    assert torch.equal(got, expected)


def test_a_gpu_that_the_kernels_are_not_built_for_runs_on_the_references(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    pred, points = torch.rand(3, 5, 12, 9, generator=generator), 9 * torch.rand(3, 5, 2, generator=generator)
    expected = ops.heatmap_loss(pred, points, seed=1)
    monkeypatch.setattr(registry, "kernels_run_on", lambda device: False)
    pred = pred.cuda().requires_grad_()
    loss = ops.heatmap_loss(pred, points.cuda(), seed=1)
    loss.backward()
    torch.testing.assert_close(loss.detach().cpu(), expected)
    assert pred.grad.isfinite().all() and pred.grad.count_nonzero()
