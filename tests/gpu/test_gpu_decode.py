"""Decoding on a GPU: against a computation pixel by pixel, in every layout, in a captured graph, with no wait."""

import pytest
import torch
from decode_cases import DTYPES, LAYOUTS, METHODS, check, laid_out, odd_heatmaps, random_heatmaps
from graphs import captured

from iact import heatmaps as codec
from iact import ops

SHAPES = [(1, 1, 1, 1), (2, 3, 1, 7), (2, 17, 7, 1), (1, 16, 16, 16), (1, 5, 63, 65), (2, 29, 8, 8)]
COMMON = ("contiguous", "channels_last")
# Not every combination: each one is compiled.
CASES = [(shape, torch.float32, COMMON) for shape in SHAPES]
CASES += [((2, 29, 24, 24), dtype, COMMON) for dtype in DTYPES]
CASES += [((3, 33, 7, 11), dtype, LAYOUTS) for dtype in (torch.float32, torch.bfloat16)]
kernel = torch.ops.iact.decode_heatmaps


def on_gpu(heatmaps: torch.Tensor, layout: str) -> torch.Tensor:
    """Strides stay: they are copied with the memory that they lie in."""
    laid = laid_out(heatmaps, layout)
    whole = laid if laid._base is None else laid._base
    return whole.cuda().as_strided(laid.shape, laid.stride(), laid.storage_offset())


@pytest.mark.parametrize(("shape", "dtype", "layouts"), CASES)
def test_every_method_in_every_layout(shape, dtype, layouts):
    k = min(9, shape[2] * shape[3])
    for make in (random_heatmaps, odd_heatmaps):
        heatmaps = make(shape, dtype)
        for layout in layouts:
            maps = on_gpu(heatmaps, layout)
            assert maps.stride() == laid_out(heatmaps, layout).stride()
            for method in METHODS:
                check(kernel(maps, method, 2, k), heatmaps, method, 2, k)


@pytest.mark.parametrize("shape", [(1, 2, 128, 128), (1, 17, 64, 64), (1, 1, 257, 263)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_maps(shape, layout):
    heatmaps = random_heatmaps(shape)
    heatmaps[0, 0, -1, -1] = 9  # beyond index 65535 in the largest
    for method in METHODS:
        check(kernel(on_gpu(heatmaps, layout), method, 5, 9), heatmaps, method)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_batch_as_the_network_gives_it(dtype, layout, small):
    heatmaps = random_heatmaps((1 if small else 16, 98, 64, 64), dtype)
    for method in METHODS:
        for got, want in zip(
            kernel(on_gpu(heatmaps, layout), method, 5, 9), codec.decode_heatmaps(heatmaps, method, 5, 9), strict=True
        ):
            torch.testing.assert_close(got.cpu(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("radius", [0, 1, 8, 1000, 2**62])
def test_windows_of_any_radius(radius):
    heatmaps = random_heatmaps((2, 18, 12, 17)).abs()
    for layout in ("contiguous", "channels_last"):
        check(kernel(on_gpu(heatmaps, layout), "window", radius, 1), heatmaps, "window", radius)


@pytest.mark.parametrize("k", [1, 2, 100, 272])
def test_topk_of_any_k(k):
    heatmaps = odd_heatmaps((1, 17, 16, 17))
    for layout in ("contiguous", "channels_last"):
        check(kernel(on_gpu(heatmaps, layout), "topk", 0, k), heatmaps, "topk", 0, k)


def test_way_back_to_image_pixels():
    heatmaps = random_heatmaps((5, 19, 12, 17))
    to_image = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1)) * 10
    for method in METHODS:
        for matrices in (to_image.cuda(), to_image.cuda().mT.contiguous().mT):
            result = kernel(on_gpu(heatmaps, "channels_last"), method, 2, 9, matrices)
            check(result, heatmaps, method, 2, 9, to_image, tolerance=1e-3)


def test_no_heatmaps_decode_to_no_landmarks():
    for shape in [(0, 68, 16, 16), (3, 0, 16, 16)]:
        points, scores = kernel(torch.zeros(shape, device="cuda"), "window", 5, 9)
        assert points.shape == (*shape[:2], 2) and scores.shape == shape[:2]


@pytest.mark.parametrize("method", METHODS)
def test_captured_in_a_graph_and_replayed(method):
    maps = on_gpu(random_heatmaps((4, 68, 64, 64), torch.bfloat16), "channels_last")
    to_image = torch.randn(4, 2, 3, device="cuda")

    def decode():
        return ops.decode_heatmaps(maps, method=method, to_image=to_image)

    graph, results = captured(decode)
    for seed in (1, 2):
        maps.copy_(random_heatmaps((4, 68, 64, 64), seed=seed))
        graph.replay()
        for got, want in zip(results, decode(), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("method", METHODS)
def test_waits_for_nothing_and_copies_nothing(method):
    maps = on_gpu(random_heatmaps((4, 98, 64, 64), torch.bfloat16), "channels_last")
    ops.decode_heatmaps(maps, method=method)  # compiled by now
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        points, scores = ops.decode_heatmaps(maps, method=method)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before <= 2 * 512 * (points.nbytes // 512 + scores.nbytes // 512 + 2)
