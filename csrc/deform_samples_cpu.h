// The CPU loops of sampling for a deformable convolution, a tile of tokens at a time, so that what is sampled stays in
// the cache. A is float, or double for double tensors.
#pragma once

#include <cstdint>

#include "deform_map.h"

namespace iact {

constexpr int64_t kTile = 32;  // tokens

// Where the taps of a tile of tokens read the map: four pixels and their shares, zero for those off the map.
template <typename A>
struct Samples {
  int32_t pixel[4][kTaps][kTile];
  A weight[4][kTaps][kTile];
};

// The derivatives of these weights by the sample's y and x.
template <typename A>
struct Slopes {
  A y[4][kTaps][kTile], x[4][kTaps][kTile];
};

// Also finds `slopes`, unless null.
void find_samples(const Map& map, Offsets<float> offsets, int64_t first, int64_t count, Samples<float>& samples,
                  Slopes<float>* slopes);
void find_samples(const Map& map, Offsets<double> offsets, int64_t first, int64_t count, Samples<double>& samples,
                  Slopes<double>* slopes);

// columns[h, token, tap, c] <- the samples of channels [first, first + heads * size) of rows [H*W, stride].
struct Channels {
  int64_t first, heads, size, stride;  // stride: channels of a row
};
void sample(const float* rows, Channels channels, const Samples<float>& samples, int64_t count, float* columns);
void sample(const double* rows, Channels channels, const Samples<double>& samples, int64_t count, double* columns);

// Adds to grad_rows [H*W, stride] what grad_columns [heads, tokens, 9, size] (rows of `column_row` elements) say, and
// writes the gradients of the offsets to grad_y and grad_x [tokens, 9].
void scatter(const float* rows, Channels channels, const Samples<float>& samples, const Slopes<float>& slopes,
             int64_t count, const float* grad_columns, int64_t column_row, float* grad_rows, float* grad_y,
             float* grad_x);
void scatter(const double* rows, Channels channels, const Samples<double>& samples, const Slopes<double>& slopes,
             int64_t count, const double* grad_columns, int64_t column_row, double* grad_rows, double* grad_y,
             double* grad_x);

}  // namespace iact
