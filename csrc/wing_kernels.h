// The CUDA kernels of the wing losses: one text for nvcc and for the emulator of the tests.
//
// Each writes slopes and one sum of losses per block; `sum_kernel` adds the sums up. Every order of summation is fixed
// by the shape alone, so results are the same from run to run. Nothing here reads or writes a target in memory that
// could be drawn in registers, and every pixel is read once and written once.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "broadcast.h"
#include "device.h"
#include "float_math.h"
#include "target.h"
#include "vector.h"
#include "wing.h"

namespace iact {

constexpr int kThreads = 256;       // per block, in all kernels here
constexpr int kBlockPixels = 4096;  // per block, where the shape does not say

struct DeviceMath {
  static IACT_DEVICE float exp2(float x) { return fast_exp2(x); }
  static IACT_DEVICE float reciprocal(float x) { return fast_reciprocal(x); }
  static IACT_DEVICE float log1p(float q) { return iact::log1p(q); }

  // The hardware's logarithm is good to 22 bits of its own argument near 1: the power of two is kept apart, and what
  // the product rounds away is put back.
  static IACT_DEVICE float power(float base, float exponent, float low) {
    const int32_t k = nearest_power(base);
    const float whole = static_cast<float>(k), part = fast_log2(base * two_to(-k));
    const float logarithm = whole + part, product = exponent * logarithm;
    const float lost = fmaf(exponent, logarithm, -product) + exponent * ((whole - logarithm) + part);
    return fast_exp2(product) * fmaf(0.693147181f, lost + low * logarithm, 1.0f);
  }
};

// For the published constants and targets in [0, 1], where the power is at most 0.467.
struct PublishedMath : DeviceMath {
  static IACT_DEVICE float log1p(float q) { return log_near_one(q); }
};

struct DeviceDoubleMath {
  static IACT_DEVICE float exp2(float x) { return exp2f(x); }
  static IACT_DEVICE double reciprocal(double x) { return 1 / x; }
  static IACT_DEVICE double log1p(double q) { return ::log1p(q); }
  static IACT_DEVICE double power(double base, double exponent, double) { return pow(base, exponent); }
};

template <typename T>
struct Arithmetic {
  using Real = float;
  using Published = PublishedMath;
  using Math = DeviceMath;
  static constexpr bool narrow = true;
};
template <>
struct Arithmetic<double> {
  using Real = double;
  using Published = DeviceDoubleMath;
  using Math = DeviceDoubleMath;
  static constexpr bool narrow = false;
};

template <typename T>
using RealOf = typename Arithmetic<T>::Real;

// The loss of some pixels by one thread: the slopes that it writes, and the sum that it has seen.
template <typename T, typename Math, bool narrow>
struct Loss {
  using Real = RealOf<T>;
  const Wing<Real>& constants;
  const Real factor;  // of the slopes
  Real sum = 0;

  IACT_DEVICE Loss(const Wing<Real>& constants, Real factor) : constants(constants), factor(factor) {}

  template <int kCount>
  IACT_DEVICE bool all_background(const Vector<T, kCount>& pred) const {
    bool all = true;
    for (int i = 0; i < kCount; ++i) all &= is_background(static_cast<Real>(pred.values[i]), Real(0), constants);
    return all;
  }

  // Where all_background() is true and all targets are 0.
  template <int kCount>
  IACT_DEVICE void background(const Vector<T, kCount>& pred, Vector<T, kCount>& slopes) {
    for (int i = 0; i < kCount; ++i) {
      Real value, slope;
      background_wing(static_cast<Real>(pred.values[i]), constants, narrow, value, slope);
      slopes.values[i] = static_cast<T>(slope * factor);
      sum += value;
    }
  }

