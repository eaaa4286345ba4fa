// The columns of a product are the vectorised direction.
#include "products_cpu.h"

#include "lanes.h"

namespace iact {
namespace {

// One block of kRows x kVectors vectors of results.
template <int kBytes, int kRows, int kVectors, typename A>
IACT_INLINE void multiply_block(const Product<A>& p, const A* a, const A* b, A* c) {
  using L = Lanes<A, kBytes>;
  typename L::Type sums[kRows][kVectors] = {};
  if (p.add)
    for (int m = 0; m < kRows; ++m)
      for (int i = 0; i < kVectors; ++i) sums[m][i] = L::at(c + m * p.c_row + i * L::kCount);
  for (int64_t k = 0; k < p.depth; ++k) {
    typename L::Type row[kVectors];
    for (int i = 0; i < kVectors; ++i) row[i] = L::at(b + k * p.b_depth + i * L::kCount);
    for (int m = 0; m < kRows; ++m)
      for (int i = 0; i < kVectors; ++i) sums[m][i] += a[m * p.a_row + k * p.a_depth] * row[i];
  }
  for (int m = 0; m < kRows; ++m)
    for (int i = 0; i < kVectors; ++i) L::put(sums[m][i], c + m * p.c_row + i * L::kCount);
}

template <int kBytes, int kRows, int kVectors, typename A>
IACT_INLINE void multiply_rows(int64_t count, const Product<A>& p, const A* a, const A* b, A* c) {
  if constexpr (kRows > 1)
    if (count < kRows) return multiply_rows<kBytes, kRows - 1, kVectors>(count, p, a, b, c);
  multiply_block<kBytes, kRows, kVectors>(p, a, b, c);
}

template <int kBytes, typename A>
IACT_INLINE void multiply_with(const Product<A>& p) {
  // as many sums as hide the latency of an addition and still fit the registers, 32 of 64 bytes and 16 of others
  constexpr int kVectors = Lanes<A, kBytes>::kCount == kPanel ? 1 : 2, kRows = kVectors == 1 ? 8 : 6;
  const int64_t blocks = (p.rows + kRows - 1) / kRows;
  for (int64_t n = 0; n < padded(p.columns); n += kVectors * Lanes<A, kBytes>::kCount) {
    const A* b = p.b + n / kPanel * p.b_panel + n % kPanel;
    for (int64_t block = 0; block < blocks; ++block) {  // of nearly one size: few rows keep few registers busy
      const int64_t m = block * p.rows / blocks, end = (block + 1) * p.rows / blocks;
      multiply_rows<kBytes, kRows, kVectors>(end - m, p, p.a + m * p.a_row, b, p.c + m * p.c_row + n);
    }
  }
}

template <typename V>
struct Pair {
  V low, high;
};

// The numbers of two vectors of 4 in turn.
template <typename V>
IACT_INLINE Pair<V> interleaved(V a, V b) {
#ifdef __clang__
  return {__builtin_shufflevector(a, b, 0, 4, 1, 5), __builtin_shufflevector(a, b, 2, 6, 3, 7)};
#else
  using Mask = decltype(a < b);
  return {__builtin_shuffle(a, b, Mask{0, 4, 1, 5}), __builtin_shuffle(a, b, Mask{2, 6, 3, 7})};
#endif
}

template <typename A>
IACT_INLINE void transpose_block(const A* from, int64_t row, A* to, const int64_t* places) {
  using L = Lanes<A, 4 * sizeof(A)>;
  const auto even = interleaved(L::at(from), L::at(from + 2 * row));
  const auto odd = interleaved(L::at(from + row), L::at(from + 3 * row));
  const auto left = interleaved(even.low, odd.low), right = interleaved(even.high, odd.high);
  L::put(left.low, to + places[0]), L::put(left.high, to + places[1]);
  L::put(right.low, to + places[2]), L::put(right.high, to + places[3]);
}

template <int, typename A>
IACT_INLINE void transpose_with(const A* from, int64_t row, int64_t rows, int64_t columns, A* to,
                                const int64_t* places) {
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t i = 0; i < whole_rows; i += 4)
    for (int64_t j = 0; j < whole_columns; j += 4) transpose_block(from + i * row + j, row, to + i, places + j);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) to[places[j] + i] = from[i * row + j];
}

}  // namespace

#define IACT_PRODUCTS(A)                                                                                              \
  IACT_VERSIONS(multiply, (const Product<A>& product), (product))                                                     \
  IACT_VERSIONS(transpose, (const A* from, int64_t row, int64_t rows, int64_t columns, A* to, const int64_t* places), \
                (from, row, rows, columns, to, places))

IACT_PRODUCTS(float)
IACT_PRODUCTS(double)

}  // namespace iact
