// Pixels p with equal p % kGroups form a group. One pass over a map finds the largest value of each group, in vector
// code; pixels in falling order then come from the groups: the largest of the groups' largest, and, once it is taken,
// the next of its group.
#include "decode.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "processor.h"

namespace iact {
namespace {

using BFloat16 = c10::BFloat16;
using Half = c10::Half;

constexpr int64_t kGroups = 64, kLanes = 16;
constexpr int64_t kNone = std::numeric_limits<int64_t>::max();  // after every pixel
constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct Pixel {
  float value;
  int64_t index;
};

// NaN counts as minus infinity.
template <typename T>
IACT_INLINE float number(T value) {
  const float wide = static_cast<float>(value);
  return wide > kLowest ? wide : kLowest;
}

// One map.
template <typename T>
struct Map {
  const T* data;
  Maps layout;
  bool flat;

  IACT_INLINE Map(const T* first, const Maps& maps, int64_t c)
      : data(first + c * maps.channel), layout(maps), flat(maps.flat()) {}

  IACT_INLINE float at(int64_t y, int64_t x) const { return number(data[y * layout.row + x * layout.column]); }
  IACT_INLINE float at(int64_t p) const {
    return flat ? number(data[p * layout.column]) : at(p / layout.width, p % layout.width);
  }
};

// The largest value of each group of one map.
template <typename T>
IACT_INLINE void scan_map(const Map<T>& map, float* largest) {
  std::fill_n(largest, kGroups, kLowest);
  const int64_t pixels = map.layout.pixels();
  int64_t p = 0;
  if (map.flat && map.layout.column == 1)
    for (; p + kGroups <= pixels; p += kGroups)
      for (int64_t g = 0; g < kGroups; ++g) {
        const float value = static_cast<float>(map.data[p + g]);
        largest[g] = value > largest[g] ? value : largest[g];  // NaN is never greater
      }
  for (; p < pixels; ++p) largest[p % kGroups] = std::max(largest[p % kGroups], map.at(p));
}

// The same of kMapsPerBlock maps side by side, largest[g * kMapsPerBlock + c].
template <typename T>
IACT_INLINE void scan_channels(const T* __restrict data, const Maps& maps, float* __restrict largest) {
  std::fill_n(largest, kGroups * kMapsPerBlock, kLowest);
  const int64_t pixels = maps.pixels();
  for (int64_t p = 0; p < pixels; ++p) {
    const T* __restrict from = data + p * maps.column;
    float* __restrict to = largest + p % kGroups * kMapsPerBlock;
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 1  // unrolled it would not become vectors
#endif
    for (int64_t c = 0; c < kMapsPerBlock; ++c) {
      const float value = static_cast<float>(from[c]);
      to[c] = value > to[c] ? value : to[c];
    }
  }
}

// The pixels of a map in falling order, the lower index first among equals.
template <typename T>
class Ranking {
 public:
  // largest[g * step] is the largest value of group g.
  IACT_INLINE Ranking(const Map<T>& map, const float* largest, int64_t step) : map_(map), pixels_(map.layout.pixels()) {
    for (int64_t g = 0; g < kGroups; ++g) {
      value_[g] = largest[g * step];
      index_[g] = g < pixels_ ? kUnknown : kNone;
    }
  }

  IACT_INLINE Pixel first() {
    float lanes[kLanes];
    std::copy_n(value_, kLanes, lanes);
    for (int64_t g = kLanes; g < kGroups; g += kLanes)
      for (int64_t i = 0; i < kLanes; ++i) lanes[i] = value_[g + i] > lanes[i] ? value_[g + i] : lanes[i];
    Pixel found{*std::max_element(lanes, lanes + kLanes), kNone};
    for (int64_t g = 0; g < kGroups; ++g) {
      if (value_[g] != found.value) continue;
      if (index_[g] == kUnknown) index_[g] = find(g, found.value);
      found.index = std::min(found.index, index_[g]);
    }
    return found;
  }

  IACT_INLINE Pixel after(Pixel taken) {
    Pixel next{kLowest, kNone};
    for (int64_t p = taken.index % kGroups; p < pixels_; p += kGroups) {
      const float value = map_.at(p);
      const bool left = value < taken.value || (value == taken.value && p > taken.index);
      if (left && (value > next.value || next.index == kNone)) next = {value, p};
    }
    value_[taken.index % kGroups] = next.value;
    index_[taken.index % kGroups] = next.index;
    return first();
  }

