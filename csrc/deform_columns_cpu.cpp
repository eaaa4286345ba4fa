// The loops over one image; channels are the inner, vectorised direction.
#include "deform_columns.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <vector>

#include "processor.h"

namespace iact {
namespace {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

// Rounding to bfloat16 as straight-line code, which the compiler can vectorise: to nearest, ties to even.
IACT_INLINE uint16_t bfloat16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

template <typename A, typename T>
IACT_INLINE void put(const A* from, T* to, int64_t count) {
  for (int64_t c = 0; c < count; ++c) to[c] = static_cast<T>(from[c]);
}

template <>
IACT_INLINE void put(const float* from, BFloat16* to, int64_t count) {
  auto* bits = reinterpret_cast<uint16_t*>(to);
  for (int64_t c = 0; c < count; ++c) bits[c] = bfloat16_bits(from[c]);
}

template <typename A, typename T>
IACT_INLINE void sample_rows(const Map& map, const A* rows, Offsets<A> offsets, T* columns, int64_t head_stride, A* sample) {
  const int64_t channels = map.channels();
  for (int64_t p = 0; p < map.pixels(); ++p)
    for (int64_t t = 0; t < kTaps; ++t) {
      const int64_t y = p / map.width, x = p % map.width;
      const A* offset = offsets.at(t, y, x);
      const Corners<A> corners(map, y + t / 3 - 1 + offset[0], x + t % 3 - 1 + offset[offsets.tap]);
      const A *a = rows + corners.pixel[0] * channels, *b = rows + corners.pixel[1] * channels;
      const A *c = rows + corners.pixel[2] * channels, *d = rows + corners.pixel[3] * channels;
      const A wa = corners.weight[0], wb = corners.weight[1], wc = corners.weight[2], wd = corners.weight[3];
      for (int64_t i = 0; i < channels; ++i) sample[i] = (wa * a[i] + wb * b[i]) + (wc * c[i] + wd * d[i]);
      for (int64_t h = 0; h < map.heads; ++h)
        put(sample + h * map.size, columns + h * head_stride + (p * kTaps + t) * map.size, map.size);
    }
}

template <typename A, typename T>
IACT_INLINE void scatter_rows(const Map& map, const A* rows, Offsets<A> offsets, const T* grad_columns, int64_t head_stride,
                         A* grad_rows, A* grad_offsets, A* grad) {
  const int64_t channels = map.channels();
  constexpr int64_t kLanes = 16;  // partial sums of a dot product, in a fixed order
  for (int64_t p = 0; p < map.pixels(); ++p)
    for (int64_t t = 0; t < kTaps; ++t) {
      const int64_t y = p / map.width, x = p % map.width;
      const A* offset = offsets.at(t, y, x);
      const Corners<A> corners(map, y + t / 3 - 1 + offset[0], x + t % 3 - 1 + offset[offsets.tap]);
      for (int64_t h = 0; h < map.heads; ++h) {
        const T* from = grad_columns + h * head_stride + (p * kTaps + t) * map.size;
        for (int64_t c = 0; c < map.size; ++c) grad[h * map.size + c] = static_cast<A>(from[c]);
      }
      A grad_y = 0, grad_x = 0;
      for (int i = 0; i < 4; ++i) {
        const A* row = rows + corners.pixel[i] * channels;
        A* grad_row = grad_rows + corners.pixel[i] * channels;
        const A weight = corners.weight[i];
        A lanes[kLanes] = {};
        const int64_t whole = channels / kLanes * kLanes;
        for (int64_t c = 0; c < whole; c += kLanes)
          for (int64_t lane = 0; lane < kLanes; ++lane) {
            lanes[lane] += grad[c + lane] * row[c + lane];
            grad_row[c + lane] += weight * grad[c + lane];
          }
        A dot = 0;
        for (int64_t lane = 0; lane < kLanes; ++lane) dot += lanes[lane];
        for (int64_t c = whole; c < channels; ++c) {
          dot += grad[c] * row[c];
          grad_row[c] += weight * grad[c];
        }
        grad_y += corners.slope_y[i] * dot;
        grad_x += corners.slope_x[i] * dot;
      }
      A* to = grad_offsets + (offset - offsets.data);
      to[0] = grad_y;
      to[offsets.tap] = grad_x;
    }
}

}  // namespace

#define IACT_SAMPLING(A, T)                                                                                         \
  template <>                                                                                                       \
  IACT_PER_PROCESSOR void sample_image(const Map& map, const A* rows, Offsets<A> offsets, T* columns,               \
                                       int64_t head_stride) {                                                       \
    std::vector<A> sample(map.channels());                                                                          \
    sample_rows<A, T>(map, rows, offsets, columns, head_stride, sample.data());                                     \
  }                                                                                                                 \
  template <>                                                                                                       \
  IACT_PER_PROCESSOR void sample_image_backward(const Map& map, const A* rows, Offsets<A> offsets,                  \
                                                const T* grad_columns, int64_t head_stride, A* grad_rows,           \
                                                A* grad_offsets) {                                                  \
    std::vector<A> grad(map.channels());                                                                            \
    scatter_rows<A, T>(map, rows, offsets, grad_columns, head_stride, grad_rows, grad_offsets, grad.data());        \
  }

IACT_SAMPLING(float, float)
IACT_SAMPLING(float, BFloat16)
IACT_SAMPLING(float, Half)
IACT_SAMPLING(double, double)

}  // namespace iact
