"""The Smooth Wing and Adaptive Wing losses: the reference against 50-digit arithmetic, the kernel against both."""

import mpmath
import numpy as np
import pytest
import torch

from iact import ops
from iact.ops import info
from iact.ops.reference import wing as reference

DEFAULTS = (14.0, 0.05, 0.5, 2.1, 1.0)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
has_kernel = "CPU: kernel" in info.backends("wing_loss")
needs_kernel = pytest.mark.skipif(not has_kernel, reason="the extension is not built: python setup.py build_ext")
IMPLEMENTATIONS = [
    pytest.param(reference.wing_loss, id="reference"),
    pytest.param(torch.ops.iact.wing_loss, id="kernel", marks=needs_kernel),
]


def exact(pred, target, smooth, omega, theta1, theta2, alpha, epsilon):
    """Value and slope in 50 digits from the constants K, M, A, C of equation 6 (repaired), as printed."""
    with mpmath.workdps(50):
        difference = mpmath.mpf(float(pred)) - mpmath.mpf(float(target))
        e, p = abs(difference), mpmath.mpf(alpha) - mpmath.mpf(float(target))
        omega, theta1, theta2, epsilon = (mpmath.mpf(number) for number in (omega, theta1, theta2, epsilon))

        def middle(e):
            power = (e / epsilon) ** p
            return omega * mpmath.log1p(power), omega * p * (e / epsilon) ** (p - 1) / epsilon / (1 + power)

        if smooth and e < theta1:
            (V, B), u = middle(theta1), theta1**2
            L = mpmath.log1p(u)
            K = (1 + u) * (B * theta1 - 2 * V) / (2 * u - 2 * L * (1 + u))
            M = (V - K * L) / u
            value, slope = K * mpmath.log1p(e**2) + M * e**2, 2 * e * (K / (1 + e**2) + M)
        elif e < theta2:
            value, slope = middle(e) if e else (mpmath.mpf(0), mpmath.mpf(0))
        else:
            V, A = middle(theta2)
            value, slope = A * e - (theta2 * A - V), A
        return value, slope * mpmath.sign(difference)


