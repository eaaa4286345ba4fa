"""What nvcc makes of every CUDA kernel, on machines without a GPU too: registers, memory, and the instructions chosen.

Each gate is tried on a kernel that it has to catch. `python tests/cuda_compiler.py` prints what all kernels take."""

import re
from typing import NamedTuple

import cuda_compiler
import pytest
from cuda_compiler import Kernel

pytestmark = pytest.mark.skipif(bool(cuda_compiler.missing()), reason=f"no {cuda_compiler.missing()} here")
SOURCES = sorted((cuda_compiler.ROOT / "csrc").glob("*.cu"))


class Budget(NamedTuple):
    """What a kernel may take on any architecture, and what it has to use."""

    registers: int
    shared: int = 0  # bytes of static shared memory per block
    vector: tuple[
        str, ...
    ] = ()  # global memory is moved 16 bytes at a time: "LDG" (loads; LDGSTS if asynchronous), "STG"
    double: bool = False  # computes in double precision


# Names as `python tests/cuda_compiler.py` prints them, as regular expressions; the first that fits the start counts.
BUDGETS = {
    r"probe_kernel": Budget(registers=8),
    r"sum_kernel": Budget(registers=40, shared=64, double=True),
    r"\w+<double.* 1\b": Budget(registers=64, shared=64, double=True),
    r"\w+<double": Budget(registers=64, shared=64, vector=("LDG",), double=True),
    r"heatmap_channels_last_kernel<.* 8>": Budget(registers=64, shared=32, vector=("LDG", "STG")),
    r"(wing|heatmap\w*)_kernel<.* [48]\b": Budget(registers=48, shared=32, vector=("LDG", "STG")),
    r"(wing|heatmap\w*)_kernel": Budget(registers=40, shared=32),
    r"scale_kernel<.* [48]>": Budget(registers=32, vector=("LDG", "STG")),
    r"scale_kernel": Budget(registers=32),
    r"deform_qkv(_x)?_kernel<c10::\w+, (16|32|48)(, 1)?>": Budget(registers=80, shared=10240, vector=("LDG", "STG")),
    r"deform_qkv_kernel<.* 64, 3>": Budget(registers=232, shared=10240, vector=("LDG", "STG")),
    r"deform_qkv(_x)?_kernel": Budget(registers=128, shared=10240, vector=("LDG", "STG")),
    r"deform_lists_kernel": Budget(registers=56),
    r"deform_qkv_(offset|weight)_kernel<float, (48|64)": Budget(registers=224, vector=("LDG",)),
    r"deform_qkv_weight_kernel<.* (16|32|48), ": Budget(registers=112, vector=("LDG",)),
    r"deform_qkv_(offset|weight)_kernel": Budget(registers=128, vector=("LDG",)),
    r"deform_qkv_weight_sum_kernel<float": Budget(registers=40, vector=("LDG", "STG")),
    r"deform_qkv_weight_sum_kernel": Budget(registers=40, vector=("LDG",)),
    r"deform_attention_kernel<c10::\w+, (16|32|48), ": Budget(registers=80, vector=("LDG", "STG")),
    r"deform_attention_kernel<c10::\w+, 64, ": Budget(registers=112, vector=("LDG", "STG")),
    r"deform_attention_kernel<float": Budget(registers=168, vector=("LDG", "STG")),
    r"attention_kernel<float": Budget(registers=200, vector=("LDG", "STG")),
    r"attention_kernel<.* 2>": Budget(registers=216, vector=("LDG", "STG")),
    r"attention_kernel<.* (16|32|48), 1>": Budget(registers=128, vector=("LDG", "STG")),
    r"attention_kernel": Budget(registers=144, vector=("LDG", "STG")),
    r"attention_backward_kernel<float": Budget(registers=240, shared=512, vector=("LDG", "STG")),
    r"attention_backward_kernel<.* 2>": Budget(registers=248, shared=1024, vector=("LDG", "STG")),
    r"attention_backward_kernel<.* (16|32), 1>": Budget(registers=128, shared=512, vector=("LDG", "STG")),
    r"attention_backward_kernel": Budget(registers=184, shared=512, vector=("LDG", "STG")),
}
LARGEST = Budget(registers=255, shared=48 << 10, double=True)  # what the hardware allows; no kernel's own


