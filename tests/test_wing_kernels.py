"""The CUDA kernels of the wing losses, run by the emulator, against the plain-PyTorch references."""

import numpy as np
import pytest
import torch
from emulator import build
from test_wing_loss import DEFAULTS, difficult_pairs, random_heatmaps

from iact.ops import heatmap
from iact.ops.reference import wing as reference

if build.obstacle():
    pytest.skip(build.obstacle(), allow_module_level=True)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
TOLERANCES = {"float32": 4e-6, "bfloat16": 2**-8, "float16": 2**-10, "float64": 1e-12}
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(scope="module")
def kernels():
    return build.load("wing")


def raw(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a tensor, in its order, as integers."""
    order = sorted(range(tensor.dim()), key=lambda d: -tensor.stride(d))
    return tensor.permute(order).contiguous().view(BITS[tensor.element_size()]).numpy().ravel()


def like(memory: np.ndarray, pred: torch.Tensor) -> torch.Tensor:
    """A tensor of that memory, laid out as `pred` is."""
    result = torch.empty_like(pred)
    flat = torch.from_numpy(memory.copy()).view(pred.dtype)
    return result.as_strided((pred.numel(),), (1,)).copy_(flat).as_strided(pred.shape, pred.stride())


def run_heatmap(kernels, pred, points, visible, seed, smooth, sigma=1.5, map_factor=0.0, vector=True, schedule=0):
    """Loss and slope as the CUDA op gives them."""
    channels_last = reference.layout_of(pred) == torch.channels_last
    slope = np.empty(pred.numel(), raw(pred).dtype)
    name = str(pred.dtype).removeprefix("torch.")
    factor = reference.slope_factor(pred, True)
    shown = None if visible is None else visible.numpy()
    arguments = (raw(pred), points.numpy(), shown, seed, smooth, sigma, map_factor, factor, slope, schedule, 0)
    loss = kernels.heatmap(name, vector, channels_last, list(pred.shape), *arguments)
    return loss, like(slope, pred)


def assert_like_reference(got, pred, points, visible, seed, smooth, sigma=1.5, map_factor=0.0):
    seed = None if seed is None else torch.tensor(seed)
    wide = pred.double()  # float64 also in the layout of `pred`
    loss, slope = heatmap.reference(wide, points, visible, seed, smooth, sigma, map_factor)
    if pred.dtype == torch.float16:
        slope = slope * pred.numel()
    # the target is drawn in float32, to a few units in its last place, and the slope is up to 600 times the difference
    assert got[0] == pytest.approx(loss.item(), rel=5e-6)
    rounding = TOLERANCES[str(pred.dtype).removeprefix("torch.")]
    torch.testing.assert_close(got[1].double(), slope, rtol=rounding, atol=3e-5 * slope.abs().max().item())


def case(shape, dtype=torch.float32, channels_last=False, noise=0.2, seed=0):
    """Predictions with something of their target, landmarks inside and outside the maps, some of them hidden."""
    generator = torch.Generator().manual_seed(seed)
    batch, landmarks, height, width = shape
    points = torch.rand(batch, landmarks, 2, generator=generator) * (torch.tensor([width, height]) + 4.0) - 2
    target = heatmap.codec.encode_heatmaps(points, height, width)
    pred = 0.9 * target + noise * torch.randn(shape, generator=generator)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    visible = torch.rand(batch, landmarks, generator=generator) < 0.7
    return pred.to(dtype).contiguous(memory_format=layout), points, visible


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape, vector",
    [
        ((2, 3, 16, 16), True),
        ((2, 5, 7, 11), False),
        ((1, 2, 72, 64), True),
        ((3, 7, 1, 1), False),
        ((1, 3, 3, 600), False),
    ],
)
def test_heatmap_kernels_equal_the_reference(kernels, channels_last, dtype, shape, vector):
    pred, points, visible = case(shape, DTYPES[dtype], channels_last)
    for smooth, seed, factor, shown in [(True, 5, 0.0, None), (False, None, 10.0, visible), (True, None, 0.0, visible)]:
        got = run_heatmap(kernels, pred, points, shown, seed, smooth, 1.5, factor, vector)
        assert_like_reference(got, pred, points, shown, seed, smooth, 1.5, factor)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("noise", [0.005, 0.5])
def test_background_takes_the_short_way_to_the_same_result(kernels, channels_last, noise):
    pred, points, _ = case((2, 4, 64, 64), torch.float32, channels_last, noise)
    for sigma, factor in [(1.5, 0.0), (0.7, 10.0)]:
        got = run_heatmap(kernels, pred, points, None, 3, True, sigma, factor)
        assert_like_reference(got, pred, points, None, 3, True, sigma, factor)


@pytest.mark.parametrize("channels_last", [False, True])
def test_hidden_landmarks_add_nothing_whatever_they_hold(kernels, channels_last):
    pred, points, visible = case((2, 4, 16, 16), torch.float32, channels_last)
    visible[0, 0] = False
    points[~visible] = torch.nan
    pred[~visible] = torch.nan
    loss, slope = run_heatmap(kernels, pred, points, visible, 7, True)
    assert np.isfinite(loss) and not slope[~visible].any() and slope[visible].isfinite().all()


def test_nan_is_passed_on(kernels):
    pred, points, _ = case((1, 3, 16, 16))
    broken = pred.clone()
    broken[0, 1, 4, 4] = torch.nan
    loss, slope = run_heatmap(kernels, broken, points, None, 7, True)
    assert np.isnan(loss) and slope.isnan().sum() == 1
    points[0, 2, 0] = torch.nan
    assert np.isnan(run_heatmap(kernels, pred, points, None, 7, True)[0])


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_same_bits_under_any_schedule(kernels, channels_last):
    pred, points, visible = case((2, 3, 64, 64), torch.float32, channels_last)
    runs = [run_heatmap(kernels, pred, points, visible, 5, True, schedule=schedule) for schedule in range(4)]
    assert all(loss == runs[0][0] and torch.equal(slope, runs[0][1]) for loss, slope in runs)


def run_wing(kernels, pred, target, weight, smooth, numbers, reduce, vector, hardware=0):
    """Loss (or losses) and slope as the CUDA op gives them, all contiguous."""
    name = str(pred.dtype).removeprefix("torch.")
    wide = torch.promote_types(pred.dtype, torch.float32)
    slope, losses = np.empty(pred.numel(), raw(pred).dtype), torch.empty(pred.numel(), dtype=wide).numpy()
    place = [] if weight is None else list(zip(pred.shape, weight.expand(pred.shape).stride(), strict=True))
    weights = None if weight is None else weight.to(wide).numpy()
    factor = reference.slope_factor(pred, reduce)
    each = None if reduce else losses
    arguments = (weights, place, smooth, list(numbers), factor, slope, each, 0, hardware)
    mean = kernels.wing(name, vector, raw(pred), raw(target), *arguments)
    return torch.tensor(mean, dtype=wide) if reduce else torch.from_numpy(losses).reshape(pred.shape), like(slope, pred)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(
    "shape, vector", [((2, 3, 8, 16), True), ((3, 5, 7, 11), False), ((5000,), True), ((1,), False)]
)
def test_given_targets(kernels, dtype, smooth, shape, vector):
    pred, target = random_heatmaps(shape, DTYPES[dtype])
    target.flatten()[: target.numel() // 2] = 0  # there the short way is open, for small predictions
    weights = [torch.rand(shape), torch.rand(())] + ([torch.rand(shape[1], 1, 1)] if len(shape) == 4 else [])
    for weight in (None, *weights):
        for reduce in (True, False):
            got = run_wing(kernels, pred, target, weight, smooth, DEFAULTS, reduce, vector)
            expected = reference.wing_loss(
                pred.double(), target.double(), weight, smooth, *DEFAULTS, reduce and dtype != "float16"
            )
            tolerance = TOLERANCES[dtype]
            atol = 1e-7 if dtype == "float16" else 1e-9  # float16 has no finer steps near 0
            torch.testing.assert_close(got[1].double(), expected[1], rtol=tolerance, atol=atol)
            mean = expected[0].mean() if reduce else expected[0]
            torch.testing.assert_close(got[0].double(), mean, rtol=min(tolerance, 1e-5), atol=1e-12)


@pytest.mark.parametrize("smooth, numbers", [(True, DEFAULTS), (False, DEFAULTS), (True, (5.0, 0.2, 0.9, 1.7, 0.3))])
def test_float32_keeps_six_digits_whatever_the_hardware_makes_of_its_approximations(kernels, smooth, numbers):
    pred, target = difficult_pairs(*numbers[1:3])
    expected = reference.wing(pred.double(), target.double(), smooth, *numbers)
    for hardware in range(4):
        got = run_wing(kernels, pred, target, None, smooth, numbers, False, False, hardware)
        for ours, exact in zip(got, expected, strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count, vector", [(16384, True), (9001, False)])
def test_scaling_in_place(kernels, dtype, count, vector):
    slope = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
    for by in (1.0, 0.37):
        memory = raw(slope).copy()
        kernels.scale(dtype, vector, memory, by, 0)
        wide = torch.promote_types(slope.dtype, torch.float32)
        assert torch.equal(like(memory, slope), (slope.to(wide) * torch.tensor(by, dtype=wide)).to(slope.dtype))
