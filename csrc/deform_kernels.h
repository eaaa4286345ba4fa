// The CUDA kernels of the deformable projection and of its gradient by x: one text for nvcc and for the emulator.
//
// Each multiplies gathered rows by a small matrix, tap by tap: rows [16 x D] of a warp's own by W_t in shared memory.
//   deform_qkv_kernel    rows are samples of x; what comes out are q, k and v
//   deform_lists_kernel  turns the samples round: for each tap and pixel, which tokens read it, with which weight
//   deform_qkv_x_kernel  rows are gradients of q, k and v, gathered along these lists; out comes the gradient of x
// Every sum is made in an order that the shape and the offsets alone decide: results are the same from run to run.
#pragma once

#include <algorithm>

#include "deform_geometry.h"
#include "deform_tiles.h"
#include "device.h"
#include "mma.h"
#include "vector.h"

namespace iact {

constexpr int kTileWarps = 8;  // of a block
constexpr int kTileRows = kTileWarps * kWarpRows;
constexpr int kTileThreads = kTileWarps * 32;

inline unsigned tiles_of(const Deform& deform) { return (deform.tokens() + kTileRows - 1) / kTileRows; }

// Dynamic shared memory: the rows of all warps, then weights [kWeightRows x D].
template <typename T, int D, int kWeightRows, int kWeightPitch>
constexpr int kTileBytes = (kTileRows * kPitch<T, D> + kWeightRows * kWeightPitch) * int{sizeof(T)};

template <typename T, int D, int P>
constexpr int kForwardBytes = kTileBytes<T, D, P * D, kPitch<T, D>>;

template <typename T>
IACT_DEVICE T* chosen(int projection, T* q, T* k, T* v) {
  return projection == 0 ? q : projection == 1 ? k : v;
}

// Blocks that an SM should hold at least, as their registers for sums [16 x kColumns] allow.
template <typename T, int kColumns>
constexpr int kBlocks = kColumns <= (sizeof(T) == 2 ? 48 : 16) ? 3 : kColumns <= 144 ? 2 : 1;

// A block makes P projections of one set and head for kTileRows tokens. Grid: tiles, heads, sets.
template <typename T, int D, int P>
__global__ void __launch_bounds__(kTileThreads, kBlocks<T, P * D>)
    deform_qkv_kernel(Deform deform, const T* __restrict__ x, const void* __restrict__ offset,
                      const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ q, T* __restrict__ k,
                      T* __restrict__ v) {
  constexpr int kWeights = kTileRows * kPitch<T, D>;
  IACT_DYNAMIC_SHARED(T, memory);
  IACT_SHARED(Token, tokens, kTileRows);
  IACT_SHARED(Sample, samples, kTileThreads);  // of two taps: the even one of a warp's tokens, then the odd one
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, set = blockIdx.z;
  const int rows = warp * kWarpRows * kPitch<T, D>, channels = deform.heads * D;
  const int first = blockIdx.x * kTileRows + warp * kWarpRows, own = warp * kWarpRows + lane % kWarpRows;
  if (lane < kWarpRows) tokens[own] = token_at(deform, std::min(first + lane, deform.tokens() - 1));
  float sum[P][D / 8][4];
#pragma unroll
  for (int p = 0; p < P; ++p) start_sums<T, D>(deform, bias, set, p, head, sum[p]);
  const auto fetch = [&](int tap) {
    fetch_weight<T, D, P, kPitch<T, D>, kTileThreads>(deform, weight, set, 0, head, tap, memory, kWeights);
  };
  fetch(0);
  __syncwarp();
#pragma unroll 1
  for (int tap = 0; tap < kTaps; ++tap) {
    const int mine = tap + lane / kWarpRows;
    if (tap % 2 == 0 && mine < kTaps) samples[threadIdx.x] = sample_at<T>(deform, offset, set, mine, tokens[own]);
    __syncwarp();
    take_rows<T, D>(x + head * D, channels, samples, warp * 32 + tap % 2 * kWarpRows, memory, rows);
    wait_for_block();
#pragma unroll
    for (int p = 0; p < P; ++p)
      multiply<T, D, D>(sum[p], memory, rows, kPitch<T, D>, memory, kWeights + p * D * kPitch<T, D>, kPitch<T, D>);
    __syncthreads();
    if (tap + 1 < kTaps) fetch(tap + 1);
  }
#pragma unroll
  for (int p = 0; p < P; ++p) {
    store_rows<T, D>(sum[p], memory, rows, chosen(set * P + p, q, k, v), [&](int row) -> int64_t {
      const Token token = tokens[warp * kWarpRows + row];
      return first + row < deform.tokens() ? projected_index<D>(deform, token.image, head, token.pixel) : -1;
    });
  }
}

// One sample that reads a pixel.
struct alignas(8) Reader {
  int row;  // of its token in q, k, v: that of head 0; those of other heads are H*W apart
  float weight;
};

// Calls work(token, inside, pixel, weight) for each corner of each token, all lanes together, a token each; `inside`
// says whether the token's sample has a share in the pixel.
template <typename T, typename Work>
IACT_DEVICE void for_corners(const Deform& deform, const void* offset, int image, int set, int tap, const Work& work) {
  for (int base = 0; base < deform.pixels(); base += 32) {
    const int pixel = base + lane_index();
    const bool exists = pixel < deform.pixels();
    const Token token = token_at(deform, image * deform.pixels() + (exists ? pixel : 0));
    const auto corners = corners_at<T>(deform, offset, set, tap, token);
#pragma unroll
    for (int i = 0; i < 4; ++i) work(token, exists && corners.weight[i] != 0, corners.pixel[i], corners.weight[i]);
  }
}

// Turns the counts of readers into the place of each pixel's first, after `place` others; the next free one comes out.
template <class Cursors>
IACT_DEVICE int place_readers(const Cursors& cursors, int count, int place, int* starts) {
  const int lane = lane_index();
  for (int base = 0; base < count; base += 32) {
    int own = 0;
    if (base + lane < count) own = cursors[base + lane];
    int sum = own;
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_sync(~0u, sum, lane - step);
      if (lane >= step) sum += left;
    }
    if (base + lane < count) cursors[base + lane] = starts[base + lane] = place + sum - own;
    place += __shfl_sync(~0u, sum, 31);
  }
  __syncwarp();
  return place;
}

