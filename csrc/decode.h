// Heatmap decoding: how maps lie in memory, what is asked of them, and the CPU loops over the maps of an image.
#pragma once

#include <cstdint>

namespace iact {

enum class Method { kArgmax, kWindow, kTopK };

struct Decoding {
  Method method;
  int64_t radius;  // of the window
  int64_t k;       // pixels of top-k
};

// Map c of an image; its pixel (y, x) stands at c * channel + y * row + x * column, in elements.
struct Maps {
  int64_t height, width;
  int64_t channel, row, column;  // strides

  int64_t pixels() const { return height * width; }
  bool flat() const { return row == width * column || height == 1; }
};

struct Landmark {
  float x, y, score;
};

constexpr int64_t kMapsPerBlock = 16;

// landmarks[c] <- map c at `data`, for c in [begin, end), 0 <= begin < end <= kMapsPerBlock. The maps below
// `begin` exist as well: they are read where that lets whole vectors of neighbouring channels be read, and no more.
template <typename T>
void decode_maps(const T* data, const Maps& maps, int64_t begin, int64_t end, const Decoding& decoding,
                 Landmark* landmarks);

}  // namespace iact
