// Channels are the inner, vectorised direction.
#include "deform_samples_cpu.h"

#include <algorithm>

#include "lanes.h"

namespace iact {
namespace {

// The two pixels next to a sample on an axis of the map, and whether they are on the map; one that is not counts as the
// pixel at the edge.
template <typename A>
struct Neighbours {
  int32_t low, high;
  A low_inside, high_inside;  // 1 or 0
  A low_weight, high_weight;  // zero off the map

  IACT_INLINE Neighbours(A position, int32_t size) {
    // Beyond one pixel around the map nothing is read: clamping there keeps huge offsets harmless. NaN counts as such.
    position = position > A(-2) ? position : A(-2);
    position = position < A(size + 1) ? position : A(size + 1);
    const int32_t whole = static_cast<int32_t>(position), floor = whole - (position < A(whole) ? 1 : 0);
    const A part = position - A(floor);
    low = std::min(std::max(floor, 0), size - 1);
    high = std::min(std::max(floor + 1, 0), size - 1);
    low_inside = low == floor ? A(1) : A(0);
    high_inside = high == floor + 1 ? A(1) : A(0);
    low_weight = low_inside * (1 - part);
    high_weight = high_inside * part;
  }
};

// Tokens are the inner, vectorised direction here.
template <typename A>
IACT_INLINE void find_taps(const Map& map, int64_t t, const A* __restrict y, const A* __restrict x,
                           Samples<A>& __restrict s) {
  const int32_t height = static_cast<int32_t>(map.height), width = static_cast<int32_t>(map.width);
  for (int64_t token = 0; token < kTile; ++token) {
    const Neighbours<A> row(y[token], height), column(x[token], width);
    s.pixel[0][t][token] = row.low * width + column.low;
    s.pixel[1][t][token] = row.low * width + column.high;
    s.pixel[2][t][token] = row.high * width + column.low;
    s.pixel[3][t][token] = row.high * width + column.high;
    s.weight[0][t][token] = row.low_weight * column.low_weight;
    s.weight[1][t][token] = row.low_weight * column.high_weight;
    s.weight[2][t][token] = row.high_weight * column.low_weight;
    s.weight[3][t][token] = row.high_weight * column.high_weight;
  }
}

template <typename A>
IACT_INLINE void find_slopes(const Map& map, int64_t t, const A* __restrict y, const A* __restrict x,
                             Slopes<A>& __restrict s) {
  const int32_t height = static_cast<int32_t>(map.height), width = static_cast<int32_t>(map.width);
  for (int64_t token = 0; token < kTile; ++token) {
    const Neighbours<A> row(y[token], height), column(x[token], width);
    s.y[0][t][token] = -row.low_inside * column.low_weight;
    s.y[1][t][token] = -row.low_inside * column.high_weight;
    s.y[2][t][token] = row.high_inside * column.low_weight;
    s.y[3][t][token] = row.high_inside * column.high_weight;
    s.x[0][t][token] = -row.low_weight * column.low_inside;
    s.x[1][t][token] = row.low_weight * column.high_inside;
    s.x[2][t][token] = -row.high_weight * column.low_inside;
    s.x[3][t][token] = row.high_weight * column.high_inside;
  }
}

template <int, typename A>
IACT_INLINE void find_samples_with(const Map& map, Offsets<A> offsets, int64_t first, int64_t count, Samples<A>& s,
                                   Slopes<A>* slopes) {
  int64_t rows[kTile] = {}, columns[kTile] = {};
  for (int64_t token = 0; token < count; ++token) {
    rows[token] = (first + token) / map.width;
    columns[token] = (first + token) % map.width;
  }
  A y[kTile] = {}, x[kTile] = {};
  for (int64_t t = 0; t < kTaps; ++t) {
    for (int64_t token = 0; token < count; ++token) {
      const A* offset = offsets.at(t, rows[token], columns[token]);
      // whole numbers first: the sum is then the nearest number, on the right side of the pixel
      y[token] = A(rows[token] + t / 3 - 1) + offset[0];
      x[token] = A(columns[token] + t % 3 - 1) + offset[offsets.tap];
    }
    find_taps(map, t, y, x, s);
    if (slopes != nullptr) find_slopes(map, t, y, x, *slopes);
  }
}

// What one sample reads: channels [first, first + size) at four pixels, and their shares.
template <typename A>
struct Sample {
  const A* from[4];
  A weight[4];

  IACT_INLINE Sample(const A* rows, int64_t stride, const Samples<A>& s, int64_t tap, int64_t token) {
    for (int i = 0; i < 4; ++i) {
      from[i] = rows + s.pixel[i][tap][token] * stride;
      weight[i] = s.weight[i][tap][token];
    }
  }