// Pixels of a range: a quarter of the map, so that more warps share the work, and no more than fits shared memory.
inline int readers_range(const Deform& deform) { return std::max(32, std::min(deform.pixels() / 4, 4096)); }

// The readers of a range of pixels, for one image, set and tap, by one warp: counted, given places, and written 32
// tokens at a time, corner by corner, in the order of tokens. starts [S, 9, B, H*W + 1], readers [S, 9, B * 4*H*W]:
// those of a pixel lie from its start to the next one. Grid: (S * 9 * B, ranges). Dynamic shared memory: an int for
// each pixel of the range.
template <typename T>
__global__ void __launch_bounds__(32)
    deform_lists_kernel(Deform deform, const void* __restrict__ offset, int range, int* __restrict__ starts,
                        Reader* __restrict__ readers) {
  IACT_DYNAMIC_SHARED(int, cursors);
  const int lane = threadIdx.x, image = blockIdx.x % deform.batch, layer = blockIdx.x / deform.batch;
  const int set = layer / kTaps, tap = layer % kTaps, pixels = deform.pixels();
  const int first = blockIdx.y * range, last = std::min(first + range, pixels);
  starts += static_cast<int64_t>(blockIdx.x) * (pixels + 1);
  readers += static_cast<int64_t>(layer) * deform.tokens() * 4;
  for (int i = lane; i < last - first; i += 32) cursors[i] = 0;
  __syncwarp();
  int before = 0;  // readers of pixels before the range
  for_corners<T>(deform, offset, image, set, tap, [&](const Token&, bool inside, int pixel, float) {
    before += inside && pixel < first;
    if (inside && pixel >= first && pixel < last) atomicAdd(&cursors[pixel - first], 1);
  });
  __syncwarp();
  for (int bit = 16; bit > 0; bit /= 2) before += __shfl_xor_sync(~0u, before, bit);
  const int end = place_readers(cursors, last - first, image * pixels * 4 + before, starts + first);
  if (last == pixels && lane == 0) starts[last] = end;
  for_corners<T>(deform, offset, image, set, tap, [&](const Token& token, bool inside, int pixel, float weight) {
    inside &= pixel >= first && pixel < last;
    if (!__any_sync(~0u, inside)) return;
    const unsigned peers = __match_any_sync(~0u, inside ? pixel : -1);
    const int rank = __popc(peers & ((1u << lane) - 1));
    int place = 0;
    if (inside) place = cursors[pixel - first];
    __syncwarp();
    if (inside) readers[place + rank] = {image * deform.heads * pixels + token.pixel, weight};
    if (inside && rank == 0) cursors[pixel - first] = place + __popc(peers);
    __syncwarp();
  });
}

