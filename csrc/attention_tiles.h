// What the kernels of attention are made of: tiles of rows in shared memory, how they come and go, and their products.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "device.h"
#include "mma.h"
#include "vector.h"

namespace iact {

constexpr int kWarps = 4;  // per block
constexpr int kAttentionThreads = 32 * kWarps;
constexpr float kLog2e = 1.44269504f;

// scale * log2(e), and next to nothing in place of 0, which would not hide infinite scores.
IACT_HOST_DEVICE float exponent_of(float scale) { return fmaxf(scale * kLog2e, 1e-30f); }

struct Attention {
  int heads, tokens, size;  // h, N, D
  bool aligned;             // every row of every tensor starts and ends on a multiple of 16 bytes
  float scale;              // of the scores
  float exponent;           // exponent_of(scale)
};

// A tensor [B, h, N, D]: D elements side by side, all else anywhere.
template <typename T>
struct Heads {
  T* data;
  int64_t image, head, token;  // strides, in elements
};

// One head of one image, its island: [N, D].
template <typename T>
struct Rows {
  T* data;
  int64_t stride;

  IACT_DEVICE Rows(const Heads<T>& tensor, const Attention& attention, int island)
      : data(tensor.data + island / attention.heads * tensor.image + island % attention.heads * tensor.head),
        stride(tensor.token) {}
};

// How a block divides its work. Each warp has 16 * kTiles rows, which meet kStep rows at a time. In shared memory are,
// one after another, the rows that the block keeps of kOwn tensors and two stages of kMoving tensors. Rows are kDim
// elements long, zeros beyond D, with a gap behind them that spreads their columns over the banks.
template <typename T, int kDim_, int kTiles_, int kStep_, int kOwn, int kMoving>
struct Plan {
  static constexpr int kDim = kDim_, kTiles = kTiles_, kStep = kStep_;
  static constexpr int kVector = 16 / sizeof(T), kChunks = kDim / kVector, kStride = kDim + kVector;
  static constexpr int kWarpRows = 16 * kTiles, kRows = kWarps * kWarpRows;
  static constexpr int kOwnTile = kRows * kStride, kMovingTile = kStep * kStride;
  static constexpr int kStages = kOwn * kOwnTile, kStage = kMoving * kMovingTile;
  static constexpr int kBytes = (kStages + 2 * kStage) * static_cast<int>(sizeof(T));

  static IACT_HOST_DEVICE int blocks(int tokens) { return (tokens + kRows - 1) / kRows; }  // of one island
  static IACT_DEVICE int warp_row() { return threadIdx.x / 32 * kWarpRows; }
  static IACT_DEVICE int stage(int step) { return kStages + step / kStep % 2 * kStage; }
};

// 16 bytes of a row of which `left` elements are left; zeros beyond them.
template <typename T>
IACT_DEVICE Raw<16> read_end(const T* from, int left) {
  T values[16 / sizeof(T)];
  for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) values[i] = i < left ? from[i] : static_cast<T>(0.0f);
  Raw<16> raw;
  memcpy(&raw, values, sizeof raw);
  return raw;
}

// Starts to bring kCount rows from `first` on to shared memory; those that do not exist become zeros.
template <class P, int kCount, typename T, class Tiles>
IACT_DEVICE void fetch(Tiles tiles, int tile, const Rows<const T>& rows, int first, const Attention& attention) {
  for (int i = threadIdx.x; i < kCount * P::kChunks; i += kAttentionThreads) {
    const int row = i / P::kChunks, column = i % P::kChunks * P::kVector, place = tile + row * P::kStride + column;
    const int left = first + row < attention.tokens ? attention.size - column : 0;
    const T* from = rows.data + (first + row) * rows.stride + column;
    if (attention.aligned && left > 0)
      iact::copy_async16(tiles, place, from);
    else
      store16(tiles, place, read_end(from, left));
  }
}

// Writes this warp's rows of a result [B, h, N, D] by way of `tile`, where this warp's rows are no longer needed.
template <class P, typename T, class Tiles>
IACT_DEVICE void write(const float (&sum)[P::kTiles][P::kDim / 8][4], Tiles tiles, int tile, T* result,
                       int island, int first, const Attention& attention) {
  const int part = tile + P::warp_row() * P::kStride, first_row = first + P::warp_row();
  __syncwarp();  // other lanes may still be reading what lies there
#pragma unroll
  for (int t = 0; t < P::kTiles; ++t)
#pragma unroll
    for (int j = 0; j < P::kDim / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        tiles[part + (16 * t + row_of(i)) * P::kStride + column_of(j, i)] = static_cast<T>(sum[t][j][i]);
  __syncwarp();
  for (int i = lane_index(); i < P::kWarpRows * P::kChunks; i += 32) {
    const int row = i / P::kChunks, column = i % P::kChunks * P::kVector;
    const int left = first_row + row < attention.tokens ? attention.size - column : 0;
    const auto vector = unpack<T, P::kVector>(load16(tiles, part + row * P::kStride + column));
    T* to = result + (int64_t{1} * island * attention.tokens + first_row + row) * attention.size + column;
    if (attention.aligned && left > 0) {
      store(vector, to);
    } else {
      for (int e = 0; e < P::kVector; ++e)
        if (e < left) to[e] = vector.values[e];
    }
  }
}

// sum[t] [16 x kColumns] += operand[t] B: multiply_registers() that loads B once for all tiles.
template <typename T, int kColumns, bool kBRows, int kTiles, class Tiles>
IACT_DEVICE void multiply_tiles(float (&sum)[kTiles][kColumns / 8][4], const Operand<T> (&operand)[kTiles],
                                Tiles tiles, int b, int stride, int line) {
#pragma unroll
  for (int j = 0; j < kColumns / 8; j += 2) {
    Columns<T> columns[2];
    load_columns<T, kBRows>(columns, tiles, b + 8 * j * (kBRows ? 1 : stride), stride, line);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) add_product(sum[t] + j, operand[t], columns, line);
  }
}

// scores += A B^T of this warp's rows of tile `a` and the rows of moving tile `b`.
template <class P, typename T, class Tiles>
IACT_DEVICE void multiply_rows(float (&scores)[P::kTiles][P::kStep / 8][4], Tiles tiles, int a, int b) {
  const int part = a + P::warp_row() * P::kStride;
  constexpr int kUnrolled = sizeof(T) == 2 ? 4 : 1;  // floats take three times the registers
#pragma unroll kUnrolled
  for (int k = 0; k < P::kDim; k += 16) {
    Operand<T> operand[P::kTiles];
#pragma unroll
    for (int t = 0; t < P::kTiles; ++t)
      operand[t] = load_operand<T, false>(tiles, part + 16 * t * P::kStride + k, P::kStride, __LINE__);
    multiply_tiles<T, P::kStep, false>(scores, operand, tiles, b + k, P::kStride, __LINE__);
  }
}

// sum += scores B of the rows of moving tile `b`.
template <class P, typename T, class Tiles>
IACT_DEVICE void multiply_scores(float (&sum)[P::kTiles][P::kDim / 8][4],
                                 const float (&scores)[P::kTiles][P::kStep / 8][4], Tiles tiles, int b) {
#pragma unroll
  for (int k = 0; k < P::kStep; k += 16) {
    Operand<T> operand[P::kTiles];
#pragma unroll
    for (int t = 0; t < P::kTiles; ++t) operand[t] = operand_of<T>(scores[t][k / 8], scores[t][k / 8 + 1]);
    multiply_tiles<T, P::kDim, true>(sum, operand, tiles, b + k * P::kStride, P::kStride, __LINE__);
  }
}

}  // namespace iact
