"""Matrix products of csrc/mma.h: by the emulator against float64, and the machine code that nvcc makes of them."""

import re

import cuda_compiler
import numpy as np
import pytest
import torch
from emulator import build
from torch.nn.functional import pad

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = [(8, 16), (16, 48), (24, 64), (48, 144), (64, 16), (144, 48)]  # columns, depth
ORIENTATIONS = [(False, False), (False, True), (True, False), (True, True)]  # whether A is transposed, B by rows
SEEDS = range(3)


@pytest.fixture(scope="module")
def kernels():
    if build.obstacle():
        pytest.skip(build.obstacle())
    return build.load("products")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_integers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


def padded(matrix: torch.Tensor, dtype: str, padding: int = 8) -> np.ndarray:
    """The memory of a matrix with rows that are longer than it needs, and NaN in what it does not need."""
    rows = pad(matrix.to(DTYPES[dtype]), (0, padding), value=torch.nan)
    return rows.view(torch.int16 if rows.element_size() == 2 else torch.int32).numpy()


def multiply(kernels, dtype, a, b, orientation, start=None, seed=0) -> torch.Tensor:
    """start [32, columns] + a [32, depth] @ b [depth, columns]."""
    a_transposed, b_rows = orientation
    out = np.zeros((len(a), b.shape[1]), np.float32) if start is None else start.numpy().copy()
    left, right = padded(a.T if a_transposed else a, dtype), padded(b if b_rows else b.T, dtype)
    kernels.multiply(dtype, b.shape[1], len(b), *orientation, left, right, out, seed)
    return torch.from_numpy(out)


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, in the L2 norm."""
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("columns, depth", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(kernels, dtype, columns, depth, orientation):
    a, b = (x.to(DTYPES[dtype]) for x in (normal(32, depth), normal(depth, columns, seed=1)))
    start = normal(32, columns, seed=2)
    got = multiply(kernels, dtype, a, b, orientation, start)
    assert distance(got, start.double() + a.double() @ b.double()) < (2e-7 if dtype == "float32" else 1e-6)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("columns, depth", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_small_integers_are_exact(kernels, dtype, columns, depth, orientation):
    a, b = small_integers(32, depth), small_integers(depth, columns, seed=1)
    start = small_integers(32, columns, seed=2)
    assert torch.equal(multiply(kernels, dtype, a, b, orientation, start), start + a @ b)


def test_float_sums_of_many_positive_products_are_not_rounded_towards_zero(kernels):
    a, b = normal(32, 144).abs(), normal(144, 48, seed=1).abs()
    got = None
    for _ in range(8):  # as a depth of 1152
        got = multiply(kernels, "float32", a, b, (False, False), got)
    assert distance(got, 8 * a.double() @ b.double()) < 3e-7


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_floats_keep_their_precision_at_any_size(kernels, scale):
    a, b = scale * normal(32, 48), normal(48, 16, seed=1)
    assert distance(multiply(kernels, "float32", a, b, (False, False)), a.double() @ b.double()) < 2e-7


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000, 0x7F800001])
def test_nan_is_passed_on(kernels, orientation, bits):
    a, b = normal(32, 16), normal(16, 8)
    a[3, 5] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    got = multiply(kernels, "float32", a, b, orientation)
    assert got[3].isnan().all() and got.isnan().sum() == 8


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_stay_in_registers(kernels, dtype, rows):
    a, b, c = small_integers(16, 16), small_integers(16, 32, seed=1), small_integers(32, 24, seed=2)
    for factor in (1, 0.37):
        a, b, c = ((factor * x).to(DTYPES[dtype]) for x in (a, b, c))
        got = kernels.chain(dtype, rows, padded(a, dtype), padded(b.T, dtype), padded(c if rows else c.T, dtype))
        middle = (a.double() @ b.double()).to(DTYPES[dtype]).double()
        expected = middle @ c.double()
        # a sum that is a hair off may be rounded to the next number of 16 bits
        tolerance = 0 if factor == 1 else 1e-6 if dtype == "float32" else 2e-4
        assert distance(torch.from_numpy(got), expected) <= tolerance


def test_the_same_bits_under_any_schedule(kernels):
    a, b = normal(32, 64), normal(64, 24, seed=1)
    runs = [multiply(kernels, "float32", a, b, (False, True), seed=seed) for seed in SEEDS]
    assert all(torch.equal(run, runs[0]) for run in runs)


MISTAKES = {
    "square no_barrier": "race in shared memory",
    "square half_a_warp": "never meet.*16 wait at ldmatrix.*16 of 32 have returned",
    "square two_places": "never meet",
    "square misaligned": "ldmatrix of shared memory at element .*, which is not at a multiple of 16 bytes",
    "square outside": "outside shared memory: tile.384",
    "pipeline no_barrier": "race in shared memory",
    "pipeline overwrite": "race in shared memory",
    "pipeline misaligned": "an asynchronous copy of shared memory at element .* not at a multiple of 16 bytes",
    "pipeline misaligned_source": "from an address that is not a multiple of 16 bytes",
    "pipeline outside": "outside shared memory: tiles",
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found(kernels, name, seed):
    with pytest.raises(RuntimeError, match=MISTAKES[name]):
        kernels.planted(name, np.ones(1280, np.float32), seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["pipeline wait_for_less", "pipeline no_groups"])
def test_what_is_read_before_its_copy_has_ended_is_nan(kernels, name, seed):
    assert np.isnan(kernels.planted(name, np.ones(1280, np.float32), seed)).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_without_mistakes_there_is_no_error(kernels, seed):
    x = small_integers(16, 16).numpy()
    assert np.array_equal(kernels.planted("square none", x.ravel(), seed), (x @ x.T).ravel())
    x = np.arange(1280, dtype=np.float32)
    assert np.array_equal(kernels.planted("pipeline none", x, seed), x)


SOURCE = """
#include "%s/csrc/mma.h"
using namespace iact;

