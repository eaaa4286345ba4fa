// Matrix products by the tensor cores, out of shared memory, one warp at a time, and the 16-byte moves that fill it.
//
// Fragments are those of the PTX ISA: of mma.m16n8k16 for 16-bit floats, of mma.m16n8k8 with .tf32 for float, A `.row`
// and B `.col`. Of an accumulator tile lane l holds rows l / 4 (c0, c1) and l / 4 + 8 (c2, c3), columns 2 (l % 4) and
// the next. Operands come by ldmatrix, with .trans where memory holds them the other way; floats, for which there is
// no .trans, then come one by one.
//
// No access has bank conflicts where the stride is 8 (mod 64) for 16-bit T, and for float an odd multiple of 4, or,
// with kATransposed or kBRows, 8 or 24 (mod 32). The warp is 32 threads in a row along x, all of which have to come.
// Nothing here orders memory: barriers between writing operands and reading them are the caller's.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "device.h"
#include "vector.h"

namespace iact {

#if defined(__CUDACC__)

// 16 bytes of shared memory from an element on, which starts on a multiple of 16 bytes; likewise below.
template <typename T>
IACT_DEVICE Raw<16> load16(const T* array, int index) {
  return *reinterpret_cast<const Raw<16>*>(array + index);
}

template <typename T>
IACT_DEVICE void store16(T* array, int index, const Raw<16>& raw) {
  *reinterpret_cast<Raw<16>*>(array + index) = raw;
}

template <typename T>
IACT_DEVICE uint32_t shared_address(const T* array, int index) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(array + index));
}

// Starts a copy of 16 bytes of global memory. Nobody may read or write them before the end of the copy: this thread
// after wait_copies, others after a barrier that follows it.
template <typename T>
IACT_DEVICE void copy_async16(T* array, int index, const T* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(array, index)), "l"(from) : "memory");
}

// Makes a group of the copies that this thread has started since the last group.
IACT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's groups, but for the newest kPending of them.
template <int kPending>
IACT_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ldmatrix: lane 8 m + r names the place of row r of matrix m.
template <typename T, bool kTransposed>
IACT_DEVICE void load_matrices(uint32_t (&words)[4], const T* array, int index, int) {
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(array, index)));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(array, index)));
}

template <typename T, bool kTransposed>
IACT_DEVICE void load_matrices(uint32_t (&words)[2], const T* array, int index, int) {
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(shared_address(array, index)));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(shared_address(array, index)));
}

#define IACT_MMA(kind)                                                                                      \
  asm volatile("mma.sync.aligned." kind " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

template <typename T>
IACT_DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int) {
  if constexpr (std::is_same_v<T, c10::BFloat16>)
    IACT_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  else if constexpr (std::is_same_v<T, c10::Half>)
    IACT_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  else
    IACT_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}

#undef IACT_MMA

// Two numbers in a word, `low` in its lower half.
template <typename T>
IACT_DEVICE uint32_t pack(float low, float high) {
  uint32_t word;
  if constexpr (std::is_same_v<T, c10::BFloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

#elif defined(IACT_EMULATOR)

template <typename T>
IACT_DEVICE Raw<16> load16(const ::emulator::Shared<T>& array, int index) {
  return ::emulator::load16<Raw<16>>(array, index);
}

template <typename T>
IACT_DEVICE void store16(const ::emulator::Shared<T>& array, int index, const Raw<16>& raw) {
  ::emulator::store16(array, index, raw);
}

template <typename T>
IACT_DEVICE void copy_async16(const ::emulator::Shared<T>& array, int index, const T* from) {
  ::emulator::copy_async16(array, index, from);
}

IACT_DEVICE void commit_copies() { ::emulator::commit_copies(); }

template <int kPending>
IACT_DEVICE void wait_copies() {
  ::emulator::wait_copies(kPending);
}

template <typename T, bool kTransposed, int kMatrices>
IACT_DEVICE void load_matrices(uint32_t (&words)[kMatrices], const ::emulator::Shared<T>& array, int index, int line) {
  ::emulator::load_matrices<kTransposed>(words, array, index, line);
}

template <typename T>
IACT_DEVICE void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
  ::emulator::multiply_add<T>(sum, a, b, line);
}

template <typename T>
IACT_DEVICE uint32_t pack(float low, float high) {
  const T pair[2] = {T(low), T(high)};
  uint32_t word;
  memcpy(&word, pair, sizeof word);
  return word;
}

#endif

IACT_DEVICE int lane_index() { return threadIdx.x % 32; }

// Where this lane's sum[j][i] lies in the product.
IACT_DEVICE int row_of(int i) { return lane_index() / 4 + i / 2 * 8; }
IACT_DEVICE int column_of(int j, int i) { return 8 * j + lane_index() % 4 * 2 + i % 2; }

// Floats as sums of two tf32, whose last 13 bits are zero.
template <int kCount>
struct Split {
  uint32_t high[kCount], low[kCount];
};

// `high` is the nearest tf32, and the difference, which is exact, loses at most its last bit. cvt.rna.tf32 would give
// no better `low`, and compiles to twice the instructions. A NaN stays one, at least in `low`.
template <int kCount>
IACT_DEVICE Split<kCount> split(const uint32_t* words) {
  constexpr uint32_t kKept = ~0x1FFFu, kHalf = 0x1000u;
  Split<kCount> result;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    float x, high;
    result.high[i] = (words[i] + kHalf) & kKept;
    memcpy(&x, &words[i], sizeof x);
    memcpy(&high, &result.high[i], sizeof high);
    const float low = x - high;
    memcpy(&result.low[i], &low, sizeof low);
    result.low[i] &= kKept;
  }
  return result;
}

