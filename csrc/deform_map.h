// Where the taps of a 3x3 deformable convolution read a map: maps and offsets, and the geometry for the GPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"

namespace iact {

constexpr int64_t kTaps = 9;

// A map of `height` x `width` pixels with `heads` groups of `size` channels each.
struct Map {
  int64_t height, width, heads, size;

  int64_t pixels() const { return height * width; }
  int64_t channels() const { return heads * size; }
};

// Offsets of one image and one set: (dy, dx) of tap t at pixel p stand at 2 t and 2 t + 1 along `tap`.
template <typename A>
struct Offsets {
  const A* data;  // [18, H, W]
  int64_t tap, row, column;  // strides

  const A* at(int64_t t, int64_t y, int64_t x) const { return data + 2 * t * tap + y * row + x * column; }
};

// The four pixels around a sample, upper left, upper right, lower left, lower right.
template <typename A, typename Index = int64_t>
struct Corners {
  Index pixel[4];
  A weight[4];  // zero for a corner off the map, whose pixel is then any pixel of it
  A slope_y[4], slope_x[4];  // of the weights by the sample's y and x

  // `map` has a height and a width.
  template <typename Size>
  IACT_HOST_DEVICE Corners(const Size& map, A y, A x) {
    // Beyond one pixel around the map nothing is read: clamping there keeps huge offsets harmless.
    y = std::fmin(std::fmax(y, A(-2)), A(map.height + 1));
    x = std::fmin(std::fmax(x, A(-2)), A(map.width + 1));
    const A top = std::floor(y), left = std::floor(x);
    const A part[2][2] = {{1 - (y - top), y - top}, {1 - (x - left), x - left}};
    for (int i = 0; i < 4; ++i) {
      const Index row = Index(top) + i / 2, column = Index(left) + i % 2;
      const bool inside = row >= 0 && row < map.height && column >= 0 && column < map.width;
      pixel[i] = inside ? row * map.width + column : 0;
      weight[i] = inside ? part[0][i / 2] * part[1][i % 2] : 0;
      slope_y[i] = inside ? (i / 2 ? part[1][i % 2] : -part[1][i % 2]) : 0;
      slope_x[i] = inside ? (i % 2 ? part[0][i / 2] : -part[0][i / 2]) : 0;
    }
  }
};

}  // namespace iact