def spills(kernel: Kernel, budget: Budget) -> bool:
    return kernel.spills > 0


def has_a_stack(kernel: Kernel, budget: Budget) -> bool:
    return kernel.stack > 0 or uses(kernel, r"(LDL|STL)\b")


def takes_too_many_registers(kernel: Kernel, budget: Budget) -> bool:
    return kernel.registers > budget.registers


def takes_too_much_shared_memory(kernel: Kernel, budget: Budget) -> bool:
    return kernel.shared > budget.shared


def loops_over_a_shared_atomic(kernel: Kernel, budget: Budget) -> bool:
    return uses(kernel, r"ATOMS\.CAS")  # what shared atomics without an instruction of their own become


def adds_floats_in_any_order(kernel: Kernel, budget: Budget) -> bool:
    return uses(kernel, r"(ATOM|RED)\w*\..*ADD.*F(16|32|64)")  # results would differ from run to run


def computes_in_double(kernel: Kernel, budget: Budget) -> bool:
    return not budget.double and uses(kernel, r"D(ADD|MUL|FMA|SETP|MNMX)\b|.*(\.F64|64H)\b")


def moves_memory_in_small_pieces(kernel: Kernel, budget: Budget) -> bool:
    return not all(uses(kernel, rf"{access}\w*\..*\b128\b") for access in budget.vector)


GATES = (
    spills,
    has_a_stack,
    takes_too_many_registers,
    takes_too_much_shared_memory,
    loops_over_a_shared_atomic,
    adds_floats_in_any_order,
    computes_in_double,
    moves_memory_in_small_pieces,
)


def uses(kernel: Kernel, opcode: str) -> bool:
    return any(re.match(opcode, used) for used in kernel.opcodes)


def budget_of(kernel: Kernel) -> Budget:
    return next((budget for pattern, budget in BUDGETS.items() if re.match(pattern, kernel.name)), LARGEST)


@pytest.fixture(scope="module")
def shipped() -> list[Kernel]:
    """The kernels of csrc/, for each architecture."""
    if not SOURCES:
        pytest.skip("there are no CUDA sources")
    return cuda_compiler.kernels(SOURCES)


def test_every_kernel_has_a_budget_and_every_budget_a_kernel(shipped):
    assert not {kernel.name for kernel in shipped if budget_of(kernel) is LARGEST}
    assert not [pattern for pattern in BUDGETS if not any(re.match(pattern, kernel.name) for kernel in shipped)]


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.__name__)
def test_no_kernel(gate, shipped):
    caught = [kernel for kernel in shipped if gate(kernel, budget_of(kernel))]
    assert not caught, "\n".join(map(str, caught))


