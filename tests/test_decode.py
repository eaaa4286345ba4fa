"""Decoding heatmaps: the reference and the CPU kernel against a computation pixel by pixel, and the public function."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from decode_cases import DTYPES, LAYOUTS, METHODS, check, expected, laid_out, odd_heatmaps, random_heatmaps

from iact import heatmaps as codec
from iact import ops
from iact.errors import InputError
from iact.ops import info

kernel = torch.ops.iact.decode_heatmaps
has_kernel = "CPU: kernel" in info.backends("decode_heatmaps")
needs_kernel = pytest.mark.skipif(not has_kernel, reason="the extension is not built: python setup.py build_ext")
IMPLEMENTATIONS = [
    pytest.param(codec.decode_heatmaps, id="reference"),
    pytest.param(kernel, id="kernel", marks=needs_kernel),
]
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 7), (2, 17, 7, 1), (3, 33, 7, 11), (1, 16, 16, 16), (1, 5, 63, 65), (2, 29, 8, 8)]


@pytest.mark.parametrize("decode", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_method_in_every_layout(decode, dtype, shape):
    k = min(9, shape[2] * shape[3])
    for make in (random_heatmaps, odd_heatmaps):
        heatmaps = make(shape, dtype)
        for method in METHODS:
            for layout in LAYOUTS:
                check(decode(laid_out(heatmaps, layout), method, 2, k), heatmaps, method, 2, k)


@pytest.mark.parametrize("decode", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(1, 2, 128, 128), (1, 1, 257, 263)])
def test_large_maps(decode, shape):
    heatmaps = random_heatmaps(shape)
    heatmaps[0, 0, -1, -1] = 9  # beyond index 65535 in the larger one
    for method in METHODS:
        for layout in ("contiguous", "channels_last"):
            check(decode(laid_out(heatmaps, layout), method, 5, 9), heatmaps, method)


@pytest.mark.parametrize("decode", IMPLEMENTATIONS)
@pytest.mark.parametrize("radius", [0, 1, 8, 1000, 2**62])
def test_windows_of_any_radius(decode, radius):
    heatmaps = random_heatmaps((2, 3, 12, 17)).abs()
    check(decode(heatmaps, "window", radius, 1), heatmaps, "window", radius)


@pytest.mark.parametrize("decode", IMPLEMENTATIONS)
@pytest.mark.parametrize("k", [1, 2, 64, 77])
def test_topk_of_any_k(decode, k):
    for heatmaps in (random_heatmaps((1, 17, 7, 11)), odd_heatmaps((1, 17, 7, 11))):
        for layout in ("contiguous", "channels_last"):
            check(decode(laid_out(heatmaps, layout), "topk", 0, k), heatmaps, "topk", 0, k)


@pytest.mark.parametrize("decode", IMPLEMENTATIONS)
def test_topk_takes_ties_by_their_index(decode):
    heatmaps = torch.zeros(1, 1, 40, 50)
    heatmaps[0, 0, 30, 7] = 1
    heatmaps[0, 0, 20:22, :] = 0.5
    heatmaps[0, 0, 5, 5] = -0.0  # a zero like the others
    points, _ = decode(heatmaps, "topk", 0, 3)
    weight = np.exp(-0.5)
    y, x = (30 + 2 * 20 * weight) / (1 + 2 * weight), (7 + weight) / (1 + 2 * weight)
    np.testing.assert_allclose(points.numpy(), [[[x, y]]], rtol=1e-6)
    check(decode(heatmaps, "topk", 0, 107), heatmaps, "topk", 0, 107)  # 6 of the zeros are among them


@pytest.mark.parametrize("decode", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [3e38, 1e-13, 1e-45, -3e38])
def test_huge_and_tiny_values_stay_on_the_map(decode, value):
    heatmaps = random_heatmaps((1, 3, 9, 9)).abs() * 0.01 * value
    heatmaps[0, :, 4, 5] = value
    for method in METHODS:
        points, scores = decode(heatmaps, method, 3, 9)
        assert (points >= 0).all() and (points <= 8).all() and torch.equal(scores, heatmaps.amax((2, 3)))


@pytest.mark.parametrize("decode", IMPLEMENTATIONS)
def test_way_back_to_image_pixels(decode):
    heatmaps = random_heatmaps((5, 19, 12, 17))
    to_image = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1)) * 10
    for method in METHODS:
        for matrices in (to_image, to_image.mT.contiguous().mT):
            check(decode(heatmaps, method, 2, 9, matrices), heatmaps, method, 2, 9, to_image, tolerance=1e-3)


@pytest.mark.parametrize("decode", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 68, 16, 16), (3, 0, 16, 16), (0, 0, 1, 1)])
def test_no_heatmaps_decode_to_no_landmarks(decode, shape):
    for method in METHODS:
        points, scores = decode(torch.zeros(shape), method, 5, 1, torch.zeros(shape[0], 2, 3))
        assert points.shape == (*shape[:2], 2) and scores.shape == shape[:2]


@needs_kernel
def test_result_does_not_depend_on_the_number_of_threads():
    heatmaps, threads = random_heatmaps((3, 37, 24, 24)), torch.get_num_threads()
    for method in METHODS:
        for layout in ("contiguous", "channels_last"):
            results = []
            for number in (1, 2, 5):
                torch.set_num_threads(number)
                results.append(kernel(laid_out(heatmaps, layout), method, 5, 9))
            torch.set_num_threads(threads)
            for points, scores in results[1:]:
                assert torch.equal(points, results[0][0]) and torch.equal(scores, results[0][1])


def test_opcheck_of_the_way_back():
    heatmaps = random_heatmaps((2, 3, 4, 5)).contiguous(memory_format=torch.channels_last)
    for method in METHODS:
        torch.library.opcheck(kernel.default, (heatmaps, method, 3, 4, torch.randn(2, 2, 3)))


def test_compiles_whole_with_the_way_back():
    heatmaps, to_image = random_heatmaps((2, 3, 8, 8)), torch.randn(2, 2, 3)

    def decode(heatmaps, to_image):
        return ops.decode_heatmaps(heatmaps, method="topk", to_image=to_image)

    compiled = torch.compile(decode, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(heatmaps, to_image), decode(heatmaps, to_image))


def test_public_function_passes_its_arguments_on():
    heatmaps, to_image = random_heatmaps((2, 3, 12, 17)), torch.tensor([[[2.0, 0, 3], [0, 4, 5]]]).repeat(2, 1, 1)
    check(ops.decode_heatmaps(heatmaps), heatmaps, "window", 5)
    check(ops.decode_heatmaps(heatmaps, radius=2), heatmaps, "window", 2)
    check(ops.decode_heatmaps(heatmaps, method="topk"), heatmaps, "topk", k=9)
    check(ops.decode_heatmaps(heatmaps, method="topk", k=3), heatmaps, "topk", k=3)
    check(ops.decode_heatmaps(heatmaps, method="argmax", to_image=to_image), heatmaps, "argmax", to_image=to_image)


def test_nan_pixels_do_not_win():
    heatmaps = torch.full((1, 2, 4, 4), torch.nan)
    heatmaps[0, 0, 2, 1] = 0.5
    points, scores = ops.decode_heatmaps(heatmaps)
    assert points[0, 0].tolist() == [1, 2] and scores[0, 0] == 0.5
    assert points[0, 1].tolist() == [0, 0] and scores[0, 1] == -torch.inf


def test_window_ignores_what_lies_outside_and_below_zero():
    heatmaps = torch.full((1, 1, 40, 40), -1.0)
    heatmaps[0, 0, 20, 10], heatmaps[0, 0, 20, 12], heatmaps[0, 0, 35, 35] = 1.0, 0.5, 0.9
    points, _ = ops.decode_heatmaps(heatmaps, radius=5)
    torch.testing.assert_close(points, torch.tensor([[[(10 + 0.5 * 12) / 1.5, 20.0]]]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(heatmaps=torch.zeros(3, 4, 5)), "expected floating-point"),
        (dict(heatmaps=torch.zeros(1, 1, 2, 2, dtype=torch.int64)), "torch.int64"),
        (dict(heatmaps=torch.zeros(1, 1, 2, 2, dtype=torch.float8_e5m2)), "torch.float8_e5m2"),
        (dict(heatmaps=torch.zeros(1, 1, 0, 2)), r"with pixels, got \(1, 1, 0, 2\)"),
        (dict(heatmaps=torch.zeros(1, 1, 2, 2), method="dark"), "argmax, window, topk, got 'dark'"),
        (dict(heatmaps=torch.zeros(1, 1, 2, 2), radius=-1), "0 or more heatmap px, got -1"),
        (dict(heatmaps=torch.zeros(1, 1, 2, 2), method="topk", k=9), "expected 1 to 4"),
        (dict(heatmaps=torch.zeros(1, 1, 2, 2), method="topk", k=0), "got 0"),
        (dict(heatmaps=torch.zeros(1, 1, 2, 2), to_image=torch.zeros(2, 2, 3)), r"float32 \(1, 2, 3\) on cpu, got"),
        (dict(heatmaps=torch.zeros(1, 1, 2, 2), to_image=torch.zeros(1, 2, 3).double()), "got torch.float64"),
        (dict(heatmaps=torch.zeros(1, 1, 2, 2), to_image=torch.zeros(1, 2, 3, device="meta")), "on meta"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(InputError, match=words):
        ops.decode_heatmaps(**arguments)


def test_landmarks_of_a_network_in_training_are_plain_numbers():
    heatmaps = torch.rand(1, 2, 8, 8, requires_grad=True)
    points, scores = ops.decode_heatmaps(heatmaps)
    assert not points.requires_grad and not scores.requires_grad


def test_window_mean_is_differentiable_where_the_kernel_is_not():
    heatmaps = random_heatmaps((1, 2, 6, 7), torch.float64).requires_grad_()
    peak, _ = codec.brightest_pixel(heatmaps.detach())
    mean = codec.window_mean(heatmaps, peak, 2)
    np.testing.assert_allclose(mean.detach().numpy(), expected(heatmaps.detach(), "window", 2)[0], atol=1e-5)
    (grad,) = torch.autograd.grad(mean[0, 0, 0], heatmaps)
    x, y = peak[0, 0].int().tolist()
    assert grad.isfinite().all() and grad[0, 0].any() and not grad[0, 1].any()
    assert (grad[0, 0, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] != 0).sum() == (grad != 0).sum()


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_gpu_kernel_is_imported_only_where_it_runs():
    code = "import sys, torch, iact.ops; iact.ops.decode_heatmaps(torch.zeros(1, 1, 2, 2)); print(*sys.modules)"
    assert "iact.ops.decode_triton" not in _python(code).split()


def test_without_triton_the_reference_serves_and_info_says_so():
    code = (
        "import sys; sys.modules['triton'] = None; from iact.ops import info; print(info.backends('decode_heatmaps'))"
    )
    assert _python(code).strip().endswith("CUDA: PyTorch reference")
