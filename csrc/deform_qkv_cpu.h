// The CPU loops of the deformable Q/K/V projection, a tile of tokens at a time, so that what is sampled stays in the
// cache; deform_qkv.cpp prepares their tensors. A is float, or double for double tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "deform_columns.h"

namespace iact {

constexpr int64_t kTile = 32;   // tokens
constexpr int64_t kLanes = 16;  // columns of a product that are computed together

constexpr int64_t padded(int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

// c[m, n] += sum over k of a[m * a_row + k * a_depth] * b[n / 16 * b_panel + k * b_depth + n % 16], for all m < rows
// and n < padded(columns); rows of c lie c_row apart.
template <typename A>
struct Product {
  int64_t rows, depth, columns;
  const A* a;
  int64_t a_row, a_depth;
  const A* b;
  int64_t b_panel, b_depth;
  A* c;
  int64_t c_row;
};

void multiply(const Product<float>& product);
void multiply(const Product<double>& product);

// Where the taps of a tile of tokens read the map: sample i = token * 9 + tap.
template <typename A>
struct Samples {
  int32_t pixel[4][kTile * kTaps];
  A weight[4][kTile * kTaps], slope_y[4][kTile * kTaps], slope_x[4][kTile * kTaps];
};

void find_samples(const Map& map, Offsets<float> offsets, int64_t first, int64_t count, Samples<float>& samples);
void find_samples(const Map& map, Offsets<double> offsets, int64_t first, int64_t count, Samples<double>& samples);

// columns[h, token, tap, c] <- the samples of channels [first, first + heads * size) of rows [H*W, stride].
struct Channels {
  int64_t first, heads, size, stride;  // stride: channels of a row
};
void sample(const float* rows, Channels channels, const Samples<float>& samples, int64_t count, float* columns);
void sample(const double* rows, Channels channels, const Samples<double>& samples, int64_t count, double* columns);

// Adds to grad_rows [H*W, stride] what grad_columns [heads, tokens, 9, size] (rows of `column_row` elements) say, and
// writes the gradients of the offsets of sample i to grad_y[i] and grad_x[i].
void scatter(const float* rows, Channels channels, const Samples<float>& samples, int64_t count,
             const float* grad_columns, int64_t column_row, float* grad_rows, float* grad_y, float* grad_x);
void scatter(const double* rows, Channels channels, const Samples<double>& samples, int64_t count,
             const double* grad_columns, int64_t column_row, double* grad_rows, double* grad_y, double* grad_x);

}  // namespace iact
