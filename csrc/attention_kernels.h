// The CUDA kernels of softmax attention: one text for nvcc and for the emulator of the tests.
//
// No score is ever in global memory: a block keeps some rows of one head in shared memory and goes over the rows that
// they meet in steps, of which the next is on its way while the tensor cores work on this one. Scores are added up and
// softened in float32, in an order that the shape alone fixes: results are the same from run to run.
#pragma once

#include "attention_tiles.h"
#include "device.h"
#include "mma.h"
#include "vector.h"

namespace iact {

// Tiles of 16 rows that the registers of a warp have room for: what it loads serves them all. Results do not depend on
// how many they are.
template <typename T, int kDim>
constexpr int kMostForward = sizeof(T) == 2 ? 2 : 1;
template <typename T, int kDim>
constexpr int kMostBackward = sizeof(T) == 2 && kDim < 64 ? 2 : 1;

// Keeps q, goes over k and v.
template <typename T, int kDim, int kTiles>
using Forward = Plan<T, kDim, kTiles, sizeof(T) == 2 ? 64 : 32, 1, 2>;
// Keeps k and v, goes over q, grad and out; or keeps q and grad, goes over k and v.
template <typename T, int kDim, int kTiles>
using Backward = Plan<T, kDim, kTiles, sizeof(T) == 2 || kDim < 64 ? 32 : 16, 2, 3>;

// Makes -infinity of the scores of keys that do not exist; the first column is key `first`.
template <int kColumns>
IACT_DEVICE void hide(float (&scores)[kColumns][4], int first, int tokens) {
  if (first + 8 * kColumns <= tokens) return;
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + column_of(j, i) >= tokens) scores[j][i] = -INFINITY;
}

// Over the four lanes that hold a row of a product.
IACT_DEVICE float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

IACT_DEVICE float row_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// The softmax of the two rows of which this lane holds a part, over the keys seen so far.
struct Softmax {
  float highest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  // of 2^(exponent * (score - highest)), this lane's columns only

  // Makes such powers of the scores. What was added up of earlier ones is to be multiplied by `kept`.
  template <int kColumns>
  IACT_DEVICE void add(float (&scores)[kColumns][4], float exponent, float (&kept)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = highest[half];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) top = fmaxf(top, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
      top = row_max(top);
      kept[half] = fast_exp2((highest[half] - top) * exponent);
      highest[half] = top;
      float added = 0;
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[j][i] = fast_exp2(fmaf(scores[j][i], exponent, -top * exponent));
          added += scores[j][i];
        }
      sum[half] = fmaf(sum[half], kept[half], added);
    }
  }
};

// A warp's rows of the result, over the keys seen so far.
template <class P>
struct Mixture {
  float sum[P::kTiles][P::kDim / 8][4] = {};
  Softmax softmax[P::kTiles];

