"""The emulator of CUDA kernels finds planted mistakes, whatever the schedule, and has nothing to say of their twins."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulator import build

if build.obstacle():
    pytest.skip(build.obstacle(), allow_module_level=True)

SEEDS = range(16)
X = np.arange(1, 65, dtype=np.float32)


@pytest.fixture(scope="module")
def planted():
    return build.load("planted")


def run(module, name, mistake, seed, x=X, results=64, grid=1, block=64, dynamic_bytes=0):
    return module.run(name, mistake, x, results, grid, block, dynamic_bytes, seed)


def in_pairs(distance):
    return X[np.arange(64) ^ distance]


# kernel: what its correct version gives, and what is said of the other one, under any schedule
MISTAKES = {
    "write_then_read": (X[::-1], r"thread \d+ \(warp \d\): race in shared memory: .* tile\[\d+\], which thread \d+"),
    "read_then_write": (in_pairs(31), r"thread \d+ \(warp (\d)\): race .* wrote tile.* thread \d+ \(warp \1\) read,"),
    "broadcast_then_write": (
        np.full(64, 64),
        r"thread (2 .*: wrote first\[0\], which thread 40 .* read|40 .*: read first\[0\], which thread 2 .* wrote),",
    ),
    "write_then_write": (X, r"race in shared memory: wrote tile\[\d+\], which thread \d+ \(warp \d\) wrote,"),
    "within_a_warp": (in_pairs(31), r"thread \d+ \(warp (\d)\): race in .* tile.*, which thread \d+ \(warp \1\)"),
    "masks_of_warps": (in_pairs(3), r"thread \d+ \(warp (\d)\): race in .* tile.*, which thread \d+ \(warp \1\)"),
    "shuffle_is_no_barrier": (in_pairs(31), "race in shared memory: .* tile"),
    "arithmetic": (
        np.tile(2 * (X[32:] + 2) + 1, 2),
        r"thread \d+ \(warp 0\): race .* read tile\[.* wrote,|thread .* \(warp 1\): race .* wrote tile\[.* read,",
    ),
    "members": (np.full(64, 1 + 2 + 128), "race in shared memory: (wrote|read) pairs"),
    "whole_structs": (X[::-1], "race in shared memory: (wrote|read) pairs"),
    "atomics": (np.full(64, X.sum()), r"race in .* (changed atomically total\[0\].* read|read total.* atomically),"),
    "read_index": (X, r"thread 63 \(warp 1\): outside shared memory: tile\[64\], which has 64 elements"),
    "write_index": (X, r"thread 0 \(warp 0\): outside shared memory: tile\[-1\], which has 64 elements"),
    "divergent_barrier": (X, r"never meet: 48 wait at __syncthreads \(line \d+\), .*; 16 of 64 have returned"),
    "two_barriers": (
        X,
        r"never meet: 32 wait at __syncthreads \(line (\d+)\).*; 32 wait at __syncthreads \((?!line \1)",
    ),
    "deadlock": (X, r"(?=.*32 wait at __syncthreads \(line)(?=.*32 wait at __shfl_sync \(line \d+, mask 0xffffffff\))"),
    "lane_that_never_comes": (
        np.where(np.arange(64) % 32 < 16, X // 32 * 32 + 4, X),
        r"never meet: 32 wait at __shfl_sync \(line \d+, mask 0xffffffff\), the first of them thread \d+",
    ),
    "source_outside_the_mask": (
        np.where(np.arange(64) % 32 < 16, in_pairs(8), X),
        r"__shfl_xor_sync .* takes from lane \d+, which the mask does not name",
    ),
    "caller_outside_the_mask": (np.arange(64) % 2, r"__any_sync \(line \d+, mask 0xaaaaaaaa\) does not name the lane"),
    "write_before": (X, r"wrote outside global memory: element -1 \(byte -(1|4)\) of buffer 'out', which has 64"),
    "far_away": (X, r"thread \d+ \(warp \d\): outside global memory: an address of no buffer"),
    "local_index": (X + (np.arange(64) % 4) + 1, r"thread \d+ \(warp \d\): an index outside a local array,"),
    "misaligned_vector": (X, r"thread 9 \(warp 0\): .* a misaligned access,"),
    "wide_shift": (X * (1 + np.arange(64) % 2), r"thread \d+ \(warp 1\): .* a shift by more than the width"),
    "unwritten": (X, r"never written: element 7 \(byte 28\) of buffer 'out', which has 64 elements"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_and_the_correct_version_runs(planted, name):
    expected, said = MISTAKES[name]
    for seed in SEEDS:
        np.testing.assert_array_equal(run(planted, name, False, seed), expected)
        with pytest.raises(RuntimeError, match=said):
            run(planted, name, True, seed)


def test_a_block_sums_its_numbers_under_any_schedule(planted):
    x = np.random.default_rng(0).integers(-100, 100, 5 * 256).astype(np.float32)
    shape = {"x": x, "results": 5, "grid": 5, "block": 256}
    for seed in SEEDS:
        np.testing.assert_array_equal(run(planted, "sum", False, seed, **shape), x.reshape(5, 256).sum(1))
        with pytest.raises(RuntimeError, match=r"race in shared memory: .* sums\[\d\]"):
            run(planted, "sum", True, seed, **shape)


def test_views_of_dynamic_memory_race_with_each_other(planted):
    x = X // 4  # exact in bfloat16
    expected = x[1::2][(np.arange(64) + 33) % 64 // 2]
    for seed in SEEDS:
        np.testing.assert_array_equal(
            run(planted, "views_of_dynamic_memory", False, seed, x, dynamic_bytes=128), expected
        )
        with pytest.raises(RuntimeError, match="race in shared memory: .* (halves|whole)"):
            run(planted, "views_of_dynamic_memory", True, seed, x, dynamic_bytes=128)


def test_an_index_outside_dynamic_memory_is_found(planted):
    np.testing.assert_array_equal(run(planted, "dynamic_index", False, 0, dynamic_bytes=256), X)
    np.testing.assert_array_equal(run(planted, "dynamic_index", True, 0, dynamic_bytes=260), X)
    with pytest.raises(RuntimeError, match=r"outside shared memory: numbers\[64\], which has 64 elements"):
        run(planted, "dynamic_index", True, 0, dynamic_bytes=256)


def test_shared_memory_that_a_block_did_not_write_is_nan(planted):
    shape = {"results": 192, "grid": 3}
    for seed in SEEDS:  # in most orders, another block has written the element before
        np.testing.assert_array_equal(run(planted, "uninitialised", False, seed, **shape), np.tile(X, 3))
        with pytest.raises(RuntimeError, match="never written: element 69 "):  # what comes out is the NaN of 0xFF bytes
            run(planted, "uninitialised", True, seed, **shape)


@pytest.mark.parametrize(("count", "when"), [(64, "thread"), (63, "block")])
def test_a_write_after_the_end_is_found_at_once_or_after_the_block(planted, count, when):
    x, shape = X[:count], {"results": count, "block": 65 if count == 64 else 64}
    np.testing.assert_array_equal(run(planted, "write_after", False, 0, x, **shape), x)
    said = rf"{'thread 64 .*: ' if when == 'thread' else ''}(wrote )?outside global memory: element {count} "
    with pytest.raises(RuntimeError, match=said + rf"\(byte \d+\) of buffer 'out', which has {count} elements"):
        run(planted, "write_after", True, 0, x, **shape)


def test_a_read_after_the_end_is_found_or_gives_nan(planted):
    np.testing.assert_array_equal(run(planted, "read_after", False, 0), [*X[1:], 0])
    with pytest.raises(
        RuntimeError, match=r"thread 63 .*: outside global memory: element 64 \(byte 256\) of buffer 'x'"
    ):
        run(planted, "read_after", True, 0)
    with pytest.raises(RuntimeError, match="never written: element 62 "):  # it read the 0xFF bytes that fill up 16
        run(planted, "read_after", True, 0, X[:63], results=63, block=63)


def test_an_access_error_leaves_the_emulator_and_pythons_fault_handler_in_order(planted):
    with pytest.raises(RuntimeError, match="outside global memory"):
        run(planted, "far_away", True, 0)
    np.testing.assert_array_equal(run(planted, "far_away", False, 0), X)
    script = (
        "import ctypes, faulthandler, sys; from emulator import build; import numpy as np; faulthandler.enable()\n"
        "try: build.load('planted').run('far_away', True, np.ones(64), 64, 1, 64, 0, 0)\n"
        "except RuntimeError: print('emulated'); sys.stdout.flush(); ctypes.string_at(0)"
    )
    command, here = [sys.executable, "-c", script], Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode < 0) == ("emulated\n", True)
    assert "Fatal Python error: Segmentation fault" in done.stderr


@pytest.mark.parametrize(("grid", "block"), [(8, 1), (1, 8)], ids=["blocks", "threads"])
def test_seeds_draw_the_order_and_repeat_it(planted, grid, block):
    shape = {"x": X[:8], "results": 8, "grid": grid, "block": block}
    last = [run(planted, "order", True, seed, **shape)[0] for seed in range(30)]
    assert len(set(last)) > 4
    assert last == [run(planted, "order", True, seed, **shape)[0] for seed in range(30)]
    for seed in range(4):
        np.testing.assert_array_equal(run(planted, "order", False, seed, **shape), X[:8])


def test_a_launch_beyond_what_cuda_takes_is_refused(planted):
    for block in (0, 1025):
        with pytest.raises(RuntimeError, match=f"a block has 1 to 1024 threads, got {block}"):
            run(planted, "order", False, 0, block=block)
    with pytest.raises(RuntimeError, match=r"a grid has .* at least 1 along x, got \(0, 1, 1\)"):
        run(planted, "order", False, 0, grid=0)


WIDE = 2.0 ** np.linspace(-125, 125, 3001)
# instruction, its arguments, the exact function, the largest error allowed at an exact result
INSTRUCTIONS = {
    "exp2": ("exp2", np.linspace(-120, 120, 6001), np.exp2, lambda exact: 2**-22 * exact),
    "log2": ("log2", WIDE[np.abs(np.log2(WIDE)) >= 1], np.log2, lambda exact: 2**-22 * np.abs(exact)),
    "log2 near 1": ("log2", np.linspace(0.501, 1.999, 3001), np.log2, lambda exact: 2**-22),
    "reciprocal": ("reciprocal", WIDE, np.reciprocal, lambda exact: np.spacing(exact.astype(np.float32))),
}


@pytest.mark.parametrize("case", INSTRUCTIONS)
def test_approximate_instructions_err_up_to_their_bound_and_not_beyond(planted, case):
    name, x, function, bound = INSTRUCTIONS[case]
    x = x.astype(np.float32)
    exact = function(x.astype(np.float64))
    results = [getattr(planted, name)(x, hardware, 0) for hardware in range(3)]
    for result in results:
        errors = (result - exact) / bound(exact)
        assert -1 <= errors.min() < -0.9 and 0.9 < errors.max() <= 1
    assert not np.array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[2], getattr(planted, name)(x, 2, 7))  # a schedule changes nothing


def test_approximate_instructions_at_their_limits(planted):
    infinity, tiny = np.inf, 1e-39  # tiny is subnormal: it counts as zero
    x = np.array([infinity, -infinity, np.nan, -200, -140, -126.5], np.float32)
    np.testing.assert_array_equal(planted.exp2(x, 0, 0), [infinity, 0, np.nan, 0, 0, 0])
    x = np.array([infinity, 0, tiny, -1, np.nan], np.float32)
    np.testing.assert_array_equal(planted.log2(x, 0, 0), [infinity, -infinity, -infinity, np.nan, np.nan])
    x = np.array([infinity, -infinity, 0, -tiny, 2.0**127, np.nan], np.float32)
    result = planted.reciprocal(x, 0, 0)
    np.testing.assert_array_equal(result, [0, -0.0, infinity, -infinity, 0, np.nan])
    np.testing.assert_array_equal(np.signbit(result[:5]), [False, True, False, True, False])


TINY = """#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "tiny"};
PyMODINIT_FUNC PyInit_tiny() { return PyModule_Create(&definition); }
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A folder with a binding to compile and a compiler that lists its calls: (the folder, the list)."""
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "HERE", tmp_path)
    calls, compiler = tmp_path / "calls", tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo >> {calls}\nexec {" ".join(build.compiler())} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    (tmp_path / "tiny.cpp").write_text(TINY)
    return tmp_path, calls


def test_processes_that_want_the_same_binding_compile_it_once(bench):
    folder, calls = bench
    script = (
        f"import pathlib; from emulator import build; build.ROOT = build.HERE = pathlib.Path({str(folder)!r})\n"
        "print(build.load('tiny').__name__)"
    )
    command = [sys.executable, "-c", script]
    tests = Path(__file__).parent
    started = [subprocess.Popen(command, cwd=tests, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0] for process in started] == ["tiny\n"] * 4
    assert len(calls.read_text().splitlines()) == 1


def test_a_binding_is_compiled_again_when_it_changed(bench):
    folder, calls = bench
    build.load("tiny")
    (folder / "kernel.h").write_text("// kernel text")
    build.load("tiny")
    assert len(calls.read_text().splitlines()) == 2


def test_a_binding_that_does_not_compile_is_an_error_with_the_compilers_words(bench):
    folder, _ = bench
    (folder / "tiny.cpp").write_text("int f() { return nonsense; }")
    for _ in range(2):  # what failed is not taken for built
        with pytest.raises(RuntimeError, match=r"tiny.cpp does not compile:(.|\n)*nonsense"):
            build.load("tiny")


def test_what_keeps_the_emulator_away_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    assert build.obstacle().startswith("there is no C++ compiler here (no-such-compiler; ")
    monkeypatch.setattr(sys, "platform", "win32")
    assert "runs on Linux only" in build.obstacle()
