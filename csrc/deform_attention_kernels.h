// The CUDA kernel of the whole attention on small maps: one text for nvcc and for the emulator of the tests.
//
// A block makes one head of one image. Its queries, keys and values go to shared memory and no further: what is read
// are x, the offset and the weight, and what is written is the result, in rows of pixels. Sums are those of
// deform_qkv_kernel and attention_kernel, made in the same order and rounded at the same places; only keys meet the
// queries in steps of another length.
#pragma once

#include <algorithm>

#include "attention_kernels.h"
#include "deform_geometry.h"
#include "deform_tiles.h"
#include "device.h"
#include "mma.h"

namespace iact {

constexpr int kProjections = 3;  // queries, keys and values: each has warps of its own
constexpr int kPassWarps = 4;    // of a projection
constexpr int kPassRows = kPassWarps * kWarpRows;
constexpr int kMapWarps = kProjections * kPassWarps;
constexpr int kMapThreads = 32 * kMapWarps;

// Tokens of a map, in whole passes.
IACT_HOST_DEVICE int map_rows(int tokens) { return (tokens + kPassRows - 1) / kPassRows * kPassRows; }

// Dynamic shared memory: a sample for each thread, and from element kFirstRow<T> on the rows of each projection, then
// the weights of a tap for each.
template <typename T>
constexpr int kFirstRow = kMapThreads * sizeof(Sample) / sizeof(T);

template <typename T, int D>
constexpr int64_t map_bytes(int rows) {
  return (kFirstRow<T> + int64_t{kProjections} * (rows + D) * kPitch<T, D>) * int64_t{sizeof(T)};
}

// How a warp attends: 16 queries meet kStep keys at a time, as many as registers allow.
template <typename T, int D>
struct MapPlan {
  static constexpr int kDim = D, kTiles = 1, kStep = sizeof(T) == 2 ? 32 : 16, kStride = kPitch<T, D>;
  static IACT_DEVICE int warp_row() { return 0; }
};

// Makes the rows of all projections for kPassRows tokens from `first` on; those beyond the last token repeat it. The
// samples of a tap lie where the rows of a projection then come to lie: those of a set of its own in the rows of that
// projection, those of a common set, to which the warps of all three contribute, in the rows of the queries.
template <typename T, int D, int kSets, class Memory, class Samples>
IACT_DEVICE void project(const Deform& deform, const T* x, const void* offset, const T* weight, const T* bias,
                         int image, int head, int first, const Memory& memory, Samples samples) {
  constexpr int kStride = kPitch<T, D>, kParts = kProjections / kSets, kAhead = 2 * kParts;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, projection = warp / kPassWarps, tile = warp % kPassWarps;
  const int set = kSets == 1 ? 0 : projection, part = projection - set, rows = map_rows(deform.pixels());
  const int row = first + tile * kWarpRows, weights = kFirstRow<T> + kProjections * rows * kStride;
  const int sampled = kFirstRow<T> + (set * rows + row) * kStride;
  const int own = std::min(row + lane % kWarpRows, deform.pixels() - 1);
  const Token token = token_at(deform, image * deform.pixels() + own);
  const auto fetch = [&](int tap) {
    fetch_weight<T, D, kProjections, kStride, kMapThreads>(deform, weight, 0, 0, head, tap, memory, weights);
  };
  fetch(0);
  float sum[D / 8][4];
  start_sums<T, D>(deform, bias, 0, projection, head, sum);
#pragma unroll 1
  for (int tap = 0; tap < kTaps; ++tap) {
    if (tap % kAhead == 0) {  // each warp looks up two taps, of kAhead in all
      const int mine = tap + 2 * part + lane / kWarpRows;
      if (mine < kTaps) samples[threadIdx.x] = sample_at<T>(deform, offset, set, mine, token);
      if constexpr (kParts == 1)
        __syncwarp();
      else
        __syncthreads();
    }
    const int finder = (kSets == 1 ? tap % kAhead / 2 : projection) * kPassWarps + tile;
    take_rows<T, D, kParts>(x + head * D, deform.heads * D, samples, finder * 32 + tap % 2 * kWarpRows, memory, sampled,
                            part);
    wait_for_block();
    multiply<T, D, D>(sum, memory, sampled, kStride, memory, weights + projection * D * kStride, kStride);
    __syncthreads();
    if (tap + 1 < kTaps) fetch(tap + 1);
  }
  put_rows<T, D>(sum, memory, kFirstRow<T> + (projection * rows + row) * kStride);
}

// Makes 16 rows of the result from `first` on; `out` is where this head's columns begin in the image's first row.
template <typename T, int D, class Memory>
IACT_DEVICE void attend(const Attention& attention, int first, const Memory& memory, T* out) {
  using P = MapPlan<T, D>;
  const int tokens = attention.tokens, tile = map_rows(tokens) * P::kStride;
  const int queries = kFirstRow<T> + first * P::kStride;
  Mixture<P> mixture;
#pragma unroll 1
  for (int key = 0; key < tokens; key += P::kStep) {
    const int keys = kFirstRow<T> + tile + key * P::kStride;
    mixture.template add<T>(memory, queries, keys, keys + tile, key, attention);
  }
  mixture.finish([](int, float, float) {});
  store_rows<T, D>(mixture.sum[0], memory, queries, out, [&](int row) -> int64_t {
    return first + row < tokens ? int64_t{1} * (first + row) * attention.heads * D : -1;
  });
}

// out [B, H*W, heads*D]. Grid: a block for each head of each image.
template <typename T, int D, int kSets>
__global__ void __launch_bounds__(kMapThreads, sizeof(T) == 2 && D < 64 ? 2 : 1)
    deform_attention_kernel(Deform deform, Attention attention, const T* __restrict__ x,
                            const void* __restrict__ offset, const T* __restrict__ weight, const T* __restrict__ bias,
                            T* __restrict__ out) {
  IACT_DYNAMIC_SHARED(T, memory);
  IACT_DYNAMIC_SHARED(Sample, samples);  // of two taps for each warp's tokens: the even one, then the odd one
  const int image = blockIdx.x / deform.heads, head = blockIdx.x % deform.heads;
  for (int first = 0; first < deform.pixels(); first += kPassRows)
    project<T, D, kSets>(deform, x, offset, weight, bias, image, head, first, memory, samples);
  __syncthreads();
  out += (int64_t{1} * image * deform.pixels() * deform.heads + head) * D;
  for (int first = threadIdx.x / 32 * kWarpRows; first < deform.pixels(); first += kMapWarps * kWarpRows)
    attend<T, D>(attention, first, memory, out);
}

}  // namespace iact