 private:
  static constexpr int64_t kUnknown = -1;  // not yet looked for

  IACT_INLINE int64_t find(int64_t group, float value) const {
    while (map_.at(group) != value) group += kGroups;
    return group;
  }

  Map<T> map_;
  int64_t pixels_;
  float value_[kGroups];  // the largest left of each group
  int64_t index_[kGroups];
};

// From a position to the weighted mean of others, relative to it. Zero where nothing weighs or a sum overflows.
struct Mean {
  float total = 0, x = 0, y = 0;

  IACT_INLINE void move(Landmark& landmark) const {
    const float right = x / total, down = y / total;
    if (!(total > 1e-12f)) return;
    if (std::isfinite(right)) landmark.x += right;
    if (std::isfinite(down)) landmark.y += down;
  }
};

template <typename T>
IACT_INLINE Mean window_mean(const Map<T>& map, int64_t peak, int64_t radius) {
  const int64_t width = map.layout.width, height = map.layout.height;
  const int64_t peak_x = peak % width, peak_y = peak / width;
  const int64_t left = std::max<int64_t>(peak_x - radius, 0), right = std::min(peak_x + radius, width - 1);
  const int64_t top = std::max<int64_t>(peak_y - radius, 0), bottom = std::min(peak_y + radius, height - 1);
  Mean mean;
  for (int64_t y = top; y <= bottom; ++y) {
    float row = 0;
    for (int64_t x = left; x <= right; ++x) {
      const float value = std::max(map.at(y, x), 0.0f);
      row += value;
      mean.x += value * static_cast<float>(x - peak_x);
    }
    mean.total += row;
    mean.y += row * static_cast<float>(y - peak_y);
  }
  return mean;
}

template <typename T>
IACT_INLINE Mean top_mean(Ranking<T>& ranking, Pixel peak, int64_t width, int64_t k) {
  Mean mean{1, 0, 0};
  Pixel pixel = peak;
  for (int64_t i = 1; i < k; ++i) {
    pixel = ranking.after(pixel);
    const float weight = pixel.value == peak.value ? 1 : std::exp(pixel.value - peak.value);
    mean.total += weight;
    mean.x += weight * static_cast<float>(pixel.index % width - peak.index % width);
    mean.y += weight * static_cast<float>(pixel.index / width - peak.index / width);
  }
  return mean;
}

template <typename T>
IACT_INLINE Landmark decode_map(const Map<T>& map, const float* largest, int64_t step, const Decoding& decoding) {
  Ranking<T> ranking(map, largest, step);
  const Pixel peak = ranking.first();
  const int64_t width = map.layout.width;
  Landmark landmark{static_cast<float>(peak.index % width), static_cast<float>(peak.index / width), peak.value + 0.0f};
  if (decoding.method == Method::kWindow) window_mean(map, peak.index, decoding.radius).move(landmark);
  if (decoding.method == Method::kTopK) top_mean(ranking, peak, width, decoding.k).move(landmark);
  return landmark;
}

template <typename T>
IACT_INLINE void decode_block(const T* data, const Maps& maps, int64_t begin, int64_t end, const Decoding& decoding,
                              Landmark* landmarks) {
  alignas(64) float largest[kGroups * kMapsPerBlock];
  const bool together = maps.channel == 1 && maps.flat() && end == kMapsPerBlock;
  if (together) scan_channels(data, maps, largest);
  for (int64_t c = begin; c < end; ++c) {
    const Map<T> map(data, maps, c);
    if (!together) scan_map(map, largest);
    landmarks[c] = together ? decode_map(map, largest + c, kMapsPerBlock, decoding)
                            : decode_map(map, largest, 1, decoding);
  }
}

}  // namespace

#define IACT_DECODE(T)                                                                                             \
  template <>                                                                                                      \
  IACT_PER_PROCESSOR void decode_maps(const T* data, const Maps& maps, int64_t begin, int64_t end,                 \
                                      const Decoding& decoding, Landmark* landmarks) {                             \
    decode_block<T>(data, maps, begin, end, decoding, landmarks);                                                  \
  }

IACT_DECODE(float)
IACT_DECODE(double)
IACT_DECODE(BFloat16)
IACT_DECODE(Half)

}  // namespace iact