def difficult_pairs(theta1=0.05, theta2=0.5, count=1200):
    """float32 predictions and targets: y in [0, 1], |e| log-uniform in [1e-6, 2], and e at and around each theta."""
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.uniform(0, 1, count), rng.choice([0, 0.1, 1, 1e-30, 1 - 2**-24], count // 2)])
    e = 10 ** rng.uniform(-6, np.log10(2), y.size)
    edges = np.array(
        [theta * (1 + sign * gap) for theta in (theta1, theta2) for sign in (-1, 1) for gap in (0, 1e-7, 1e-4)]
    )
    grid_y, grid_e = (grid.ravel() for grid in np.meshgrid([0, 0.1, 0.5, 1], np.concatenate([edges, [0, 1e-6, 2]])))
    y, e = np.concatenate([y, grid_y]).astype(np.float32), np.concatenate([e, grid_e])
    sign = rng.choice([-1, 1], y.size)
    return torch.from_numpy((y + sign * e).astype(np.float32)), torch.from_numpy(y)


def random_heatmaps(shape=(3, 5, 7, 11), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    scale = 10 ** (-4 * torch.rand(shape, generator=generator, dtype=torch.float64))
    pred = target + scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    return pred.to(dtype), target.to(dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "smooth, numbers",
    [
        (True, DEFAULTS),
        (False, (14.0, 0.0, 0.5, 2.1, 1.0)),
        (True, (5.0, 0.2, 0.9, 1.7, 0.3)),
        (True, (1.0, 1e-3, 0.02, 2.5, 0.01)),
        (True, (14.0, 1.0, 1.5, 2.1, 2.0)),
        (False, (20.0, 0.0, 1.5, 2.1, 0.01)),
    ],
)
def test_value_and_slope_are_exact_to_one_in_a_million(implementation, smooth, numbers):
    pred, target = difficult_pairs(*numbers[1:3])
    value, slope = implementation(pred, target, None, smooth, *numbers, False)
    assert value.dtype == slope.dtype == torch.float32
    for i in range(0, pred.numel(), 1 if numbers == DEFAULTS else 5):
        expected = exact(pred[i], target[i], smooth, *numbers)
        for got, want in zip((value[i], slope[i]), expected, strict=True):
            assert abs(float(got) - want) <= 1e-6 * abs(want), (float(pred[i]), float(target[i]), float(got), want)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float64_is_exact_to_its_own_precision(implementation):
    pred, target = (tensor.double() for tensor in difficult_pairs(count=200))
    value, slope = implementation(pred, target, None, True, *DEFAULTS, False)
    for i in range(pred.numel()):
        for got, want in zip((value[i], slope[i]), exact(pred[i], target[i], True, *DEFAULTS), strict=True):
            assert abs(mpmath.mpf(float(got)) - want) <= 1e-13 * abs(want), (float(pred[i]), float(target[i]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("theta", [0.05, 0.5])
def test_continuous_in_value_and_slope_where_pieces_meet(implementation, theta):
    target = torch.linspace(0, 1, 101, dtype=torch.float64)
    below = implementation(target + theta * (1 - 1e-12), target, None, True, *DEFAULTS, False)
    above = implementation(target + theta * (1 + 1e-12), target, None, True, *DEFAULTS, False)
    for left, right in zip(below, above, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=0)


def test_adaptive_wing_equals_its_published_formula():
    pred, target = random_heatmaps(dtype=torch.float64)
    error, p, theta = (pred - target).abs(), 2.1 - target, 0.5
    A = 14 * p * theta ** (p - 1) / (1 + theta**p)
    C = theta * A - 14 * torch.log(1 + theta**p)
    expected = torch.where(error < theta, 14 * torch.log(1 + error**p), A * error - C)
    torch.testing.assert_close(ops.adaptive_wing_loss(pred, target, reduction="none"), expected)
    torch.testing.assert_close(ops.adaptive_wing_loss(pred, target), expected.mean())


@needs_kernel
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 3, 5, 13), (2, 98, 1, 1), (0, 4, 8, 8), (1, 1, 33, 31), (1000,), ()])
def test_kernel_equals_reference(smooth, dtype, shape):
    pred, target = random_heatmaps(shape, dtype)
    for weight in (None, torch.rand(shape, dtype=dtype), torch.rand((), dtype=torch.float64)):
        for reduce in (True, False):
            arguments = (pred, target, weight, smooth, *DEFAULTS, reduce)
            assert_same(torch.ops.iact.wing_loss(*arguments), reference.wing_loss(*arguments))


def assert_same(got, expected):
    """Equal in layout, dtype and value."""
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.stride() == theirs.stride()
        assert_close(ours, theirs)


def assert_close(ours, theirs):
    """Equal dtypes, and values to a millionth or the last digit of the dtype, whatever is more (a few in float64)."""
    tolerance = 1e-14 if ours.dtype == torch.float64 else max(torch.finfo(ours.dtype).eps, 1e-6)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=1e-4 * tolerance)


def views(tensor):
    """The same values in several memory layouts."""
    yield "channels_last", tensor.contiguous(memory_format=torch.channels_last)
    yield "transposed", tensor.transpose(2, 3).contiguous().transpose(2, 3)
    yield "sliced", torch.stack([tensor, tensor], -1)[..., 0]
    yield "batch last", tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("weight_shape", [None, (4, 1, 1), (3, 1, 1, 1), (3, 4, 6, 5), (5,)])
def test_layout_changes_nothing_but_layout(implementation, dtype, weight_shape):
    pred, target = random_heatmaps((3, 4, 6, 5), dtype)
    weight = None if weight_shape is None else torch.rand(weight_shape)
    expected = implementation(pred, target, weight, True, *DEFAULTS, False)
    for name, view in views(pred):
        for other in (target, view.clone().copy_(target)):
            for got, want in zip(implementation(view, other, weight, True, *DEFAULTS, False), expected, strict=True):
                assert_close(got, want)
                is_channels_last = got.is_contiguous(memory_format=torch.channels_last)
                assert is_channels_last if name == "channels_last" else got.is_contiguous()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("smooth", [True, False])