// This lane's part of A [16 x 16].
template <typename T>
struct Operand {
  uint32_t words[4];
};
template <>
struct Operand<float> {
  Split<4> halves[2];  // k 0-7, 8-15
};

// This lane's part of B [16 x 8].
template <typename T>
struct Columns {
  uint32_t words[2];
};
template <>
struct Columns<float> {
  Split<2> halves[2];
};

// sums [16 x 8 kTiles] += A [16 x 16] B [16 x 8 kTiles].
template <typename T, int kTiles>
IACT_DEVICE void add_product(float (*sums)[4], const Operand<T>& a, const Columns<T> (&b)[kTiles], int line) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) multiply_add<T>(sums[tile], a.words, b[tile].words, line);
}

// Tensor cores round towards zero: over a long depth that would add up. They add 16 products here, the small ones
// first, and the sum is rounded as floats are.
template <int kTiles>
IACT_DEVICE void add_product(float (*sums)[4], const Operand<float>& a, const Columns<float> (&b)[kTiles], int line) {
  float parts[kTiles][4] = {};
  const auto add = [&](auto left, auto right) {
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        multiply_add<float>(parts[tile], a.halves[k].*left, b[tile].halves[k].*right, line);
  };
  add(&Split<4>::low, &Split<2>::high);
  add(&Split<4>::high, &Split<2>::low);
  add(&Split<4>::high, &Split<2>::high);
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i) sums[i / 4][i % 4] += parts[i / 4][i % 4];
}

template <typename T, bool kTransposed, class A>
IACT_DEVICE Operand<T> load_operand(const A& a, int index, int stride, int line) {
  const int lane = lane_index();
  Operand<T> operand;
  if constexpr (sizeof(T) == 2) {
    const int place = kTransposed ? (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8
                                  : lane % 16 * stride + lane / 16 * 8;
    load_matrices<T, kTransposed>(operand.words, a, index + place, line);
  } else {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      uint32_t words[4];
      if constexpr (kTransposed) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const T value = a[index + (8 * k + i / 2 * 4 + lane % 4) * stride + i % 2 * 8 + lane / 4];
          memcpy(&words[i], &value, sizeof value);
        }
      } else {
        load_matrices<T, false>(words, a, index + lane % 16 * stride + lane / 16 * 4 + 8 * k, line);
      }
      operand.halves[k] = split<4>(words);
    }
  }
  return operand;
}

// One tile of 8 columns, or two side by side.
template <typename T, bool kRows, int kTiles, class B>
IACT_DEVICE void load_columns(Columns<T> (&columns)[kTiles], const B& b, int index, int stride, int line) {
  const int lane = lane_index();
  if constexpr (sizeof(T) == 2) {
    const int place = kRows ? lane % 16 * stride + lane / 16 * 8
                            : (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
    uint32_t words[2 * kTiles];
    load_matrices<T, kRows>(words, b, index + place, line);
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) columns[i / 2].words[i % 2] = words[i];
  } else {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      uint32_t words[4];
      if constexpr (kRows) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const T value = b[index + (4 * i + lane % 4) * stride + 8 * tile + lane / 4];
          memcpy(&words[i], &value, sizeof value);
        }
      } else {
        load_matrices<T, false>(words, b, index + (8 * tile + lane % 8) * stride + lane / 8 * 4, line);
      }
      columns[tile].halves[0] = split<2>(words);
      columns[tile].halves[1] = split<2>(words + 2);
    }
  }
}

