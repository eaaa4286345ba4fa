// The CUDA kernels of the gradients of offset, weight and bias of the deformable projection: one text for nvcc and for
// the emulator of the tests. Shapes and letters are those of deform_geometry.h.
//
// Nothing of the size of the columns is kept: both kernels make them anew, a tile of tokens at a time. Tokens are taken
// through all images, so that a tile is full whatever the size of a map. Every order of summation is fixed by the shape
// alone, so results are the same from run to run. Beside each kernel stands how it is launched.
#pragma once

#include <algorithm>

#include "deform_geometry.h"
#include "mma.h"

namespace iact {

struct GradientLaunch {
  unsigned grid_x, grid_y, grid_z, threads;
  int shared_bytes;  // dynamic; above 48 KiB the kernel has to be allowed them
};

IACT_HOST_DEVICE unsigned tiles_of(const Deform& deform, int tile) {
  return (static_cast<unsigned>(deform.tokens()) + tile - 1) / tile;
}

// Gradients of q, k and v.
template <typename T>
struct ProjectedGradients {
  const T *q, *k, *v;

  IACT_DEVICE const T* of(int projection) const { return projection == 0 ? q : projection == 1 ? k : v; }
};

// That token, or the last one.
IACT_DEVICE Token token_or_last(const Deform& deform, int token) {
  return token_at(deform, token < deform.tokens() ? token : deform.tokens() - 1);
}

// Starts copying the gradients of one head and of the P projections of a set to tile[index + token * stride + p * D],
// for kTokens tokens from `first` on, by threads `thread` of kThreads. Those past the last token get zeros.
template <typename T, int D, int P, int kTokens, int kThreads, class Tile>
IACT_DEVICE void copy_gradients(const Deform& deform, const ProjectedGradients<T>& grads, int set, int head, int first,
                                int thread, const Tile& tile, int index, int stride) {
  constexpr int kPieces = D / kVector<T>;
#pragma unroll 1
  for (int i = thread; i < kTokens * P * kPieces; i += kThreads) {
    const int row = i / (P * kPieces), p = i / kPieces % P, piece = i % kPieces * kVector<T>;
    const int place = index + row * stride + p * D + piece;
    if (first + row < deform.tokens()) {
      const Token token = token_at(deform, first + row);
      const T* from = grads.of(set * P + p) + projected_index<D>(deform, token.image, head, token.pixel);
      iact::copy_async16(tile, place, from + piece);
    } else {
      store16(tile, place, Raw<16>{});
    }
  }
  commit_copies();
}

// A block of the offset's gradient, 16 tokens to a warp, and what lies where in its dynamic shared memory.
template <typename T, int D, int P>
struct OffsetTile {
  static constexpr int kWarps = sizeof(T) == 2 ? 4 : 2, kThreads = 32 * kWarps, kTokens = 16 * kWarps;
  static constexpr int kBlocks = sizeof(T) == 4 && D <= 32 ? 8 : 4;  // for which there have to be registers at once
  static constexpr int kGradStride = P * D + kVector<T>, kWeightStride = D + 8, kColumnStride = D + 8;
  static constexpr int kComponents = 2 * static_cast<int>(kTaps), kSumStride = kTokens + 16;
  // T: gradients of q, k, v [kTokens, kGradStride]; weights [2, D, kWeightStride], one being used and one on its way
  static constexpr int kGrads = 0, kWeights = kTokens * kGradStride;
  // float: gradients of the columns [kTokens, kColumnStride]; sums over heads [kComponents, kSumStride]
  static constexpr int kColumns = (kWeights + 2 * D * kWeightStride) * sizeof(T) / sizeof(float);
  static constexpr int kSums = kColumns + kTokens * kColumnStride;
  static constexpr int kBytes = (kSums + kComponents * kSumStride) * static_cast<int>(sizeof(float));
};

// The place of a channel in a row of columns, such that the 16 bytes that lanes read at once lie in different banks.
IACT_DEVICE int column_place(int channel) { return channel ^ ((channel & 8) / 2); }

// Starts copying W of one head, tap and projection [D, D] to tile[index + row * kWeightStride].
template <typename T, int D, int P, class Tile>
IACT_DEVICE void copy_weights(const Deform& deform, const T* weight, int set, int p, int head, int tap,
                              const Tile& tile, int index) {
  using Shape = OffsetTile<T, D, P>;
  constexpr int kPieces = D / kVector<T>;
  for (int i = threadIdx.x; i < D * kPieces; i += Shape::kThreads) {
    const int row = i / kPieces, piece = i % kPieces * kVector<T>;
    const int64_t from = weight_index<D>(weight_row<D>(deform, set, p, head, row), tap);
    iact::copy_async16(tile, index + row * Shape::kWeightStride + piece, weight + from + piece);
  }
  commit_copies();
}

// Puts the gradients of the columns, of 16 tokens from `row` on, where the lanes of the warp find them.
template <typename T, int D, int P, class Pairs>
IACT_DEVICE void store_columns(const float (&sum)[D / 8][4], const Pairs& pairs, int row) {
  using Shape = OffsetTile<T, D, P>;
  for (int j = 0; j < D / 8; ++j)
    for (int i = 0; i < 4; i += 2) {
      const int place = (row + row_of(i)) * Shape::kColumnStride + column_place(column_of(j, i));
      Raw<8> pair;
      memcpy(&pair, &sum[j][i], sizeof pair);
      pairs[(Shape::kColumns + place) / 2] = pair;
    }
}

struct Slope {
  float y, x;
};

// What one head adds to the offset's gradient of a token and tap, by this lane's half of the channels: products of a
// row of columns with the four pixels around the sample. `rows` are those of the token's image and the head.
template <typename T, int D, class Numbers>
IACT_DEVICE Slope slope_of(const Numbers& numbers, int columns, const T* rows, int channels,
                           const Corners<float, int>& corners, int half) {
  constexpr int kCount = kVector<T>;
  float product[4] = {};
#pragma unroll
  for (int step = 0; step < D / kCount; step += 2) {
    const int channel = (step + half) * kCount;
    float grad[kCount];
    for (int c = 0; c < kCount; c += 4) {
      const Raw<16> raw = load16(numbers, columns + column_place(channel + c));
      memcpy(grad + c, &raw, sizeof raw);
    }
    for (int i = 0; i < 4; ++i) {
      const T* from = rows + static_cast<int64_t>(corners.pixel[i]) * channels + channel;
      const auto vector = unpack<T, kCount>(load<T, kCount>(from));
      for (int c = 0; c < kCount; ++c) product[i] = fmaf(grad[c], static_cast<float>(vector.values[c]), product[i]);
    }
  }
  Slope slope = {};
  for (int i = 0; i < 4; ++i) {
    slope.y = fmaf(corners.slope_y[i], product[i], slope.y);
    slope.x = fmaf(corners.slope_x[i], product[i], slope.x);
  }
  return slope;
}

// Writes what the block's sums hold.
template <typename T, int D, int P, class Numbers>
IACT_DEVICE void write_offset_gradient(const Deform& deform, const Numbers& numbers, int set, int first, int first_tap,
                                       int taps, float* grad_offset) {
  using Shape = OffsetTile<T, D, P>;
  for (int i = threadIdx.x; i < 2 * taps * Shape::kTokens; i += Shape::kThreads) {
    const int component = i / Shape::kTokens, column = i % Shape::kTokens;
    if (first + column >= deform.tokens()) continue;
    const Token token = token_at(deform, first + column);
    const int64_t channel = (static_cast<int64_t>(token.image) * deform.sets + set) * Shape::kComponents +
                            2 * first_tap + component;
    const int place = Shape::kSums + component * Shape::kSumStride + column;
    grad_offset[channel * deform.pixels() + token.pixel] = numbers[place];
  }
}

// grad_offset [B, S*18, H, W], contiguous. A block is kTokens tokens, a set, and `taps` of the nine.
//
// For each head and tap the tensor cores turn gradients of q, k, v into those of the columns, and two lanes to a token
// multiply these by the four pixels around the sample, which itself is not made. Each warp works on 16 tokens of its
// own; only the weights, which come a step ahead, are shared by the block.
template <typename T, int D, int P>
__global__ void __launch_bounds__(OffsetTile<T, D, P>::kThreads, OffsetTile<T, D, P>::kBlocks)
    deform_qkv_offset_kernel(Deform deform, ProjectedGradients<T> grads, const T* __restrict__ x,
                             const void* __restrict__ offset, const T* __restrict__ weight, int taps,
                             float* __restrict__ grad_offset) {
  using Shape = OffsetTile<T, D, P>;
  IACT_DYNAMIC_SHARED(T, tile);
  IACT_DYNAMIC_SHARED(float, numbers);
  IACT_DYNAMIC_SHARED(Raw<8>, pairs);
  const int set = blockIdx.y, first_tap = blockIdx.z * taps, first = blockIdx.x * Shape::kTokens;
  const int lane = lane_index(), half = lane % 2, warp_row = threadIdx.x / 32 * 16, row = warp_row + lane / 2;
  const int own_grads = Shape::kGrads + warp_row * Shape::kGradStride, channels = deform.heads * D;
  const Token token = token_or_last(deform, first + row);
  const T* image = x + static_cast<int64_t>(token.image) * deform.pixels() * channels;
  const auto weights_of = [](int step) { return Shape::kWeights + step % 2 * D * Shape::kWeightStride; };
  const auto start_weights = [&](int step) {
    const int p = step % P, tap = first_tap + step / P % taps, head = step / (P * taps);
    if (head < deform.heads) copy_weights<T, D, P>(deform, weight, set, p, head, tap, tile, weights_of(step));
  };
  start_weights(0);
  for (int head = 0, step = 0; head < deform.heads; ++head) {
    copy_gradients<T, D, P, 16, 32>(deform, grads, set, head, first + warp_row, lane, tile, own_grads,
                                    Shape::kGradStride);
    for (int tap = 0; tap < taps; ++tap) {
      float sum[D / 8][4] = {};
      for (int p = 0; p < P; ++p, ++step) {
        wait_copies<0>();
        __syncthreads();
        start_weights(step + 1);
        multiply<T, D, D, false, true>(sum, tile, own_grads + p * D, Shape::kGradStride, tile, weights_of(step),
                                       Shape::kWeightStride);
      }
      store_columns<T, D, P>(sum, pairs, warp_row);
      __syncwarp();
      const auto corners = corners_at<T>(deform, offset, set, first_tap + tap, token);
      const Slope slope = slope_of<T, D>(numbers, Shape::kColumns + row * Shape::kColumnStride, image + head * D,
                                         channels, corners, half);
      const float dy = slope.y + __shfl_xor_sync(~0u, slope.y, 1), dx = slope.x + __shfl_xor_sync(~0u, slope.x, 1);
      const int place = Shape::kSums + (2 * tap + half) * Shape::kSumStride + row;  // one lane adds dy, the other dx
      const float before = head == 0 ? 0.0f : static_cast<float>(numbers[place]);
      numbers[place] = before + (half == 0 ? dy : dx);
    }
  }
  __syncthreads();
  write_offset_gradient<T, D, P>(deform, numbers, set, first, first_tap, taps, grad_offset);
}

constexpr int kManyBlocks = 1024;  // some two rounds of the largest GPUs

// Taps of a block: all nine, or where that makes too few blocks three or one.
template <typename T, int D, int P>
int offset_taps(const Deform& deform) {
  const int64_t blocks = static_cast<int64_t>(tiles_of(deform, OffsetTile<T, D, P>::kTokens)) * deform.sets;
  return blocks >= kManyBlocks ? 9 : 3 * blocks >= kManyBlocks ? 3 : 1;
}

template <typename T, int D, int P>
GradientLaunch offset_launch(const Deform& deform) {
  using Shape = OffsetTile<T, D, P>;
  const auto groups = static_cast<unsigned>(kTaps / offset_taps<T, D, P>(deform));
  return {tiles_of(deform, Shape::kTokens), static_cast<unsigned>(deform.sets), groups, Shape::kThreads, Shape::kBytes};
}

// A block of the weight's gradient: a head, a set, three D x D matrices of W (three taps where P is 1, the three
// projections of a tap where P is 3), and some of the tokens, a tile at a time. Two warps to a matrix.
template <typename T, int D, int P>
struct WeightTile {
  static constexpr int kThreads = 192, kBlocks = sizeof(T) * D < 100 ? 3 : sizeof(T) * D < 200 ? 2 : 1;
  static constexpr int kTapsOfBlock = 3 / P, kGroups = static_cast<int>(kTaps) / kTapsOfBlock;
  static constexpr int kTokens = sizeof(T) == 2 ? 64 : 32;
  static constexpr int kSamples = kTokens * kTapsOfBlock;
  static constexpr int kGradStride = P * D + 8, kSampleStride = kTapsOfBlock * D + 8;
  // A stage is the gradients T [kTokens, kGradStride] and the samples T [kTokens, kSampleStride]; there are two.
  static constexpr int kTaken = kTokens * kGradStride, kStage = kTaken + kTokens * kSampleStride;
  static constexpr int kPlans = 2 * kStage * sizeof(T) / sizeof(Sample);  // Sample [2, kSamples]
  static constexpr int kBytes = (kPlans + 2 * kSamples) * static_cast<int>(sizeof(Sample));
  static_assert(kSamples <= kThreads && P * D <= kThreads, "a thread each");
};

// Partial sums go to a workspace: of each slice of the tokens all weights, laid out as in `weight`, then all biases.
IACT_HOST_DEVICE int64_t weight_elements(const Deform& deform, int size) {
  return int64_t{3} * deform.heads * size * kTaps * size;
}
IACT_HOST_DEVICE int64_t partial_elements(const Deform& deform, int size) {
  return weight_elements(deform, size) + int64_t{3} * deform.heads * size;
}

// What the block samples in the tile from token `first` on, to samples[index].
template <typename T, int D, int P, class Samples>
IACT_DEVICE void plan_samples(const Deform& deform, const void* offset, int set, int first_tap, int first,
                              const Samples& samples, int index) {
  using Shape = WeightTile<T, D, P>;
  const int i = threadIdx.x;
  if (i >= Shape::kSamples) return;
  const Token token = token_or_last(deform, first + i / Shape::kTapsOfBlock);
  samples[index + i] = sample_at<T>(deform, offset, set, first_tap + i % Shape::kTapsOfBlock, token);
}

// Takes samples as planned, rounded to T, to tile[index]. `x` is the head's first channel.
template <typename T, int D, int P, class Samples, class Tile>
IACT_DEVICE void take_samples(const T* x, int channels, const Samples& samples, int plan, const Tile& tile, int index) {
  using Shape = WeightTile<T, D, P>;
  constexpr int kPieces = D / kVector<T>;
#pragma unroll 2
  for (int i = threadIdx.x; i < Shape::kSamples * kPieces; i += Shape::kThreads) {
    const int place = i / kPieces, piece = i % kPieces * kVector<T>;
    const Sample sample = samples[plan + place];
    float sum[kVector<T>];
    blend(x + piece, channels, sample, sum);
    const int token = place / Shape::kTapsOfBlock, tap = place % Shape::kTapsOfBlock;
    store16(tile, index + token * Shape::kSampleStride + tap * D + piece, rounded<T>(sum));
  }
}

// sum [D x D/2] += A^T B, by a warp, with A [kTokens x D] and B [kTokens x D/2] at those indices of the tile.
template <typename T, int D, int kTokens, class Tile>
IACT_DEVICE void multiply_tokens(float (&sum)[D / 16][D / 16][4], const Tile& tile, int a, int a_stride, int b,
                                 int b_stride, int line = __builtin_LINE()) {
#pragma unroll 1
  for (int k = 0; k < kTokens; k += 16) {
    Operand<T> operands[D / 16];
    for (int i = 0; i < D / 16; ++i)
      operands[i] = load_operand<T, true>(tile, a + k * a_stride + 16 * i, a_stride, line);
    for (int j = 0; j < D / 16; ++j) {
      Columns<T> columns[1];
      load_columns<T, true>(columns, tile, b + k * b_stride + 8 * j, b_stride, line);
      for (int i = 0; i < D / 16; ++i) add_product(&sum[i][j], operands[i], columns, line);
    }
  }
}

// What a block makes, from tap `first_tap` on, and of that the warp: one matrix, D/2 columns from `column` on.
template <typename T, int D, int P>
struct WeightPlace {
  int set, head, first_tap, p, tap, column;

