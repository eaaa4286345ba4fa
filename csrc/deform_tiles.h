// What the kernels of the deformable projection are made of: a warp's 16 rows in shared memory, the weights that they
// are multiplied by, and how both come and go.
#pragma once

#include "deform_geometry.h"
#include "device.h"
#include "mma.h"
#include "vector.h"

namespace iact {

constexpr int kWarpRows = 16;  // tokens or pixels of a warp

// Elements between rows of D in shared memory: 16 bytes more, which spreads rows over all banks.
template <typename T, int D>
constexpr int kPitch = D + kVector<T>;

// A warp's rows in 16-byte moves: move n of this lane.
template <typename T, int D>
constexpr int kMoves = kWarpRows * D / kVector<T> / 32;

template <typename T, int D>
struct Move {
  int row, column, place;  // place: from the first element of the warp's rows in shared memory

  explicit IACT_DEVICE Move(int n) {
    const int i = lane_index() + 32 * n;
    row = i / (D / kVector<T>), column = i % (D / kVector<T>) * kVector<T>, place = row * kPitch<T, D> + column;
  }
};

// Starts to copy W_t [P*D x D] of projections p0 to p0 + P - 1 of a set to memory[first...], by a block of kThreads.
template <typename T, int D, int P, int kWeightPitch, int kThreads, class Memory>
IACT_DEVICE void fetch_weight(const Deform& deform, const T* weight, int set, int p0, int head, int tap,
                              const Memory& memory, int first) {
  constexpr int kRow = D / kVector<T>;
#pragma unroll 1
  for (int i = threadIdx.x; i < P * D * kRow; i += kThreads) {
    const int row = i / kRow, column = i % kRow * kVector<T>;
    const int place = weight_row<D>(deform, set, p0 + row / D, head, row % D);
    iact::copy_async16(memory, first + row * kWeightPitch + column, weight + weight_index<D>(place, tap) + column);
  }
  commit_copies();
}

// All threads' copies are there, and the warps' rows.
IACT_DEVICE void wait_for_block() {
  wait_copies<0>();
  __syncthreads();
}

// Writes sums [16 x D] to a warp's rows.
template <typename T, int D, class Memory>
IACT_DEVICE void put_rows(const float (&sum)[D / 8][4], const Memory& memory, int first) {
  __syncwarp();
#pragma unroll
  for (int j = 0; j < D / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      memory[first + row_of(i) * kPitch<T, D> + column_of(j, i)] = static_cast<T>(sum[j][i]);
  __syncwarp();
}

// Writes sums [16 x D] to a warp's rows, and each of these to to + place(row), unless that is negative.
template <typename T, int D, class Memory, typename Place>
IACT_DEVICE void store_rows(const float (&sum)[D / 8][4], const Memory& memory, int first, T* to, const Place& place) {
  put_rows<T, D>(sum, memory, first);
#pragma unroll 1
  for (int n = 0; n < kMoves<T, D>; ++n) {
    const Move<T, D> move(n);
    const int64_t index = place(move.row);
    const Raw<16> raw = load16(memory, first + move.place);
    if (index >= 0) *reinterpret_cast<Raw<16>*>(to + index + move.column) = raw;
  }
}

// Sums [16 x D] of a projection's head, before anything is added to the bias (which may be null).
template <typename T, int D>
IACT_DEVICE void start_sums(const Deform& deform, const T* bias, int set, int p, int head, float (&sum)[D / 8][4]) {
  const int row = weight_row<D>(deform, set, p, head, 0);
#pragma unroll
  for (int j = 0; j < D / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[j][i] = bias ? static_cast<float>(bias[row + column_of(j, i)]) : 0.0f;
}

// Takes a tap's samples of 16 tokens, rounded to T, to a warp's rows, or one of kParts parts of them; `from` is the
// head's place in the first pixel.
template <typename T, int D, int kParts = 1, class Samples, class Memory>
IACT_DEVICE void take_rows(const T* from, int channels, const Samples& samples, int first, const Memory& memory,
                           int rows, int part = 0) {
#pragma unroll 1
  for (int n = part; n < kMoves<T, D>; n += kParts) {
    const Move<T, D> move(n);
    const Sample sample = samples[first + move.row];
    float values[kVector<T>];
    blend(from + move.column, channels, sample, values);
    store16(memory, rows + move.place, rounded<T>(values));
  }
}

}  // namespace iact