  // Any one pixel: its loss comes out.
  IACT_DEVICE Real general(T pred, Real target, Real weight, T& slope_out) {
    Real value, slope;
    wing<Math>(static_cast<Real>(pred) - target, target, constants, narrow, value, slope);
    slope_out = static_cast<T>(slope * (weight * factor));
    sum += value * weight;
    return value * weight;
  }
};

template <typename Real>
IACT_DEVICE Real warp_sum(Real sum) {
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  return sum;
}

// The sum over the block, in its first thread.
template <typename Real>
IACT_DEVICE Real block_sum(Real sum) {
  IACT_SHARED(Real, warps, kThreads / 32);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  sum = warp_sum(sum);
  if (lane == 0) warps[warp] = sum;
  __syncthreads();
  if (warp == 0) sum = warp_sum(lane < kThreads / 32 ? Real(warps[lane]) : Real(0));
  return sum;
}

// The given-target loss of kBlockPixels pixels in a row. `weight` and `losses` may be null.
template <typename T, typename Target, int kCount, bool narrow>
__global__ void __launch_bounds__(kThreads)
    wing_kernel(const T* __restrict__ pred, const Target* __restrict__ target, const RealOf<T>* __restrict__ weight,
                Broadcast weight_place, int64_t pixels, Wing<RealOf<T>> constants, RealOf<T> factor,
                T* __restrict__ slope, RealOf<T>* __restrict__ losses, RealOf<T>* __restrict__ sums) {
  using Real = RealOf<T>;
  Loss<T, typename Arithmetic<T>::Math, narrow> loss(constants, factor);
  for (int step = 0; step < kBlockPixels; step += kThreads * kCount) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockPixels + step + threadIdx.x * kCount;
    if (first >= pixels) break;
    const auto p = unpack<T, kCount>(load<T, kCount>(pred + first));
    const auto y = unpack<Target, kCount>(load<Target, kCount>(target + first));
    Vector<T, kCount> slopes;
    bool empty = !weight && !losses;
    for (int i = 0; i < kCount; ++i) empty &= static_cast<Real>(y.values[i]) == 0;
    if (empty && loss.all_background(p)) {
      loss.background(p, slopes);
    } else {
      for (int i = 0; i < kCount; ++i) {
        const Real w = weight ? weight[weight_place.offset(static_cast<uint32_t>(first + i))] : Real(1);
        const Real value = loss.general(p.values[i], static_cast<Real>(y.values[i]), w, slopes.values[i]);
        if (losses) losses[first + i] = value;
      }
    }
    store(slopes, slope + first);
  }
  const Real sum = block_sum(loss.sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The landmarks of a batch of heatmaps, and how their targets are drawn.
struct LandmarkMaps {
  const float* landmarks;  // [B, K, 2]
  const bool* visible;     // [B, K], or null
  const int64_t* seed;     // or null: the landmarks are not rounded
  int channels, height, width;
  int row_step, column_step;  // from a thread's vector to its next, for heatmap_kernel
  Drawing drawing;

  IACT_DEVICE bool shown(int64_t landmark) const { return !visible || visible[landmark]; }

  // Coordinate 0 (x) or 1 (y) of a landmark, rounded where there is a seed.
  IACT_DEVICE float coordinate(int64_t landmark, int axis) const {
    const int64_t index = 2 * landmark + axis;
    return seed ? round_randomly(landmarks[index], key_of(*seed), static_cast<uint32_t>(index)) : landmarks[index];
  }

  IACT_DEVICE float weight(float dx, float dy, int x, int y) const {
    return drawing.map_factor == 0 ? 1.0f : map_weight(dx, dy, x, y, width - 1, height - 1, drawing);
  }

  // Whether there is nothing but zeros on the pixels from (dx, dy) to (dx + more, dy), and no weight.
  IACT_DEVICE bool empty(float dx, float dy, int more) const {
    const bool outside = fabsf(dy) > drawing.reach || dx > drawing.reach || dx + more < -drawing.reach;
    return outside && drawing.map_factor == 0;
  }
};

// The drawn-target loss of contiguous maps, a block each. kCount divides the width.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads)
    heatmap_kernel(const T* __restrict__ pred, LandmarkMaps maps, Wing<RealOf<T>> constants, RealOf<T> factor,
                   T* __restrict__ slope, RealOf<T>* __restrict__ sums) {
  using Math = typename Arithmetic<T>::Published;
  constexpr int step = kThreads * kCount;
  const int64_t map = blockIdx.x;
  const int pixels = maps.height * maps.width, first = threadIdx.x * kCount;
  pred += map * pixels, slope += map * pixels;
  Loss<T, Math, Arithmetic<T>::narrow> loss(constants, factor);
  if (maps.shown(map)) {
    const float centre_x = maps.coordinate(map, 0), centre_y = maps.coordinate(map, 1);
    int y = first / maps.width, x = first % maps.width;
    RawOf<T, kCount> next = {};
    if (first < pixels) next = load<T, kCount>(pred + first);
    for (int place = first; place < pixels; place += step) {
      const auto current = unpack<T, kCount>(next);
      if (place + step < pixels) next = load<T, kCount>(pred + place + step);  // on its way during the work here
      Vector<T, kCount> slopes;
      const float dx = x - centre_x, dy = y - centre_y;
      if (maps.empty(dx, dy, kCount - 1) && loss.all_background(current)) {
        loss.background(current, slopes);
      } else {
        for (int i = 0; i < kCount; ++i)
          loss.general(current.values[i], target_at<Math>(dx + i, dy, maps.drawing), maps.weight(dx + i, dy, x + i, y),
                       slopes.values[i]);
      }
      store(slopes, slope + place);
      y += maps.row_step, x += maps.column_step;
      if (x >= maps.width) x -= maps.width, ++y;
    }
  } else {
    for (int place = first; place < pixels; place += step) store(Vector<T, kCount>{}, slope + place);
  }
  const auto sum = block_sum(loss.sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Where the landmarks of an image are: x of all, y of all, and whether shown, in shared memory.
template <typename Centres>
IACT_DEVICE void gather_centres(const Centres& centres, const LandmarkMaps& maps, int64_t image) {
  const int channels = maps.channels;
  for (int k = threadIdx.x; k < channels; k += kThreads) {
    centres[k] = maps.coordinate(image * channels + k, 0);
    centres[channels + k] = maps.coordinate(image * channels + k, 1);
    centres[2 * channels + k] = maps.shown(image * channels + k);
  }
  __syncthreads();
}

// The drawn-target loss of channels_last maps: kBlockPixels elements of one image in a row, `blocks` blocks an image.
// kCount divides the elements of an image. Dynamic shared memory: 3 floats for each landmark of the image.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads)
    heatmap_channels_last_kernel(const T* __restrict__ pred, LandmarkMaps maps, int blocks, Wing<RealOf<T>> constants,
                                 RealOf<T> factor, T* __restrict__ slope, RealOf<T>* __restrict__ sums) {
  using Math = typename Arithmetic<T>::Published;
  IACT_DYNAMIC_SHARED(float, centres);
  const int64_t image = blockIdx.x / blocks;
  const int channels = maps.channels, elements = channels * maps.height * maps.width;
  gather_centres(centres, maps, image);
  Loss<T, Math, Arithmetic<T>::narrow> loss(constants, factor);
  for (int step = 0; step < kBlockPixels; step += kThreads * kCount) {
    const int first = static_cast<int>(blockIdx.x % blocks) * kBlockPixels + step + threadIdx.x * kCount;
    if (first >= elements) break;
    const auto p = unpack<T, kCount>(load<T, kCount>(pred + image * elements + first));
    Vector<T, kCount> slopes = {};
    float dx[kCount], dy[kCount], weight[kCount];
    bool shown[kCount], empty = true;
    int channel = first % channels, x = first / channels % maps.width, y = first / channels / maps.width;
    for (int i = 0; i < kCount; ++i) {
      dx[i] = x - centres[channel], dy[i] = y - centres[channels + channel];
      weight[i] = maps.weight(dx[i], dy[i], x, y);
      shown[i] = centres[2 * channels + channel] != 0;
      empty &= shown[i] && maps.empty(dx[i], dy[i], 0);
      if (++channel < channels) continue;
      channel = 0;
      if (++x == maps.width) x = 0, ++y;
    }
    if (empty && loss.all_background(p)) {
      loss.background(p, slopes);
    } else {
      for (int i = 0; i < kCount; ++i)
        if (shown[i])
          loss.general(p.values[i], target_at<Math>(dx[i], dy[i], maps.drawing), weight[i], slopes.values[i]);
    }
    store(slopes, slope + image * elements + first);
  }
  const auto sum = block_sum(loss.sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// *total <- the sum of all sums, divided by `divisor`; one block.
template <typename Real>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const Real* __restrict__ sums, int64_t count, double divisor, Real* __restrict__ total) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += static_cast<double>(sums[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total = static_cast<Real>(sum / divisor);
}

// slope <- slope * *scale, and nothing is touched where that is 1.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) scale_kernel(T* slope, int64_t pixels, const RealOf<T>* scale) {
  const RealOf<T> by = *scale;
  if (by == 1) return;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kCount;
  int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  for (; first < pixels; first += stride) {
    auto vector = unpack<T, kCount>(load<T, kCount>(slope + first));
    for (T& value : vector.values) value = static_cast<T>(static_cast<RealOf<T>>(value) * by);
    store(vector, slope + first);
  }
}

}  // namespace iact