  template <typename T, class Tiles>
  IACT_DEVICE void add(Tiles tiles, int queries, int keys, int values, int first, const Attention& attention) {
    float scores[P::kTiles][P::kStep / 8][4] = {};
    multiply_rows<P, T>(scores, tiles, queries, keys);
#pragma unroll
    for (int t = 0; t < P::kTiles; ++t) {
      float kept[2];
      hide(scores[t], first, attention.tokens);
      softmax[t].add(scores[t], attention.exponent, kept);
#pragma unroll
      for (int j = 0; j < P::kDim / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[t][j][i] *= kept[i / 2];
    }
    multiply_scores<P, T>(sum, scores, tiles, values);
  }

  // Divides by the sums of the powers, and calls note(row of the warp, highest score, such a sum) for this lane's rows.
  template <typename Note>
  IACT_DEVICE void finish(const Note& note) {
#pragma unroll
    for (int t = 0; t < P::kTiles; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float all = row_sum(softmax[t].sum[half]), inverse = fast_reciprocal(all);
#pragma unroll
        for (int j = 0; j < P::kDim / 8; ++j) sum[t][j][2 * half] *= inverse, sum[t][j][2 * half + 1] *= inverse;
        note(16 * t + row_of(2 * half), softmax[t].highest[half], all);
      }
  }
};

// out [B, h, N, D] and logsumexp [B, h, N] of the scores, contiguous. Block: some queries of an island.
template <typename T, int kDim, int kTiles>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_kernel(Heads<const T> q, Heads<const T> k, Heads<const T> v, Attention attention, T* __restrict__ out,
                     float* __restrict__ logsumexp) {
  using P = Forward<T, kDim, kTiles>;
  IACT_DYNAMIC_SHARED(T, tiles);
  const int blocks = P::blocks(attention.tokens), island = blockIdx.x / blocks;
  const int first = blockIdx.x % blocks * P::kRows;
  const Rows<const T> queries(q, attention, island), keys(k, attention, island), values(v, attention, island);
  const auto fetch_step = [&](int step) {
    fetch<P, P::kStep>(tiles, P::stage(step), keys, step, attention);
    fetch<P, P::kStep>(tiles, P::stage(step) + P::kMovingTile, values, step, attention);
    commit_copies();
  };
  fetch<P, P::kRows>(tiles, 0, queries, first, attention);
  fetch_step(0);
  Mixture<P> mixture;
  for (int step = 0; step < attention.tokens; step += P::kStep) {
    wait_copies<0>();
    __syncthreads();
    if (step + P::kStep < attention.tokens) fetch_step(step + P::kStep);
    const int stage = P::stage(step);
    mixture.template add<T>(tiles, 0, stage, stage + P::kMovingTile, step, attention);
  }
  logsumexp += int64_t{1} * island * attention.tokens;
  mixture.finish([&](int warp_row, float highest, float all) {
    const int row = first + P::warp_row() + warp_row;
    if (lane_index() % 4 == 0 && row < attention.tokens) logsumexp[row] = fmaf(highest, attention.scale, logf(all));
  });
  write<P>(mixture.sum, tiles, 0, out, island, first, attention);
}

// What the backward pass reads.
template <typename T>
struct Saved {
  Heads<const T> q, k, v, grad, out;
  const float* logsumexp;  // [B, h, N]
};

// What it writes, [B, h, N, D] each.
template <typename T>
struct Gradients {
  T *q, *k, *v;
};

// Notes what products need of kCount queries, whose rows of the gradient and of the result are in shared memory: the
// shift, which each thread has of the query of its own number, and the mean slope of the probabilities.
template <class P, int kCount, typename T, class Tiles, class Floats>
IACT_DEVICE void note(Tiles tiles, int grad, int out, float shift, Floats shifts, Floats means) {
  constexpr int kLanes = 4;  // that share a row
  if (static_cast<int>(threadIdx.x) < kCount) shifts[threadIdx.x] = shift;
  for (int row = threadIdx.x / kLanes; row < kCount; row += kAttentionThreads / kLanes) {
    float mean = 0;
    for (int column = threadIdx.x % kLanes * P::kVector; column < P::kDim; column += kLanes * P::kVector) {
      const auto a = unpack<T, P::kVector>(load16(tiles, grad + row * P::kStride + column));
      const auto b = unpack<T, P::kVector>(load16(tiles, out + row * P::kStride + column));
      for (int i = 0; i < P::kVector; ++i)
        mean = fmaf(static_cast<float>(a.values[i]), static_cast<float>(b.values[i]), mean);
    }
    mean = row_sum(mean);
    if (threadIdx.x % kLanes == 0) means[row] = mean;
  }
}

// Makes probabilities of scores, and slopes of scores of the slopes of probabilities. Queries are columns of the tiles
// where kOfKeys, else rows.
template <class P, bool kOfKeys, class Floats>
IACT_DEVICE void differentiate(float (&scores)[P::kTiles][P::kStep / 8][4], float (&slopes)[P::kTiles][P::kStep / 8][4],
                               float exponent, Floats shifts, Floats means) {
#pragma unroll
  for (int t = 0; t < P::kTiles; ++t)
#pragma unroll
    for (int j = 0; j < P::kStep / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = kOfKeys ? column_of(j, i) : P::warp_row() + 16 * t + row_of(i);
        const float shift = shifts[query], mean = means[query];
        scores[t][j][i] = fast_exp2(fmaf(scores[t][j][i], exponent, -shift));
        slopes[t][j][i] = scores[t][j][i] * (slopes[t][j][i] - mean);
      }
}

// What to take from the scores of a query, in units of the exponent. One that does not exist has rows of zeros, which
// add nothing for any finite number.
IACT_DEVICE float shift_of(const float* logsumexp, int query, const Attention& attention) {
  return query < attention.tokens ? logsumexp[query] * kLog2e : 0.0f;
}

template <int kTiles, int kColumns>
IACT_DEVICE void scale(float (&sum)[kTiles][kColumns][4], float by) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[t][j][i] *= by;
}