// Elements between rows of weights that are read by columns.
template <int D>
constexpr int kColumnPitch = D + 8;

template <typename T, int D>
constexpr int kBackwardBytes = kTileBytes<T, D, D, kColumnPitch<D>>;

// Sums 16 bytes of the rows of the readers from `begin` to `end`, times their weights; `from` is where row 0 has them.
template <typename T, int D>
IACT_DEVICE void gather(const T* from, const Reader* readers, int begin, int end, float (&sum)[kVector<T>]) {
  constexpr int kAtOnce = 4;  // on their way together: as many as a pixel has readers on average
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) sum[i] = 0;
  for (; begin < end; begin += kAtOnce) {
    Reader reader[kAtOnce];
    Raw<16> raw[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) reader[i] = readers[std::min(begin + i, end - 1)];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) raw[i] = load<T, kVector<T>>(from + static_cast<int64_t>(reader[i].row) * D);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) add_scaled<T>(raw[i], begin + i < end ? reader[i].weight : 0.0f, sum);
  }
}

// A block makes the gradient of one head's channels of kTileRows pixels of x, from all sets. Grid: tiles, heads.
template <typename T, int D>
__global__ void __launch_bounds__(kTileThreads, kBlocks<T, D>)
    deform_qkv_x_kernel(Deform deform, const T* __restrict__ grad_q, const T* __restrict__ grad_k,
                        const T* __restrict__ grad_v, const T* __restrict__ weight, const int* __restrict__ starts,
                        const Reader* __restrict__ readers, T* __restrict__ grad_x) {
  constexpr int kWeights = kTileRows * kPitch<T, D>, kSteps = 3 * kTaps;
  IACT_DYNAMIC_SHARED(T, memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, tokens = deform.tokens();
  const int rows = warp * kWarpRows * kPitch<T, D>, first = blockIdx.x * kTileRows + warp * kWarpRows;
  const int own = std::min(first + lane % kWarpRows, tokens - 1), image = own / deform.pixels();
  const auto layer_of = [&](int step) { return step % 3 / deform.projections() * kTaps + step / 3; };
  // lanes 0-15 see where a row's readers start, 16-31 where they end; a step ahead, as all else waits for it
  starts += own + image + lane / kWarpRows;
  int bound = starts[0];
  float sum[D / 8][4] = {};
#pragma unroll 1
  for (int step = 0; step < kSteps; ++step) {
    const int projection = step % 3, set = projection / deform.projections(), place = bound;
    const int64_t layer = layer_of(step);
    fetch_weight<T, D, 1, kColumnPitch<D>, kTileThreads>(
        deform, weight, set, projection % deform.projections(), head, step / 3, memory, kWeights);
    if (step + 1 < kSteps) bound = starts[layer_of(step + 1) * (tokens + deform.batch)];
    const T* from = chosen(projection, grad_q, grad_k, grad_v) + static_cast<int64_t>(head) * deform.pixels() * D;
#pragma unroll 1
    for (int n = 0; n < kMoves<T, D>; ++n) {
      const Move<T, D> move(n);
      float values[kVector<T>];
      const int begin = __shfl_sync(~0u, place, move.row), end = __shfl_sync(~0u, place, move.row + kWarpRows);
      gather<T, D>(from + move.column, readers + layer * tokens * 4, begin, end, values);
      store16(memory, rows + move.place, rounded<T>(values));
    }
    wait_for_block();
    multiply<T, D, D, false, true>(sum, memory, rows, kPitch<T, D>, memory, kWeights, kColumnPitch<D>);
    __syncthreads();
  }
  store_rows<T, D>(sum, memory, rows, grad_x + head * D, [&](int row) -> int64_t {
    return first + row < tokens ? static_cast<int64_t>(first + row) * deform.heads * D : -1;
  });
}

}  // namespace iact
