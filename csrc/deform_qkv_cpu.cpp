// Channels, or the columns of a product, are the inner, vectorised direction.
#include "deform_qkv_cpu.h"

#include <algorithm>

#include "processor.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // functions with vector arguments are inlined, all of them

namespace iact {
namespace {

constexpr int kRows = 6;  // of a product, computed together: 6 x 16 sums fit the registers of AVX2 and AVX-512

// 16 numbers that the compiler keeps in as many registers as they need, and that may lie anywhere in memory.
template <typename A>
struct Vector {
  typedef A Type __attribute__((vector_size(kLanes * sizeof(A)), aligned(alignof(A)), may_alias));
};
template <typename A>
using LanesOf = typename Vector<A>::Type;

template <typename A>
IACT_INLINE LanesOf<A> lanes_at(const A* from) {
  return *reinterpret_cast<const LanesOf<A>*>(from);
}

template <typename A>
IACT_INLINE void put_lanes(LanesOf<A> lanes, A* to) {
  *reinterpret_cast<LanesOf<A>*>(to) = lanes;
}

template <typename A>
IACT_INLINE A sum_of(LanesOf<A> lanes) {
  A sums[kLanes];
  put_lanes<A>(lanes, sums);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

// One block of kCount x 16 results.
template <int kCount, typename A>
IACT_INLINE void multiply_block(const Product<A>& p, const A* a, const A* b, A* c) {
  using Lanes = LanesOf<A>;
  Lanes sums[kCount];
  for (int m = 0; m < kCount; ++m) sums[m] = lanes_at(c + m * p.c_row);
  for (int64_t k = 0; k < p.depth; ++k) {
    const Lanes row = lanes_at(b + k * p.b_depth);
    for (int m = 0; m < kCount; ++m) sums[m] += a[m * p.a_row + k * p.a_depth] * row;
  }
  for (int m = 0; m < kCount; ++m) put_lanes<A>(sums[m], c + m * p.c_row);
}

template <typename A>
IACT_INLINE void multiply_rows(int64_t count, const Product<A>& p, const A* a, const A* b, A* c) {
  switch (count) {
    case 1:
      return multiply_block<1>(p, a, b, c);
    case 2:
      return multiply_block<2>(p, a, b, c);
    case 3:
      return multiply_block<3>(p, a, b, c);
    case 4:
      return multiply_block<4>(p, a, b, c);
    case 5:
      return multiply_block<5>(p, a, b, c);
    default:
      return multiply_block<kRows>(p, a, b, c);
  }
}

template <typename A>
IACT_INLINE void multiply_all(const Product<A>& p) {
  const int64_t blocks = (p.rows + kRows - 1) / kRows;
  for (int64_t n = 0; n < p.columns; n += kLanes) {
    const A* b = p.b + n / kLanes * p.b_panel;
    for (int64_t block = 0; block < blocks; ++block) {  // of nearly one size: few rows keep few registers busy
      const int64_t m = block * p.rows / blocks, end = (block + 1) * p.rows / blocks;
      multiply_rows(end - m, p, p.a + m * p.a_row, b, p.c + m * p.c_row + n);
    }
  }
}

template <typename A>
IACT_INLINE void find_all_samples(const Map& map, Offsets<A> offsets, int64_t first, int64_t count, Samples<A>& s) {
  for (int64_t token = 0; token < count; ++token) {
    const int64_t y = (first + token) / map.width, x = (first + token) % map.width;
    for (int64_t t = 0; t < kTaps; ++t) {
      const A* offset = offsets.at(t, y, x);
      const Corners<A> corners(map, y + t / 3 - 1 + offset[0], x + t % 3 - 1 + offset[offsets.tap]);
      for (int i = 0; i < 4; ++i) {
        s.pixel[i][token * kTaps + t] = static_cast<int32_t>(corners.pixel[i]);
        s.weight[i][token * kTaps + t] = corners.weight[i];
        s.slope_y[i][token * kTaps + t] = corners.slope_y[i];
        s.slope_x[i][token * kTaps + t] = corners.slope_x[i];
      }
    }
  }
}

template <typename A>
IACT_INLINE void sample_all(const A* rows, Channels channels, const Samples<A>& s, int64_t count, A* columns) {
  const int64_t head_stride = count * kTaps * channels.size, whole = channels.size / kLanes * kLanes;
  rows += channels.first;
  for (int64_t i = 0; i < count * kTaps; ++i) {
    const A *a = rows + s.pixel[0][i] * channels.stride, *b = rows + s.pixel[1][i] * channels.stride;
    const A *c = rows + s.pixel[2][i] * channels.stride, *d = rows + s.pixel[3][i] * channels.stride;
    const A wa = s.weight[0][i], wb = s.weight[1][i], wc = s.weight[2][i], wd = s.weight[3][i];
    for (int64_t h = 0; h < channels.heads; ++h) {
      A* to = columns + h * head_stride + i * channels.size;
      for (int64_t n = 0; n < whole; n += kLanes)
        put_lanes<A>((wa * lanes_at(a + n) + wb * lanes_at(b + n)) + (wc * lanes_at(c + n) + wd * lanes_at(d + n)),
                     to + n);
      for (int64_t n = whole; n < channels.size; ++n) to[n] = (wa * a[n] + wb * b[n]) + (wc * c[n] + wd * d[n]);
      a += channels.size, b += channels.size, c += channels.size, d += channels.size;
    }
  }
}

// Dot products of a gradient with the rows at four corners, while the gradient is added to theirs.
template <typename A>
struct CornerDots {
  const A* rows;
  A* grad_rows;
  int64_t place[4];  // of the next channel, per corner
  A weight[4];
  LanesOf<A> lanes[4] = {};
  A rest[4] = {};

  IACT_INLINE void add(const A* grad, int64_t size) {
    const int64_t whole = size / kLanes * kLanes;
    for (int64_t n = 0; n < whole; n += kLanes) {
      const LanesOf<A> g = lanes_at(grad + n);
      for (int i = 0; i < 4; ++i) {
        lanes[i] += g * lanes_at(rows + place[i] + n);
        put_lanes<A>(lanes_at(grad_rows + place[i] + n) + weight[i] * g, grad_rows + place[i] + n);
      }
    }
    for (int64_t n = whole; n < size; ++n)
      for (int i = 0; i < 4; ++i) {
        rest[i] += grad[n] * rows[place[i] + n];
        grad_rows[place[i] + n] += weight[i] * grad[n];
      }
    for (int i = 0; i < 4; ++i) place[i] += size;
  }
};

template <typename A>
IACT_INLINE void scatter_all(const A* rows, Channels channels, const Samples<A>& s, int64_t count,
                             const A* grad_columns, int64_t column_row, A* grad_rows, A* grad_y, A* grad_x) {
  for (int64_t i = 0; i < count * kTaps; ++i) {
    CornerDots<A> dots{rows, grad_rows};
    for (int corner = 0; corner < 4; ++corner) {
      dots.place[corner] = s.pixel[corner][i] * channels.stride + channels.first;
      dots.weight[corner] = s.weight[corner][i];
    }
    const A* grad = grad_columns + i / kTaps * column_row + i % kTaps * channels.size;
    for (int64_t h = 0; h < channels.heads; ++h) dots.add(grad + h * count * column_row, channels.size);
    LanesOf<A> along_y = {}, along_x = {};
    A sum_y = 0, sum_x = 0;
    for (int corner = 0; corner < 4; ++corner) {
      along_y += s.slope_y[corner][i] * dots.lanes[corner];
      along_x += s.slope_x[corner][i] * dots.lanes[corner];
      sum_y += s.slope_y[corner][i] * dots.rest[corner];
      sum_x += s.slope_x[corner][i] * dots.rest[corner];
    }
    grad_y[i] = sum_y + sum_of<A>(along_y);
    grad_x[i] = sum_x + sum_of<A>(along_x);
  }
}

}  // namespace

#define IACT_LOOPS(A)                                                                                              \
  IACT_PER_PROCESSOR void multiply(const Product<A>& product) { multiply_all(product); }                           \
  IACT_PER_PROCESSOR void find_samples(const Map& map, Offsets<A> offsets, int64_t first, int64_t count,           \
                                       Samples<A>& samples) {                                                      \
    find_all_samples(map, offsets, first, count, samples);                                                         \
  }                                                                                                                \
  IACT_PER_PROCESSOR void sample(const A* rows, Channels channels, const Samples<A>& samples, int64_t count,       \
                                 A* columns) {                                                                     \
    sample_all(rows, channels, samples, count, columns);                                                           \
  }                                                                                                                \
  IACT_PER_PROCESSOR void scatter(const A* rows, Channels channels, const Samples<A>& samples, int64_t count,      \
                                  const A* grad_columns, int64_t column_row, A* grad_rows, A* grad_y, A* grad_x) { \
    scatter_all(rows, channels, samples, count, grad_columns, column_row, grad_rows, grad_y, grad_x);              \
  }

IACT_LOOPS(float)
IACT_LOOPS(double)

}  // namespace iact