  template <int kBytes>  // or all of one number
  IACT_INLINE void blend(int64_t n, A* to) const {
    using L = Lanes<A, kBytes>;
    const auto upper = weight[0] * L::at(from[0] + n) + weight[1] * L::at(from[1] + n);
    const auto lower = weight[2] * L::at(from[2] + n) + weight[3] * L::at(from[3] + n);
    L::put(upper + lower, to + n);
  }
};

template <int kBytes, typename A>
IACT_INLINE void sample_with(const A* rows, Channels channels, const Samples<A>& s, int64_t count, A* columns) {
  constexpr int64_t kCount = Lanes<A, kBytes>::kCount;
  const int64_t size = channels.size, last = size - kCount;
  rows += channels.first;
  for (int64_t h = 0; h < channels.heads; ++h, rows += size)
    for (int64_t token = 0; token < count; ++token)
      for (int64_t tap = 0; tap < kTaps; ++tap, columns += size) {
        const Sample<A> one(rows, channels.stride, s, tap, token);
        if (last < 0)
          for (int64_t n = 0; n < size; ++n) one.template blend<sizeof(A)>(n, columns);
        else
          for (int64_t n = 0; n < size; n += kCount)
            one.template blend<kBytes>(std::min(n, last), columns);  // the last may repeat some channels
      }
}

// Dot products of a gradient with the rows at four corners, while the gradient is added to theirs.
template <int kBytes, typename A>
struct CornerDots {
  using L = Lanes<A, kBytes>;
  const A* rows;
  A* grad_rows;
  int64_t place[4];  // of the next channel, per corner
  A weight[4];
  typename L::Type lanes[4] = {};
  A rest[4] = {};

  IACT_INLINE void add(const A* grad, int64_t size) {
    int64_t n = 0;
    for (; n + L::kCount <= size; n += L::kCount) {
      const typename L::Type g = L::at(grad + n);
      for (int i = 0; i < 4; ++i) {
        lanes[i] += g * L::at(rows + place[i] + n);
        L::put(L::at(grad_rows + place[i] + n) + weight[i] * g, grad_rows + place[i] + n);
      }
    }
    for (; n < size; ++n)
      for (int i = 0; i < 4; ++i) {
        rest[i] += grad[n] * rows[place[i] + n];
        grad_rows[place[i] + n] += weight[i] * grad[n];
      }
    for (int i = 0; i < 4; ++i) place[i] += size;
  }

  // The sum of the dot products, times `slope`.
  IACT_INLINE A sum(const A (&slope)[4][kTaps][kTile], int64_t tap, int64_t token) const {
    typename L::Type along = {};
    A sum = 0, sums[L::kCount];
    for (int i = 0; i < 4; ++i) {
      along += slope[i][tap][token] * lanes[i];
      sum += slope[i][tap][token] * rest[i];
    }
    L::put(along, sums);
    for (int64_t half = L::kCount / 2; half > 0; half /= 2)
      for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    return sum + sums[0];
  }
};

template <int kBytes, typename A>
IACT_INLINE void scatter_with(const A* rows, Channels channels, const Samples<A>& s, const Slopes<A>& slopes,
                              int64_t count, const A* grad_columns, int64_t column_row, A* grad_rows, A* grad_y,
                              A* grad_x) {
  for (int64_t token = 0; token < count; ++token)
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      CornerDots<kBytes, A> dots{rows, grad_rows};
      for (int i = 0; i < 4; ++i) {
        dots.place[i] = s.pixel[i][tap][token] * channels.stride + channels.first;
        dots.weight[i] = s.weight[i][tap][token];
      }
      const A* grad = grad_columns + token * column_row + tap * channels.size;
      for (int64_t h = 0; h < channels.heads; ++h) dots.add(grad + h * count * column_row, channels.size);
      grad_y[token * kTaps + tap] = dots.sum(slopes.y, tap, token);
      grad_x[token * kTaps + tap] = dots.sum(slopes.x, tap, token);
    }
}

}  // namespace

#define IACT_SAMPLING(A)                                                                                              \
  IACT_VERSIONS(                                                                                                      \
      find_samples,                                                                                                   \
      (const Map& map, Offsets<A> offsets, int64_t first, int64_t count, Samples<A>& samples, Slopes<A>* slopes),     \
      (map, offsets, first, count, samples, slopes))                                                                  \
  IACT_VERSIONS(sample, (const A* rows, Channels channels, const Samples<A>& samples, int64_t count, A* columns),     \
                (rows, channels, samples, count, columns))                                                            \
  IACT_VERSIONS(scatter,                                                                                              \
                (const A* rows, Channels channels, const Samples<A>& samples, const Slopes<A>& slopes, int64_t count, \
                 const A* grad_columns, int64_t column_row, A* grad_rows, A* grad_y, A* grad_x),                      \
                (rows, channels, samples, slopes, count, grad_columns, column_row, grad_rows, grad_y, grad_x))

IACT_SAMPLING(float)
IACT_SAMPLING(double)

}  // namespace iact