template <typename T, class Array>
__device__ void fill(const Array& array, const T* from) {
  constexpr int kCount = 16 / sizeof(T);
  for (int i = threadIdx.x * kCount; i < 8192; i += 32 * kCount) copy_async16(array, i, from + i);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
}

template <int kTiles>
__device__ void write(const float (&sum)[kTiles][4], float* out) {
  for (int j = 0; j < kTiles; ++j)
    for (int i = 0; i < 4; ++i) out[row_of(i) * 8 * kTiles + column_of(j, i)] = sum[j][i];
}

template <typename T, bool kATransposed, bool kBRows>
__global__ void product(const T* from, float* out) {
  IACT_DYNAMIC_SHARED(T, tile);
  fill(tile, from);
  float sum[7][4] = {};
  multiply<T, 56, 32, kATransposed, kBRows>(sum, tile, 0, 72, tile, 2304, 72);
  write(sum, out);
}

template <typename T>
__global__ void in_registers(const T* from, float* out) {
  IACT_DYNAMIC_SHARED(T, tile);
  fill(tile, from);
  float product[2][4] = {}, sum[8][4] = {};
  multiply<T, 16, 16>(product, tile, 0, 72, tile, 1152, 72);
  multiply_registers<T, 64>(sum, operand_of<T>(product[0], product[1]), tile, 2304, 72);
  write(sum, out);
}

#define OF(T)                                                          \\
  template __global__ void product<T, false, false>(const T*, float*); \\
  template __global__ void product<T, false, true>(const T*, float*);  \\
  template __global__ void product<T, true, false>(const T*, float*);  \\
  template __global__ void product<T, true, true>(const T*, float*);   \\
  template __global__ void in_registers<T>(const T*, float*);
OF(c10::BFloat16) OF(c10::Half) OF(float)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> list[cuda_compiler.Kernel]:
    if cuda_compiler.missing():
        pytest.skip(f"no {cuda_compiler.missing()} here")
    source = tmp_path_factory.mktemp("products") / "products.cu"
    source.write_text(SOURCE % cuda_compiler.ROOT)
    found = cuda_compiler.kernels([source])
    assert len(found) == 15 * len(cuda_compiler.ARCHITECTURES)
    return found


def count(kernel: cuda_compiler.Kernel, opcode: str) -> int:
    return sum(times for code, times in kernel.opcodes.items() if re.fullmatch(opcode, code))


def test_accumulators_stay_in_registers(compiled):
    for kernel in compiled:
        assert kernel.stack == kernel.spills == 0 and not count(kernel, r"(LDL|STL).*"), kernel
        assert kernel.registers <= (80 if "float" in kernel.name else 64), kernel


def test_tensor_cores_multiply(compiled):
    shapes = {"float": r"HMMA\.1688\.F32\.TF32", "BFloat16": r"HMMA\.16816\.F32\.BF16", "Half": r"HMMA\.16816\.F32"}
    for kernel in compiled:
        (shape,) = (shape for name, shape in shapes.items() if re.search(rf"<.*\b{name}\b", kernel.name))
        expected = {7 * 2} if kernel.name.startswith("product") else {2 + 8}
        if "float" in kernel.name:  # the compiler may or may not unroll their depth
            expected = {6 * 7, 6 * 14} if kernel.name.startswith("product") else {6 * 10}
        assert count(kernel, shape) in expected, kernel


def test_operands_come_eight_rows_at_a_time(compiled):
    for kernel in compiled:
        a_transposed, b_rows = (word in kernel.name for word in ("true, ", ", true>"))
        if "float" not in kernel.name:
            plain, transposed = (count(kernel, rf"LDSM\.16\.{layout}88\..") for layout in ("M", "MT"))
            of_a, of_b = (2, 2 * 4) if kernel.name.startswith("product") else (1, 1 + 4)
            assert transposed == a_transposed * of_a + b_rows * of_b, kernel
            assert plain + transposed == of_a + of_b, kernel
        assert count(kernel, r"LDGSTS\.E\.BYPASS\.128") > 0, kernel
