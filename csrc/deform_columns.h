// Bilinear sampling of a 3x3 deformable convolution: the geometry, and the CPU loops over one image.
#pragma once

#include <cmath>
#include <cstdint>

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
template <typename A>
struct Corners {
  int64_t pixel[4];
  A weight[4];  // zero for a corner off the map, whose pixel is then any pixel of it
  A slope_y[4], slope_x[4];  // of the weights by the sample's y and x

  Corners(const Map& map, A y, A x) {
    // Beyond one pixel around the map nothing is read: clamping there keeps huge offsets harmless.
    y = std::fmin(std::fmax(y, A(-2)), A(map.height + 1));
    x = std::fmin(std::fmax(x, A(-2)), A(map.width + 1));
    const A top = std::floor(y), left = std::floor(x);
    const A part[2][2] = {{1 - (y - top), y - top}, {1 - (x - left), x - left}};
    for (int i = 0; i < 4; ++i) {
      const int64_t row = int64_t(top) + i / 2, column = int64_t(left) + i % 2;
      const bool inside = row >= 0 && row < map.height && column >= 0 && column < map.width;
      pixel[i] = inside ? row * map.width + column : 0;
      weight[i] = inside ? part[0][i / 2] * part[1][i % 2] : 0;
      slope_y[i] = inside ? (i / 2 ? part[1][i % 2] : -part[1][i % 2]) : 0;
      slope_x[i] = inside ? (i % 2 ? part[0][i / 2] : -part[0][i / 2]) : 0;
    }
  }
};

// columns[h, p, t, c] <- the map sampled for tap t of pixel p, head h, channel c.
//   rows     [H*W, heads*size]  the image
//   columns  [heads, ?, 9*size] of the image's first pixel; heads lie `head_stride` apart
template <typename A, typename T>
void sample_image(const Map& map, const A* rows, Offsets<A> offsets, T* columns, int64_t head_stride);

// Adds to grad_rows [H*W, heads*size], and writes grad_offsets [18, H, W] (strides as offsets).
template <typename A, typename T>
void sample_image_backward(const Map& map, const A* rows, Offsets<A> offsets, const T* grad_columns,
                           int64_t head_stride, A* grad_rows, A* grad_offsets);

}  // namespace iact