// The gradients of the keys and values from `first` on. All products are those of the forward pass transposed: their
// rows are keys.
template <class P, typename T, class Tiles, class Floats>
IACT_DEVICE void backward_of_keys(const Saved<T>& saved, const Gradients<T>& gradients, const Attention& attention,
                                  int island, int first, Tiles tiles, Floats shifts, Floats means) {
  const Rows<const T> q(saved.q, attention, island), k(saved.k, attention, island), v(saved.v, attention, island);
  const Rows<const T> grad(saved.grad, attention, island), out(saved.out, attention, island);
  const auto fetch_step = [&](int step) {
    fetch<P, P::kStep>(tiles, P::stage(step), q, step, attention);
    fetch<P, P::kStep>(tiles, P::stage(step) + P::kMovingTile, grad, step, attention);
    fetch<P, P::kStep>(tiles, P::stage(step) + 2 * P::kMovingTile, out, step, attention);
    commit_copies();
    const float* logsumexp = saved.logsumexp + int64_t{1} * island * attention.tokens;
    return shift_of(logsumexp, step + threadIdx.x, attention);
  };
  fetch<P, P::kRows>(tiles, 0, k, first, attention);
  fetch<P, P::kRows>(tiles, P::kOwnTile, v, first, attention);
  float next_shift = fetch_step(0);
  float grad_k[P::kTiles][P::kDim / 8][4] = {}, grad_v[P::kTiles][P::kDim / 8][4] = {};
  for (int step = 0; step < attention.tokens; step += P::kStep) {
    const int queries = P::stage(step), grads = queries + P::kMovingTile;
    const float shift = next_shift;
    wait_copies<0>();
    __syncthreads();
    if (step + P::kStep < attention.tokens) next_shift = fetch_step(step + P::kStep);
    note<P, P::kStep, T>(tiles, grads, grads + P::kMovingTile, shift, shifts, means);
    __syncthreads();
    float scores[P::kTiles][P::kStep / 8][4] = {}, slopes[P::kTiles][P::kStep / 8][4] = {};
    multiply_rows<P, T>(scores, tiles, 0, queries);
    multiply_rows<P, T>(slopes, tiles, P::kOwnTile, grads);
    differentiate<P, true>(scores, slopes, attention.exponent, shifts, means);
    multiply_scores<P, T>(grad_v, scores, tiles, grads);
    multiply_scores<P, T>(grad_k, slopes, tiles, queries);
  }
  scale(grad_k, attention.scale);
  write<P>(grad_k, tiles, 0, gradients.k, island, first, attention);
  write<P>(grad_v, tiles, P::kOwnTile, gradients.v, island, first, attention);
}

// The gradients of the queries from `first` on.
template <class P, typename T, class Tiles, class Floats>
IACT_DEVICE void backward_of_queries(const Saved<T>& saved, const Gradients<T>& gradients, const Attention& attention,
                                     int island, int first, Tiles tiles, Floats shifts, Floats means) {
  static_assert(P::kOwnTile <= 2 * P::kStage, "`out` takes the place of the stages before they are needed");
  const Rows<const T> q(saved.q, attention, island), k(saved.k, attention, island), v(saved.v, attention, island);
  const Rows<const T> grad(saved.grad, attention, island), out(saved.out, attention, island);
  const auto fetch_step = [&](int step) {
    fetch<P, P::kStep>(tiles, P::stage(step), k, step, attention);
    fetch<P, P::kStep>(tiles, P::stage(step) + P::kMovingTile, v, step, attention);
    commit_copies();
  };
  fetch<P, P::kRows>(tiles, 0, q, first, attention);
  fetch<P, P::kRows>(tiles, P::kOwnTile, grad, first, attention);
  fetch<P, P::kRows>(tiles, P::kStages, out, first, attention);
  commit_copies();
  const float* logsumexp = saved.logsumexp + int64_t{1} * island * attention.tokens;
  const float shift = shift_of(logsumexp, first + threadIdx.x, attention);
  wait_copies<0>();
  __syncthreads();
  note<P, P::kRows, T>(tiles, P::kOwnTile, P::kStages, shift, shifts, means);
  __syncthreads();
  fetch_step(0);
  float grad_q[P::kTiles][P::kDim / 8][4] = {};
  for (int step = 0; step < attention.tokens; step += P::kStep) {
    const int keys = P::stage(step);
    wait_copies<0>();
    __syncthreads();
    if (step + P::kStep < attention.tokens) fetch_step(step + P::kStep);
    float scores[P::kTiles][P::kStep / 8][4] = {}, slopes[P::kTiles][P::kStep / 8][4] = {};
    multiply_rows<P, T>(scores, tiles, 0, keys);
    multiply_rows<P, T>(slopes, tiles, P::kOwnTile, keys + P::kMovingTile);
#pragma unroll
    for (int t = 0; t < P::kTiles; ++t) hide(scores[t], step, attention.tokens);
    differentiate<P, false>(scores, slopes, attention.exponent, shifts, means);
    multiply_scores<P, T>(grad_q, slopes, tiles, keys);
  }
  scale(grad_q, attention.scale);
  write<P>(grad_q, tiles, 0, gradients.q, island, first, attention);
}

// All gradients, in the way that needs no sum over blocks: one half of the blocks computes those of keys and values,
// the other those of queries. The scores are computed by both.
template <typename T, int kDim, int kTiles>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_backward_kernel(Saved<T> saved, Gradients<T> gradients, Attention attention) {
  using P = Backward<T, kDim, kTiles>;
  IACT_DYNAMIC_SHARED(T, tiles);
  IACT_SHARED(float, shifts, P::kRows);
  IACT_SHARED(float, means, P::kRows);
  const int blocks = P::blocks(attention.tokens), half = gridDim.x / 2, block = blockIdx.x % half;
  const int island = block / blocks, first = block % blocks * P::kRows;
  if (static_cast<int>(blockIdx.x) < half)  // they take longer: they go first
    backward_of_keys<P, T>(saved, gradients, attention, island, first, tiles, shifts, means);
  else
    backward_of_queries<P, T>(saved, gradients, attention, island, first, tiles, shifts, means);
}

}  // namespace iact
