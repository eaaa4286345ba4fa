import numpy as np
import pytest
import torch

from iact import ops
from iact.errors import InputError
from iact.heatmaps import dilated_weight, encode_heatmaps
from iact.losses import coordinate_loss, mse_loss, wing_loss
from iact.ops import heatmap, info

needs_kernel = pytest.mark.skipif(
    "CPU: kernel" not in info.backends("heatmap_loss"), reason="the extension is not built: python setup.py build_ext"
)
LOSSES = {"smooth_wing": ops.smooth_wing_loss, "adaptive_wing": ops.adaptive_wing_loss}


def _case(batch=3, landmarks=5, height=13, width=11, dtype=torch.float32, layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    pred = torch.rand(batch, landmarks, height, width, generator=generator).to(dtype)
    pred = pred.contiguous(memory_format=layout).requires_grad_()
    points = torch.rand(batch, landmarks, 2, generator=generator) * 10
    return pred, points, torch.rand(batch, landmarks, generator=generator) < 0.7


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("map_factor", [0.0, 10.0])
def test_value_and_gradient_are_those_of_encode_and_loss(kind, seed, map_factor):
    pred, points, visible = _case()
    loss = ops.heatmap_loss(pred, points, visible, kind=kind, seed=seed, map_factor=map_factor)
    target = encode_heatmaps(points, 13, 11, seed=None if seed is None else torch.tensor(seed))
    weight = visible[..., None, None] * (dilated_weight(target, map_factor) if map_factor else torch.ones_like(target))
    expected = LOSSES[kind](pred, target, weight)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, pred)[0] for value in (loss, expected)))


@needs_kernel
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 5, 7, 11), (3, 4, 64, 64), (1, 3, 1, 1), (0, 2, 4, 4), (2, 600, 3, 5)])
def test_kernel_equals_reference(shape, dtype, layout):
    pred, points, visible = _case(*shape, dtype)
    pred = pred.detach().contiguous(memory_format=layout)
    for smooth, seed, sigma, factor in [(True, 4, 1.5, 0.0), (False, None, 1.5, 10.0), (True, None, 0.7, 3.0)]:
        seed = None if seed is None else torch.tensor(seed)
        arguments = (pred, points, visible, seed, smooth, sigma, factor)
        got, expected = torch.ops.iact.heatmap_loss(*arguments), heatmap.reference(*arguments)
        tolerance = max(torch.finfo(dtype).eps, 4e-6)
        torch.testing.assert_close(got[0], expected[0], rtol=4e-6, atol=0)
        assert got[1].stride() == expected[1].stride()
        atol = 2e-5 * expected[1].abs().max().item() if got[1].numel() else 0
        torch.testing.assert_close(got[1], expected[1], rtol=tolerance, atol=atol)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_hidden_landmarks_add_nothing_whatever_they_hold(layout):
    pred, points, visible = _case(layout=layout)
    with torch.no_grad():
        pred[~visible], points[~visible] = torch.nan, torch.nan
    loss = ops.heatmap_loss(pred, points, visible, seed=1)
    (grad,) = torch.autograd.grad(loss, pred)
    assert loss.isfinite() and not grad[~visible].any() and grad.isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_nan_is_passed_on(layout):
    pred, points, _ = _case(layout=layout)
    with torch.no_grad():
        pred[0, 1, 4, 4] = torch.nan
    loss = ops.heatmap_loss(pred, points, seed=1)
    assert loss.isnan() and torch.autograd.grad(loss, pred)[0].isnan().sum() == 1
    points[1, 2, 1] = torch.nan
    assert ops.heatmap_loss(torch.zeros_like(pred), points, seed=1).isnan()


@needs_kernel
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bit_identical_whatever_the_number_of_threads(layout):
    pred, points, visible = _case(3, 17, 64, 64, layout=layout)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3, before):
        torch.set_num_threads(threads)
        results.append(torch.ops.iact.heatmap_loss(pred.detach(), points, visible, torch.tensor(8), True, 1.5, 2.0))
    for other in results[1:]:
        assert all(torch.equal(got, want) for got, want in zip(other, results[0], strict=True))


def test_invisible_landmarks_have_no_gradient():
    pred, points, visible = _case()
    (grad,) = torch.autograd.grad(ops.heatmap_loss(pred, points, visible), pred)
    assert not grad[~visible].any() and grad[visible].any()


def test_gradcheck():
    pred, points, visible = _case(2, 2, 4, 5, torch.float64)
    assert torch.autograd.gradcheck(lambda p: ops.heatmap_loss(p, points, visible, map_factor=3.0), pred)


def test_opcheck():
    pred, points, visible = _case(2, 2, 4, 5)
    arguments = (pred, points, visible, torch.tensor(3), True, 1.5, 10.0)
    torch.library.opcheck(torch.ops.iact.heatmap_loss.default, arguments)
    for method in ("argmax", "window", "topk"):
        torch.library.opcheck(torch.ops.iact.decode_heatmaps.default, (pred.detach(), method, 3, 4))


