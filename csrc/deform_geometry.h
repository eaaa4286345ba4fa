// What the CUDA kernels of the deformable projection share: the shape, where everything lies, and sampling.
//
//   x       [B, H*W, heads*D]  rows, one per pixel (channels_last)
//   offset  [B, S*18, H, W]    any strides, in float32 or in the type of x
//   weight  [3*heads*D, 9, D]  outputs, taps, inputs (channels_last)
//   q, k, v [B, heads, H*W, D] each
//
// Tokens are counted through all images: token = image * H*W + y * W + x. D is the number of channels per head, S the
// number of offset sets, and P = 3 / S that of projections (q, k, v) with which each set goes.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "deform_map.h"
#include "device.h"
#include "mma.h"
#include "vector.h"

namespace iact {

// Elements of T that one 16-byte move takes.
template <typename T>
constexpr int kVector = 16 / sizeof(T);

// One call of the op, as every kernel gets it.
struct Deform {
  int batch, height, width, heads, sets;
  bool wide_offset;  // the offset is in float32, else in the type of x
  int64_t offset_image, offset_channel, offset_row, offset_column;  // strides of the offset, in elements

  IACT_HOST_DEVICE int pixels() const { return height * width; }          // of one image
  IACT_HOST_DEVICE int tokens() const { return batch * pixels(); }        // fewer than 2^26
  IACT_HOST_DEVICE int projections() const { return sets == 1 ? 3 : 1; }  // per set
};

struct alignas(16) Token {
  int image, pixel, y, x;  // pixel = y * W + x
};

IACT_DEVICE Token token_at(const Deform& deform, int token) {
  const int image = token / deform.pixels(), pixel = token - image * deform.pixels(), y = pixel / deform.width;
  return {image, pixel, y, pixel - y * deform.width};
}

// Row `row` (0 to D-1) of a head of projection p of a set, among the 3*heads*D rows of weight and bias.
template <int D>
IACT_DEVICE int weight_row(const Deform& deform, int set, int p, int head, int row) {
  return ((set * deform.projections() + p) * deform.heads + head) * D + row;
}

// Where W(weight row, tap, first channel) lies.
template <int D>
IACT_DEVICE int64_t weight_index(int weight_row, int tap) {
  return (static_cast<int64_t>(weight_row) * kTaps + tap) * D;
}

// Where the row of a token lies in q, k, v and their gradients.
template <int D>
IACT_DEVICE int64_t projected_index(const Deform& deform, int image, int head, int pixel) {
  return ((static_cast<int64_t>(image) * deform.heads + head) * deform.pixels() + pixel) * D;
}

// Where dy of a tap lies in the offset and its gradient; dx is offset_channel further on.
IACT_DEVICE int64_t offset_index(const Deform& deform, int set, int tap, const Token& token) {
  return token.image * deform.offset_image + (set * kTaps + tap) * 2 * deform.offset_channel +
         token.y * deform.offset_row + token.x * deform.offset_column;
}

template <typename T>
IACT_DEVICE float offset_at(const Deform& deform, const void* offset, int64_t index) {
  if (deform.wide_offset) return static_cast<const float*>(offset)[index];
  return static_cast<float>(static_cast<const T*>(offset)[index]);
}

// The pixels around what a tap of a token reads.
template <typename T>
IACT_DEVICE Corners<float, int> corners_at(const Deform& deform, const void* offset, int set, int tap,
                                           const Token& token) {
  const int64_t index = offset_index(deform, set, tap, token);
  const float dy = offset_at<T>(deform, offset, index);
  const float dx = offset_at<T>(deform, offset, index + deform.offset_channel);
  // whole numbers first: the sum is then the nearest float, on the right side of the pixel
  return {deform, token.y + tap / 3 - 1 + dy, token.x + tap % 3 - 1 + dx};
}

// What one sample reads: pixels of x, counted through all images, and their shares. Those off the map have none.
struct alignas(16) Sample {
  int pixel[4];
  float weight[4];
};

template <typename T>
IACT_DEVICE Sample sample_at(const Deform& deform, const void* offset, int set, int tap, const Token& token) {
  const auto corners = corners_at<T>(deform, offset, set, tap, token);
  Sample sample;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sample.pixel[i] = token.image * deform.pixels() + corners.pixel[i];
    sample.weight[i] = corners.weight[i];
  }
  return sample;
}

// sum += factor * 16 bytes of channels.
template <typename T>
IACT_DEVICE void add_scaled(const Raw<16>& raw, float factor, float (&sum)[kVector<T>]) {
  const auto vector = unpack<T, kVector<T>>(raw);
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) sum[i] = fmaf(factor, static_cast<float>(vector.values[i]), sum[i]);
}

// 16 bytes of channels, blended; `from` is their place in the first pixel of all, pixels are `channels` apart.
template <typename T>
IACT_DEVICE void blend(const T* from, int channels, const Sample& sample, float (&sum)[kVector<T>]) {
  Raw<16> raw[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) raw[i] = load<T, kVector<T>>(from + static_cast<int64_t>(sample.pixel[i]) * channels);
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) sum[i] = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) add_scaled<T>(raw[i], sample.weight[i], sum);
}

// 16 bytes of the nearest values of T.
template <typename T>
IACT_DEVICE Raw<16> rounded(const float (&values)[kVector<T>]) {
  Raw<16> raw;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2)
      raw.words[i] = pack<T>(values[2 * i], values[2 * i + 1]);
    else
      memcpy(&raw.words[i], &values[i], sizeof(float));
  }
  return raw;
}

}  // namespace iact