def test_zero_nan_and_infinity(implementation, smooth):
    pred, target = torch.tensor([0.25, float("nan"), float("inf"), -float("inf"), 1e30]), torch.full((5,), 0.25)
    value, slope = implementation(pred, target, None, smooth, *DEFAULTS, False)
    assert value[0] == 0 and slope[0] == 0
    assert value[1].isnan() and slope[1].isnan()
    assert value[2] == value[3] == float("inf") and slope[2] == -slope[3] and 9 < slope[2] < 12
    assert value[4].isfinite()
    assert implementation(pred, target, None, smooth, *DEFAULTS, True)[0].isnan()


@pytest.mark.parametrize("loss", [ops.smooth_wing_loss, ops.adaptive_wing_loss])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradient_in_float64(loss, reduction):
    pred, target = random_heatmaps((2, 3, 4, 5), torch.float64)
    weight = torch.rand(2, 3, 1, 1, dtype=torch.float64)
    pred.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss(p, target, weight, reduction=reduction), pred, eps=1e-8, atol=1e-5)


def test_gradient_reaches_the_prediction_only_and_survives_retain_graph():
    pred, target = (tensor.requires_grad_() for tensor in random_heatmaps())
    weight = torch.rand(3, 5, 1, 1, requires_grad=True)
    loss = ops.smooth_wing_loss(pred, target, weight)
    first, none, nothing = torch.autograd.grad(
        loss, (pred, target, weight), 3 * torch.ones(()), retain_graph=True, allow_unused=True
    )
    kept = first.clone()
    second, third = (torch.autograd.grad(loss, pred, by * torch.ones(()), retain_graph=by < 3)[0] for by in (1, 3))
    assert none is None and nothing is None
    assert torch.equal(first, kept) and torch.equal(first, third)
    torch.testing.assert_close(3 * second, first)
    slope = reference.wing_loss(pred.detach(), target.detach(), weight.detach(), True, *DEFAULTS, True)[1]
    torch.testing.assert_close(first, slope * 3)


def test_half_gradients_keep_what_one_over_n_would_round_away():
    pred, target = random_heatmaps((4, 98, 64, 64), torch.float16)  # 10 / n = 6e-6 has two digits in float16
    gradients = []
    for leaf in (pred, pred.double()):
        leaf.requires_grad_()
        loss = ops.smooth_wing_loss(leaf, target)
        loss.backward(torch.tensor(10.0, dtype=loss.dtype))
        gradients.append(leaf.grad.double())
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-3


def test_the_last_backward_pass_gives_the_slopes_of_the_forward_pass_uncopied():
    pred, target = random_heatmaps()
    pred.requires_grad_()
    loss, slope = torch.ops.iact.wing_loss(pred, target, None, True, *DEFAULTS, True)
    (gradient,) = torch.autograd.grad(loss, pred)
    assert gradient.data_ptr() == slope.data_ptr()


def test_a_scaled_float16_loss_has_the_gradient_of_the_unscaled_one():
    pred, target = random_heatmaps((2, 98, 64, 64), torch.float16)
    weight = torch.nn.Parameter(pred.float())
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD([weight])
    scaler.scale(ops.smooth_wing_loss(weight.half(), target)).backward()
    scaler.unscale_(optimizer)
    expected = reference.wing_loss(pred.double(), target.double(), None, True, *DEFAULTS, True)[1]
    assert (weight.grad.double() - expected).norm() / expected.norm() < 1e-3


@needs_kernel
def test_bit_identical_whatever_the_number_of_threads():
    pred, target = random_heatmaps((3, 17, 64, 64))
    weight, before, results = torch.rand(3, 17, 1, 1), torch.get_num_threads(), []
    for threads in (1, 2, 2, 3, before):
        torch.set_num_threads(threads)
        results.append(torch.ops.iact.wing_loss(pred, target, weight, True, *DEFAULTS, True))
    for other in results[1:]:
        assert all(torch.equal(got, want) for got, want in zip(other, results[0], strict=True))