  explicit IACT_DEVICE WeightPlace(const Deform& deform) {
    using Shape = WeightTile<T, D, P>;
    const int group = blockIdx.x / Shape::kGroups, matrix = threadIdx.x / 64;
    set = group / deform.heads, head = group % deform.heads;
    first_tap = blockIdx.x % Shape::kGroups * Shape::kTapsOfBlock;
    p = matrix % P, tap = first_tap + matrix / P, column = threadIdx.x / 32 % 2 * (D / 2);
  }
  IACT_DEVICE bool has_bias() const { return first_tap == 0 && threadIdx.x < P * D; }
};

template <typename T, int D, int P>
IACT_DEVICE void write_partials(const Deform& deform, const WeightPlace<T, D, P>& place,
                                const float (&sum)[D / 16][D / 16][4], float bias, float* partials) {
  for (int r = 0; r < D / 16; ++r)
    for (int i = 0; i < 4; i += 2) {
      const int row = weight_row<D>(deform, place.set, place.p, place.head, 16 * r + row_of(i));
      float* to = partials + weight_index<D>(row, place.tap) + place.column;
      for (int j = 0; j < D / 16; ++j)
        store(Vector<float, 2>{sum[r][j][i], sum[r][j][i + 1]}, to + column_of(j, i));
    }
  if (!place.has_bias()) return;
  const int row = weight_row<D>(deform, place.set, threadIdx.x / D, place.head, threadIdx.x % D);
  partials[weight_elements(deform, D) + row] = bias;
}

// Writes one slice's partial sums of the gradients of weight and bias; slices are tiles in a row. In step i tile i is
// multiplied, tile i + 1 sampled, and tile i + 2 planned.
template <typename T, int D, int P>
__global__ void __launch_bounds__(WeightTile<T, D, P>::kThreads, WeightTile<T, D, P>::kBlocks)
    deform_qkv_weight_kernel(Deform deform, ProjectedGradients<T> grads, const T* __restrict__ x,
                             const void* __restrict__ offset, float* __restrict__ partials) {
  using Shape = WeightTile<T, D, P>;
  IACT_DYNAMIC_SHARED(T, tile);
  IACT_DYNAMIC_SHARED(Sample, samples);
  const WeightPlace<T, D, P> place(deform);
  const int64_t tiles = tiles_of(deform, Shape::kTokens);
  const int begin = tiles * blockIdx.y / gridDim.y, count = tiles * (blockIdx.y + 1) / gridDim.y - begin;
  float sum[D / 16][D / 16][4] = {}, bias = 0;
  for (int i = -2; i < count; ++i) {
    const int odd = i & 1, stage = odd * Shape::kStage, next = Shape::kStage - stage;
    if (i + 2 < count)
      plan_samples<T, D, P>(deform, offset, place.set, place.first_tap, (begin + i + 2) * Shape::kTokens, samples,
                            Shape::kPlans + odd * Shape::kSamples);
    if (i + 1 >= 0 && i + 1 < count) {
      const int first = (begin + i + 1) * Shape::kTokens;
      copy_gradients<T, D, P, Shape::kTokens, Shape::kThreads>(deform, grads, place.set, place.head, first, threadIdx.x,
                                                               tile, next, Shape::kGradStride);
      take_samples<T, D, P>(x + place.head * D, deform.heads * D, samples, Shape::kPlans + (1 - odd) * Shape::kSamples,
                            tile, next + Shape::kTaken);
    }
    if (i >= 0) {
      const int a = stage + place.p * D, b = stage + Shape::kTaken + (place.tap - place.first_tap) * D + place.column;
      multiply_tokens<T, D, Shape::kTokens>(sum, tile, a, Shape::kGradStride, b, Shape::kSampleStride);
      if (place.has_bias())
#pragma unroll 8
        for (int token = 0; token < Shape::kTokens; ++token)
          bias += static_cast<float>(tile[stage + token * Shape::kGradStride + threadIdx.x]);
    }
    wait_copies<0>();
    __syncthreads();
  }
  write_partials(deform, place, sum, bias, partials + blockIdx.y * partial_elements(deform, D));
}

constexpr int kWeightBlocks = 396;  // three to a multiprocessor of the largest GPUs, which is what their memory holds

// Slices of the tokens, each of which takes partial_elements() floats of the workspace.
template <typename T, int D, int P>
int weight_slices(const Deform& deform) {
  const int blocks = deform.sets * deform.heads * WeightTile<T, D, P>::kGroups;  // of a slice
  return std::clamp(kWeightBlocks / blocks, 1, static_cast<int>(tiles_of(deform, WeightTile<T, D, P>::kTokens)));
}

template <typename T, int D, int P>
GradientLaunch weight_launch(const Deform& deform) {
  using Shape = WeightTile<T, D, P>;
  const auto blocks = static_cast<unsigned>(deform.sets * deform.heads * Shape::kGroups);
  return {blocks, static_cast<unsigned>(weight_slices<T, D, P>(deform)), 1, Shape::kThreads, Shape::kBytes};
}

constexpr int kSumThreads = 256;

// Adds the slices up: grad_weight as the weight lies in memory, and grad_bias [3*heads*D] if it is not null.
template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    deform_qkv_weight_sum_kernel(const float* __restrict__ partials, int slices, int64_t weights, int64_t biases,
                                 T* __restrict__ grad_weight, T* __restrict__ grad_bias) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x) * 4;
  if (first >= weights + (grad_bias ? biases : 0)) return;
  Vector<float, 4> sum = {};
#pragma unroll 8
  for (int slice = 0; slice < slices; ++slice) {
    const auto part = unpack<float, 4>(load<float, 4>(partials + slice * (weights + biases) + first));
    for (int i = 0; i < 4; ++i) sum.values[i] += part.values[i];
  }
  Vector<T, 4> result;
  for (int i = 0; i < 4; ++i) result.values[i] = static_cast<T>(sum.values[i]);
  store(result, first < weights ? grad_weight + first : grad_bias + (first - weights));
}

inline GradientLaunch weight_sum_launch(const Deform& deform, int size) {
  const int64_t threads = partial_elements(deform, size) / 4;
  return {static_cast<unsigned>((threads + kSumThreads - 1) / kSumThreads), 1, 1, kSumThreads, 0};
}

}  // namespace iact