PLANTED = """
#include <cuda_bf16.h>

__global__ void __launch_bounds__(1024, 2) too_many_values(float* data) {
  float values[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) values[i] = data[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) data[i * 1024 + threadIdx.x] = values[i] * values[95 - i] + values[i * 37 % 96];
}

__global__ void array_with_an_index(float* data, int at) {
  float values[64];
  for (int i = 0; i < 64; ++i) values[i] = data[i];
  for (int i = 0; i < 64; ++i) data[i] = values[(i * at) & 63];
}

__global__ void shared_sum(float* data) {
  __shared__ float sum[32];
  sum[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(sum + (threadIdx.x & 7), data[threadIdx.x]);
  __syncthreads();
  data[threadIdx.x] = sum[threadIdx.x];
}

__global__ void global_sum(float* data) { atomicAdd(data, data[threadIdx.x + 1]); }
__global__ void global_bfloat16_sum(__nv_bfloat162* data) { atomicAdd(data, data[threadIdx.x + 1]); }
__global__ void global_sum_with_result(float* data) { data[99] = atomicAdd(data, data[threadIdx.x + 1]); }
__global__ void double_constant(float* data) { data[threadIdx.x] *= 0.1; }

template <typename T>
__global__ void copy(const T* from, T* to) { to[threadIdx.x] = from[threadIdx.x]; }
template __global__ void copy<float>(const float*, float*);
template __global__ void copy<float4>(const float4*, float4*);

namespace iact {
namespace {
__global__ void good(const float4* from, float4* to, int* count) {
  __shared__ float4 row[32];
  row[threadIdx.x] = from[threadIdx.x];
  __syncthreads();
  to[threadIdx.x] = row[threadIdx.x ^ 1];
  atomicAdd(count, 1);
}
}  // namespace
void launch() { good<<<1, 32>>>(nullptr, nullptr, nullptr); }
}  // namespace iact
"""
ROOMY = Budget(registers=255, shared=512)
VECTOR = ROOMY._replace(vector=("LDG", "STG"))
CAUGHT = (
    ("too_many_values", spills, ROOMY),
    ("array_with_an_index", has_a_stack, ROOMY),
    ("copy<float>", takes_too_many_registers, Budget(registers=4)),
    ("good", takes_too_much_shared_memory, Budget(registers=255, shared=511)),
    ("shared_sum", loops_over_a_shared_atomic, ROOMY),
    ("global_sum", adds_floats_in_any_order, ROOMY),
    ("global_bfloat16_sum", adds_floats_in_any_order, ROOMY),
    ("global_sum_with_result", adds_floats_in_any_order, ROOMY),
    ("double_constant", computes_in_double, ROOMY),
    ("copy<float>", moves_memory_in_small_pieces, VECTOR),
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> dict[str, Kernel]:
    source = tmp_path_factory.mktemp("planted") / "planted.cu"
    source.write_text(PLANTED)
    return {kernel.name: kernel for kernel in cuda_compiler.kernels([source], ("sm_90",))}


@pytest.mark.parametrize(("name", "gate", "budget"), CAUGHT, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_kernel_is_caught_by(name, gate, budget, planted):
    assert gate(planted[name], budget)


@pytest.mark.parametrize("name", ["good", "copy<float4>"])
def test_a_good_kernel_passes_all_gates(name, planted):
    assert not [gate.__name__ for gate in GATES if gate(planted[name], VECTOR)]


def test_a_kernel_is_caught_only_for_what_is_wrong_with_it(planted):
    assert [gate for gate in GATES if gate(planted["double_constant"], ROOMY)] == [computes_in_double]
    assert not [gate for gate in GATES if gate(planted["double_constant"], ROOMY._replace(double=True))]
    assert [gate for gate in GATES if gate(planted["global_sum"], ROOMY)] == [adds_floats_in_any_order]


def test_instructions_are_counted(planted):
    copy = planted["copy<float4>"]
    assert copy.opcodes["LDG.E.128"] == copy.opcodes["STG.E.128"] == copy.opcodes["EXIT"] == 1
    assert "NOP" not in copy.opcodes and copy.instructions == sum(copy.opcodes.values()) < 20
    assert planted["too_many_values"].opcodes["LDG.E"] == 96


def test_an_included_header_that_changes_is_compiled_anew(tmp_path):
    header, source = tmp_path / "width.h", tmp_path / "copy.cu"
    source.write_text('#include "width.h"\n__global__ void copy(const T* a, T* b) { b[threadIdx.x] = a[threadIdx.x]; }')
    for width in ("float2", "float4"):
        header.write_text(f"using T = {width};")
        (kernel,) = cuda_compiler.kernels([source], ("sm_90",))
        assert uses(kernel, r"LDG\.E\.128") == (width == "float4")
