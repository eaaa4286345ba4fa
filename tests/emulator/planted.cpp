// Small kernels, each in two versions: a correct one, and one with a mistake that the emulator has to find.
#include "emulator.h"
// kernel text and what it includes comes after the emulator
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <torch/headeronly/util/BFloat16.h>

#include <map>
#include <string>
#include <utility>

#include "device.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;

// Every kernel gets `count` numbers and has to write `count` results. A block has up to 64 threads, sum's 256.
using Kernel = void (*)(const float*, float*, int);

__device__ int position() { return int(blockIdx.x * blockDim.x + threadIdx.x); }

// out[block] = sum of the block's 256 numbers.
template <bool planted>
__global__ void __launch_bounds__(256) sum(const float* x, float* out, int) {
  IACT_SHARED(float, sums, 8);
  float total = x[position()];
  for (int bits = 16; bits; bits /= 2) total += __shfl_xor_sync(kAll, total, bits);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = total;
  if (!planted) __syncthreads();
  if (threadIdx.x >= 32) return;
  total = threadIdx.x < 8 ? float(sums[threadIdx.x]) : 0.0f;
  for (int distance = 4; distance; distance /= 2) total += __shfl_down_sync(kAll, total, distance);
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}

template <bool planted>
__global__ void write_then_read(const float* x, float* out, int) {
  IACT_SHARED(float, tile, 64);
  tile[threadIdx.x] = x[threadIdx.x];
  if (!planted) __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// The shuffle lets all lanes read before any writes; that is luck, not order.
template <bool planted>
__global__ void read_then_write(const float* x, float* out, int) {
  IACT_SHARED(float, tile, 64);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  const float other = __shfl_sync(kAll, float(tile[threadIdx.x ^ 31]), threadIdx.x % 32);
  if (!planted) __syncwarp();
  tile[threadIdx.x] = other;
  out[threadIdx.x] = tile[threadIdx.x];
}

// A warp and a stranger read what a thread of the warp then overwrites: only the stranger is in danger.
template <bool planted>
__global__ void broadcast_then_write(const float* x, float* out, int) {
  IACT_SHARED(float, first, 1);
  if (threadIdx.x == 63) first[0] = x[63];
  __syncthreads();
  out[threadIdx.x] = x[63];
  if (threadIdx.x < 32 || threadIdx.x == 40) out[threadIdx.x] = first[0];
  __syncwarp();
  if (!planted) __syncthreads();
  if (threadIdx.x == 2) first[0] = 0;
}

template <bool planted>
__global__ void write_then_write(const float* x, float* out, int) {
  IACT_SHARED(float, tile, 64);
  tile[threadIdx.x] = 0;
  if (!planted) __syncthreads();
  tile[63 - threadIdx.x] = x[63 - threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

// An earlier barrier is no excuse for a missing one.
template <bool planted>
__global__ void within_a_warp(const float* x, float* out, int) {
  IACT_SHARED(float, tile, 64);
  __syncwarp();
  tile[threadIdx.x] = x[threadIdx.x];
  if (!planted) __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x ^ 31];
}

// Neighbours meet first in pairs, then in quadruples: the order reaches lanes that never met. Planted: pairs only.
template <bool planted>
__global__ void masks_of_warps(const float* x, float* out, int) {
  IACT_SHARED(float, tile, 64);
  const int lane = threadIdx.x % 32;
  tile[threadIdx.x] = x[threadIdx.x];
  __syncwarp(3u << lane / 2 * 2);
  __syncwarp(planted ? 3u << lane / 2 * 2 : 5u << (lane / 4 * 4 + lane % 2));
  out[threadIdx.x] = tile[threadIdx.x ^ 3];
}

template <bool planted>
__global__ void shuffle_is_no_barrier(const float* x, float* out, int) {
  IACT_SHARED(float, tile, 64);
  tile[threadIdx.x] = x[threadIdx.x];
  const float one = __shfl_sync(kAll, 1.0f, 0);
  if (!planted) __syncwarp();
  out[threadIdx.x] = one * tile[threadIdx.x ^ 31];
}

// Everything that an element can do; the last line reads one element and writes another.
template <bool planted, typename T = c10::BFloat16>
__global__ void arithmetic(const float* x, float* out, int) {
  IACT_SHARED(T, tile, 64);
  const int other = threadIdx.x ^ 32;
  tile[threadIdx.x] = x[threadIdx.x];
  tile[threadIdx.x] += 3.0f;
  tile[threadIdx.x] -= 1.0f;
  tile[threadIdx.x] *= 2.0f;
  if (!planted) __syncthreads();
  if (threadIdx.x < 32) tile[threadIdx.x] = tile[other];
  __syncthreads();
  float total = 1;
  total += tile[threadIdx.x];
  out[threadIdx.x] = total;
}

struct Pair {
  float low, high;
};

// All may read members of one element; but two threads that write members of one element race.
template <bool planted>
__global__ void members(const float* x, float* out, int) {
  IACT_SHARED(Pair, pairs, 64);
  const int other = planted ? threadIdx.x ^ 32 : threadIdx.x;
  pairs[threadIdx.x].low = x[threadIdx.x];
  pairs[other].high = 2 * x[other];
  __syncthreads();
  const Pair last = pairs[63];
  out[threadIdx.x] = pairs[0].low + pairs[0].high + last.high;
}

template <bool planted>
__global__ void whole_structs(const float* x, float* out, int) {
  IACT_SHARED(Pair, pairs, 64);
  pairs[threadIdx.x] = {x[threadIdx.x], 1};
  if (!planted) __syncthreads();
  const Pair pair = pairs[63 - threadIdx.x];
  out[threadIdx.x] = pair.low * pair.high;
}

template <bool planted>
__global__ void atomics(const float* x, float* out, int) {
  IACT_SHARED(float, total, 1);
  if (threadIdx.x == 0) total[0] = 0;
  __syncthreads();
  atomicAdd(&total[0], x[threadIdx.x]);
  if (!planted) __syncthreads();
  out[threadIdx.x] = total[0];
}

// Two threads write the two halves of what a third reads as one number; planted is a race over the upper half only.
template <bool planted>
__global__ void views_of_dynamic_memory(const float* x, float* out, int) {
  IACT_DYNAMIC_SHARED(c10::BFloat16, halves);
  IACT_DYNAMIC_SHARED(float, whole);
  if (threadIdx.x % 2 == 0) halves[threadIdx.x] = 0.0f;
  __syncthreads();
  if (threadIdx.x % 2 == 1) halves[threadIdx.x] = x[threadIdx.x];
  if (!planted) __syncthreads();
  const int word = (threadIdx.x + 33) % 64 / 2;
  out[threadIdx.x] = float(whole[word]) + float(halves[2 * word]);  // a bfloat16 is the upper half of a float
}

template <bool planted>
__global__ void dynamic_index(const float* x, float* out, int) {
  IACT_DYNAMIC_SHARED(float, numbers);
  numbers[threadIdx.x + planted] = x[threadIdx.x];
  out[threadIdx.x] = numbers[threadIdx.x + planted];
}

template <bool planted>
__global__ void read_index(const float* x, float* out, int) {
  IACT_SHARED(float, tile, 64);
  tile[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = tile[threadIdx.x + (planted && threadIdx.x == 63)];
}

template <bool planted>
__global__ void write_index(const float* x, float* out, int) {
  IACT_SHARED(float, tile, 64);
  tile[int(threadIdx.x) - (planted && threadIdx.x == 0)] = x[threadIdx.x];
  out[threadIdx.x] = x[threadIdx.x];
}

template <bool planted>
__global__ void uninitialised(const float* x, float* out, int) {
  IACT_SHARED(float, tile, 64);
  if (!planted || blockIdx.x != 1 || threadIdx.x != 5) tile[threadIdx.x] = x[threadIdx.x];
  out[position()] = tile[threadIdx.x];
}

template <bool planted>
__global__ void divergent_barrier(const float* x, float* out, int) {
  if (!planted || threadIdx.x < 48) __syncthreads();
  out[threadIdx.x] = x[threadIdx.x];
}

template <bool planted>
__global__ void two_barriers(const float* x, float* out, int) {
  if (planted && threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = x[threadIdx.x];
}

// Half of each warp waits at the barrier for those who wait at the shuffle.
template <bool planted>
__global__ void deadlock(const float* x, float* out, int) {
  float one = 1;
  if (planted && threadIdx.x % 32 < 16) __syncthreads();
  one = __shfl_sync(kAll, one, 0);
  if (!planted || threadIdx.x % 32 >= 16) __syncthreads();
  out[threadIdx.x] = one * x[threadIdx.x];
}

template <bool planted>
__global__ void lane_that_never_comes(const float* x, float* out, int) {
  float number = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) number = __shfl_sync(planted ? kAll : 0xffffu, number, 3);
  out[threadIdx.x] = number;
}

template <bool planted>
__global__ void source_outside_the_mask(const float* x, float* out, int) {
  float number = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) number = __shfl_xor_sync(0xffffu, number, planted ? 16 : 8);
  out[threadIdx.x] = number;
}

template <bool planted>
__global__ void caller_outside_the_mask(const float* x, float* out, int) {
  const unsigned odd = __ballot_sync(kAll, threadIdx.x % 2);
  const unsigned mask = planted || threadIdx.x % 2 ? odd : ~odd;
  out[threadIdx.x] = __any_sync(mask, x[threadIdx.x] < 0) ? -1.0f : float(threadIdx.x % 2);
}

template <bool planted>
__global__ void write_before(const float* x, float* out, int) {
  out[int(threadIdx.x) - (planted && threadIdx.x == 0)] = x[threadIdx.x];
  out[threadIdx.x] = x[threadIdx.x];
}

template <bool planted>
__global__ void write_after(const float* x, float* out, int count) {
  if (position() < count || planted) out[position()] = x[position() % count];
}

template <bool planted>
__global__ void read_after(const float* x, float* out, int count) {
  const float next = position() + 1 < count || planted ? x[position() + 1] : 0.0f;
  out[position()] = next;
}

template <bool planted>
__global__ void far_away(const float* x, float* out, int) {
  const float* nowhere = nullptr;
  out[threadIdx.x] = planted ? *nowhere : x[threadIdx.x];
}

template <bool planted>
__global__ void local_index(const float* x, float* out, int) {
  float numbers[4] = {x[0], x[1], x[2], x[3]};
  for (int i = 0; i < 4; ++i) numbers[i] += x[threadIdx.x];
  out[threadIdx.x] = numbers[threadIdx.x % (planted ? 5 : 4)];
}

struct alignas(16) Four {
  float values[4];
};

template <bool planted>
__global__ void misaligned_vector(const float* x, float* out, int) {
  const Four four = *reinterpret_cast<const Four*>(x + threadIdx.x / 4 * 4 + (planted && threadIdx.x == 9));
  out[threadIdx.x] = four.values[threadIdx.x % 4];
}

template <bool planted>
__global__ void wide_shift(const float* x, float* out, int) {
  out[threadIdx.x] = x[threadIdx.x] * float(1u << (threadIdx.x % (planted ? 64 : 2)));
}

template <bool planted>
__global__ void unwritten(const float* x, float* out, int) {
  if (!planted || threadIdx.x != 7) out[threadIdx.x] = x[threadIdx.x];
}

// Who comes first in global memory depends on the order of blocks and threads; the twin does not.
template <bool planted>
__global__ void order(const float* x, float* out, int) {
  if (planted) out[0] = float(position());
  if (!planted || position() > 0) out[position()] = x[position()];
}

#define TWINS(name) {#name, {name<false>, name<true>}}
const std::map<std::string, std::pair<Kernel, Kernel>> kernels = {
    TWINS(sum),
    TWINS(write_then_read),
    TWINS(read_then_write),
    TWINS(broadcast_then_write),
    TWINS(write_then_write),
    TWINS(within_a_warp),
    TWINS(masks_of_warps),
    TWINS(shuffle_is_no_barrier),
    TWINS(arithmetic),
    TWINS(members),
    TWINS(whole_structs),
    TWINS(atomics),
    TWINS(views_of_dynamic_memory),
    TWINS(dynamic_index),
    TWINS(read_index),
    TWINS(write_index),
    TWINS(uninitialised),
    TWINS(divergent_barrier),
    TWINS(two_barriers),
    TWINS(deadlock),
    TWINS(lane_that_never_comes),
    TWINS(source_outside_the_mask),
    TWINS(caller_outside_the_mask),
    TWINS(write_before),
    TWINS(write_after),
    TWINS(read_after),
    TWINS(far_away),
    TWINS(local_index),
    TWINS(misaligned_vector),
    TWINS(wide_shift),
    TWINS(unwritten),
    TWINS(order),
};

namespace py = pybind11;
using Numbers = py::array_t<float, py::array::c_style | py::array::forcecast>;

Numbers run(const std::string& name, bool planted, const Numbers& x, int results, unsigned grid, unsigned block,
            size_t dynamic_bytes, uint64_t seed) {
  const auto& twins = kernels.at(name);
  const Kernel kernel = planted ? twins.second : twins.first;
  const emulator::Buffer<float> source("x", x.data(), x.size());
  emulator::Buffer<float> result("out", results);
  emulator::run({grid, block, dynamic_bytes, seed}, [&] { kernel(source.data(), result.data(), int(x.size())); });
  result.require_written();
  Numbers out(results);
  result.copy_to(out.mutable_data());
  return out;
}

template <float function(float)>
__global__ void map_kernel(const float* x, float* out, int count) {
  if (position() < count) out[position()] = function(x[position()]);
}

template <float function(float)>
Numbers map(const Numbers& x, uint64_t hardware, uint64_t seed) {
  const int count = int(x.size());
  const emulator::Buffer<float> source("x", x.data(), count);
  emulator::Buffer<float> result("out", count);
  const emulator::Launch launch{(count + 255) / 256, 256, 0, seed, hardware};
  emulator::run(launch, [&] { map_kernel<function>(source.data(), result.data(), count); });
  Numbers out(count);
  result.copy_to(out.mutable_data());
  return out;
}

}  // namespace

PYBIND11_MODULE(planted, m) {
  m.def("run", run);
  m.def("exp2", map<iact::fast_exp2>);
  m.def("log2", map<iact::fast_log2>);
  m.def("reciprocal", map<iact::fast_reciprocal>);
}
