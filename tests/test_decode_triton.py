"""The decoding kernel without a GPU: run by Triton's interpreter, and compiled for GPUs that need not be here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from decode_cases import METHODS

triton = pytest.importorskip("triton")
from iact.ops.decode_triton import iact_decode, plan  # noqa: E402

TESTS = Path(__file__).parent
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# A process of its own: Triton reads TRITON_INTERPRET when it is imported, and other tests here compile.
INTERPRETED = """
import itertools, torch
from decode_cases import LAYOUTS, METHODS, check, laid_out, odd_heatmaps, random_heatmaps
from iact.ops.decode_triton import decode

def run(heatmaps, method, layout, radius=5, k=9, to_image=None):
    result = decode(laid_out(heatmaps, layout), method, radius, k, to_image)
    check(result, heatmaps, method, radius, k, to_image, tolerance=1e-3 if to_image is not None else 1e-4)

for method, layout in itertools.product(METHODS, LAYOUTS):
    run(random_heatmaps((1, 2, 7, 11)), method, layout, to_image=torch.randn(1, 2, 3) * 10)
    run(odd_heatmaps((1, 7, 9, 7)), method, layout, radius=2, k=5)
for dtype, method in itertools.product((torch.bfloat16, torch.float16, torch.float64), METHODS):
    run(odd_heatmaps((1, 2, 16, 17), dtype), method, "contiguous")
    run(odd_heatmaps((2, 21, 16, 17), dtype), method, "channels_last")
for method in METHODS:
    run(random_heatmaps((1, 1, 1, 1)), method, "contiguous", k=1)
    run(random_heatmaps((0, 3, 4, 4)), method, "contiguous")
    run(odd_heatmaps((1, 1, 64, 64), torch.bfloat16), method, "contiguous")
    run(odd_heatmaps((1, 18, 63, 65)), method, "channels_last")
    run(random_heatmaps((1, 1, 128, 129)), method, "contiguous")
    run(random_heatmaps((1, 1, 260, 257)), method, "contiguous")
run(random_heatmaps((1, 1, 12, 17)), "window", "contiguous", radius=2**40)
run(odd_heatmaps((1, 4, 16, 17)), "topk", "channels_last", k=272)  # a group gives all of its pixels
print("alike")
"""


def _interpreter_fails() -> bool:
    """Triton up to 3.8 reads a loop's bounds in a way that numpy refuses from 2.4 on."""
    try:
        int(np.ones(1))
    except TypeError:
        return tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9)
    return False


@pytest.mark.skipif(_interpreter_fails(), reason="this Triton's interpreter does not run loops with this numpy")
def test_interpreted_kernel_decodes_alike():
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", INTERPRETED]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.stdout == "alike\n", result.stderr[-3000:]


def compiled(heatmaps: torch.Tensor, method: str, architecture: int, k: int = 9):
    """The kernel as a GPU of that architecture would get it, with a way back to image px."""
    constants, warps = plan(heatmaps, method, radius=5)
    stride_b, stride_k, stride_y, _ = heatmaps.stride()
    pixels = heatmaps.shape[2] * heatmaps.shape[3]
    numbers = dict(stride_b=stride_b, stride_k=stride_k, stride_y=stride_y, pixels=pixels)
    numbers |= dict(to_image_b=6, to_image_y=3, to_image_x=1, k=k)
    types = dict(heatmaps=TYPES[heatmaps.dtype], to_image="*fp32", points="*fp32", scores="*fp32")
    constants |= {name: 1 for name, number in numbers.items() if number == 1}  # so Triton treats a 1 by itself
    types |= {name: "i32" for name in numbers} | {name: "constexpr" for name in constants}
    aligned = [name for name in iact_decode.arg_names if types[name][0] == "*" or numbers.get(name, 1) % 16 == 0]
    hints = {(iact_decode.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    signature = {name: types[name] for name in iact_decode.arg_names}
    source = triton.compiler.ASTSource(iact_decode, signature, constants, hints)
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": True})


def heatmaps_like(dtype: torch.dtype, layout: str, height: int = 64) -> torch.Tensor:
    """98 maps of 64 px a row, as the network gives them."""
    if layout == "cropped":
        return torch.empty(2, 98, height, 80, dtype=dtype, device="meta")[..., :64]
    heatmaps = torch.empty(2, 98, height, 64, dtype=dtype, device="meta")
    return heatmaps.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else heatmaps


def resources(kernel, folder: Path) -> dict[str, int]:
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    command = [TOOLS / "cuobjdump", "-res-usage", binary]
    report = subprocess.run(command, check=True, capture_output=True, text=True)
    return {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", report.stdout + report.stderr)}


@pytest.mark.parametrize("architecture", [80, 86, 89, 90])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped"])
def test_compiles_without_spilling(architecture, method, layout, tmp_path):
    everything = architecture in (80, 90) and layout != "cropped"  # the others are between those
    for dtype in TYPES if everything else [torch.bfloat16]:
        usage = resources(compiled(heatmaps_like(dtype, layout), method, architecture), tmp_path)
        assert usage["STACK"] == usage["LOCAL"] == 0
        assert 0 < usage["REG"] <= 128  # at least 16 warps on a multiprocessor


@pytest.mark.parametrize("method", METHODS)
def test_compiles_for_gpus_older_than_those_of_the_cuda_kernels(method):
    assert compiled(heatmaps_like(torch.float32, "contiguous"), method, 75).asm["cubin"]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 17, 1, 1), (1, 3, 7, 1), (1, 1, 300, 300)])
def test_compiles_for_maps_of_any_size(shape):
    for method in METHODS:
        heatmaps = torch.empty(shape, device="meta")
        assert compiled(heatmaps, method, 90, k=1).asm["cubin"]
        assert compiled(heatmaps.contiguous(memory_format=torch.channels_last), method, 90, k=1).asm["cubin"]


def _loads(kernel) -> list[str]:
    """The loads from global memory, by instruction."""
    lines = kernel.asm["sass"].splitlines()
    return [match[0] for line in lines if (match := re.search(r"LDG\.E[.\w]*", line))]


@pytest.mark.parametrize(("dtype", "height"), [(torch.bfloat16, 64), (torch.float16, 64), (torch.float32, 3)])
def test_contiguous_maps_are_read_in_whole_vectors(dtype, height):
    """16 bytes a load; only the matrix [2, 3] is read one number at a time."""
    kernel = compiled(heatmaps_like(dtype, "contiguous", height), "argmax", 90)
    loads = _loads(kernel)
    assert loads.count("LDG.E.128") >= 4 and set(loads) == {"LDG.E.128", "LDG.E"} and loads.count("LDG.E") == 6


def test_neighbouring_channels_are_read_together():
    """The 16 channels of a program are 32 bytes of bfloat16; 98 channels allow loads of two at a time."""
    kernel = compiled(heatmaps_like(torch.bfloat16, "channels_last"), "argmax", 90)
    assert "threadsPerWarp = [8, 4]" in kernel.asm["ttgir"] and "sizePerThread = [2, 1]" in kernel.asm["ttgir"]
    assert not any(".U16" in load for load in _loads(kernel))