// sum [16 x kColumns] += A [16 x 16] B [16 x kColumns], A being in registers; B(k, column) as for multiply().
template <typename T, int kColumns, bool kBRows = false, class B>
IACT_DEVICE void multiply_registers(float (&sum)[kColumns / 8][4], const Operand<T>& a, const B& b, int b_index,
                                    int b_stride, int line = __builtin_LINE()) {
  static_assert(kColumns % 8 == 0, "the tensor cores make tiles of 8 columns");
#pragma unroll
  for (int j = 0; j + 1 < kColumns / 8; j += 2) {
    Columns<T> columns[2];
    load_columns<T, kBRows>(columns, b, b_index + 8 * j * (kBRows ? 1 : b_stride), b_stride, line);
    add_product(sum + j, a, columns, line);
  }
  if constexpr (kColumns % 16) {
    Columns<T> columns[1];
    constexpr int j = kColumns / 8 - 1;
    load_columns<T, kBRows>(columns, b, b_index + 8 * j * (kBRows ? 1 : b_stride), b_stride, line);
    add_product(sum + j, a, columns, line);
  }
}

// sum [16 x kColumns] += A [16 x kDepth] B [kDepth x kColumns], by one warp: of T = c10::BFloat16 or c10::Half with
// exact products added in float, of T = float to the precision of float (but infinities give NaN).
//   A(row, k) = a[a_index + row * a_stride + k], or with kATransposed a[a_index + k * a_stride + row]
//   B(k, column) = b[b_index + column * b_stride + k], or with kBRows b[b_index + k * b_stride + column]
// `a` and `b` lie in shared memory. Indices and strides are multiples of 16 bytes. `line`, here and above, is where the
// call stands: the emulator tells calls apart by it.
template <typename T, int kColumns, int kDepth, bool kATransposed = false, bool kBRows = false, class A, class B>
IACT_DEVICE void multiply(float (&sum)[kColumns / 8][4], const A& a, int a_index, int a_stride, const B& b, int b_index,
                          int b_stride, int line = __builtin_LINE()) {
  static_assert(kDepth % 16 == 0, "the tensor cores take 16 products at a time");
  constexpr int kUnrolled = sizeof(T) == 2 ? 4 : 1;
#pragma unroll kUnrolled
  for (int k = 0; k < kDepth; k += 16) {
    const auto operand = load_operand<T, kATransposed>(a, a_index + k * (kATransposed ? a_stride : 1), a_stride, line);
    multiply_registers<T, kColumns, kBRows>(sum, operand, b, b_index + k * (kBRows ? b_stride : 1), b_stride, line);
  }
}

// The words of A [16 x 8] out of an accumulator tile: of a row, lane t (mod 4) holds columns 2 t and 2 t + 1, and is to
// hold t and t + 4.
IACT_DEVICE void to_operand(uint32_t (&words)[4], const float (&tile)[4]) {
  const int lane = lane_index();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int source = lane / 4 * 4 + lane % 4 / 2 + i / 2 * 2;
    const float even = __shfl_sync(~0u, tile[i % 2 * 2], source), odd = __shfl_sync(~0u, tile[i % 2 * 2 + 1], source);
    const float value = lane % 2 ? odd : even;
    memcpy(&words[i], &value, sizeof value);
  }
}

// A [16 x 16] for multiply_registers() out of two accumulator tiles, rounded to T: left its columns 0-7, right 8-15.
template <typename T>
IACT_DEVICE Operand<T> operand_of(const float (&left)[4], const float (&right)[4]) {
  if constexpr (sizeof(T) == 2) {
    return {{pack<T>(left[0], left[1]), pack<T>(left[2], left[3]), pack<T>(right[0], right[1]),
             pack<T>(right[2], right[3])}};
  } else {
    uint32_t words[2][4];
    to_operand(words[0], left);
    to_operand(words[1], right);
    return {{split<4>(words[0]), split<4>(words[1])}};
  }
}

}  // namespace iact