def test_compiles_whole_and_exports():
    pred, points, visible = _case()

    def loss_and_points(pred, points, visible):
        return ops.heatmap_loss(pred, points, visible, seed=3), ops.decode_heatmaps(pred.detach())

    compiled = torch.compile(loss_and_points, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pred, points, visible), loss_and_points(pred, points, visible))

    class Decode(torch.nn.Module):
        def forward(self, heatmaps):
            return ops.decode_heatmaps(heatmaps)

    exported = torch.export.export(Decode(), (pred.detach(),), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    other = torch.rand(7, 5, 13, 11)
    torch.testing.assert_close(exported.module()(other), ops.decode_heatmaps(other))


def test_seed_may_be_a_tensor():
    pred, points, _ = _case()
    losses = [ops.heatmap_loss(pred, points, seed=seed) for seed in (9, torch.tensor(9), 10)]
    assert losses[0] == losses[1] and losses[0] != losses[2]


def test_a_seed_is_a_number_of_any_kind():
    pred, points, _ = _case()
    expected = ops.heatmap_loss(pred, points, seed=7)
    beside = torch.tensor([7, 3], dtype=torch.int32)  # what lies behind a narrow one in memory does not matter
    for seed in (np.int64(7), torch.tensor(7), torch.tensor([7]), beside[0], beside[:1].to(torch.uint8)):
        assert ops.heatmap_loss(pred, points, seed=seed) == expected
    assert ops.heatmap_loss(pred, points, seed=8) != expected


def test_low_precision_maps_give_a_float32_loss_under_autocast():
    pred, points, _ = _case()
    with torch.autocast("cpu", torch.bfloat16):
        low = pred.detach().bfloat16().requires_grad_()
        loss = ops.heatmap_loss(low, points)
    loss.backward()
    assert loss.dtype == torch.float32 and low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, ops.heatmap_loss(low.detach().float(), points))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(landmarks=torch.zeros(3, 4, 2)), r"landmarks: expected shape \(3, 5, 2\), got \(3, 4, 2\)"),
        (dict(visible=torch.ones(3, 4)), "visible"),
        (dict(kind="l2"), "kind: expected one of smooth_wing, adaptive_wing, got 'l2'"),
        (dict(landmarks=torch.zeros(3, 5, 2, device="meta")), "landmarks: expected the device of pred, cpu, got meta"),
        (dict(visible=torch.ones(3, 5, device="meta")), "visible: expected the device of pred, cpu, got meta"),
        (dict(sigma=0.0), "sigma: expected a positive number of heatmap px, got 0.0"),
        (dict(sigma=float("nan")), "sigma: expected a positive number"),
        (dict(map_factor=-1.0), "map_factor: expected 0 or a positive number, got -1.0"),
        (dict(seed=torch.tensor(1.5)), r"seed: expected one whole number, got torch.float32 \(\)"),
        (dict(seed=torch.empty(0, dtype=torch.int64)), r"seed: expected one whole number, got torch.int64 \(0,\)"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    pred, points, _ = _case()
    with pytest.raises(InputError, match=words):
        ops.heatmap_loss(**{"pred": pred, "landmarks": points, **arguments})


@pytest.mark.parametrize("kind", ["smooth_l1", "wing"])
def test_coordinate_loss_is_zero_at_the_truth_and_pulls_towards_it(kind):
    truth = torch.tensor([[[10.0, 12.0], [20.0, 9.0]]])
    assert coordinate_loss(encode_heatmaps(truth, 32, 32), truth, None, 5, kind) < 1e-5
    pred = encode_heatmaps(truth + 0.6, 32, 32, seed=torch.tensor(0)).requires_grad_()
    before = coordinate_loss(pred, truth, None, 5, kind)
    (grad,) = torch.autograd.grad(before, pred)
    assert coordinate_loss(pred - 0.5 * grad, truth, None, 5, kind) < before


def test_coordinate_loss_leaves_invisible_landmarks_out():
    truth = torch.tensor([[[10.0, 12.0], [20.0, 9.0]]])
    pred = encode_heatmaps(truth + torch.tensor([[[0.0], [3.0]]]), 32, 32)
    assert coordinate_loss(pred, truth, torch.tensor([[True, False]]), 5) < 1e-5
    assert coordinate_loss(pred, truth, None, 5) > 1


def test_mse_and_wing_against_their_formulas():
    pred, points, visible = _case()
    target = encode_heatmaps(points, 13, 11)
    expected = ((pred - target) ** 2 * visible[..., None, None]).mean()
    torch.testing.assert_close(mse_loss(pred, points, visible, 1.5, None), expected)
    errors = torch.tensor([0.0, 3.0, 10.0, 25.0])
    inner = 10 * torch.log(1 + torch.tensor([0.0, 1.5]))
    outer = torch.tensor([10.0, 25.0]) - (10 - 10 * torch.log(torch.tensor(6.0)))
    losses = wing_loss(errors, torch.zeros(4), width=10, curvature=2)
    torch.testing.assert_close(losses, torch.cat([inner, outer]))
