// Products of small matrices on the CPU, and transposition. A is float, or double for double tensors.
#pragma once

#include <cstdint>

namespace iact {

constexpr int64_t kPanel = 16;  // columns of a right-hand side that stand together

constexpr int64_t padded(int64_t columns) { return (columns + kPanel - 1) / kPanel * kPanel; }

// c[m, n] (+)= sum over k of a[m * a_row + k * a_depth] * b[n / 16 * b_panel + k * b_depth + n % 16], for all m < rows
// and n < padded(columns); rows of c lie c_row apart. c counts as zero unless `add`.
template <typename A>
struct Product {
  int64_t rows, depth, columns;
  const A* a;
  int64_t a_row, a_depth;
  const A* b;
  int64_t b_panel, b_depth;
  A* c;
  int64_t c_row;
  bool add;
};

void multiply(const Product<float>& product);
void multiply(const Product<double>& product);

// to[places[j] + i] <- from[i * row + j] for i < rows and j < columns.
void transpose(const float* from, int64_t row, int64_t rows, int64_t columns, float* to, const int64_t* places);
void transpose(const double* from, int64_t row, int64_t rows, int64_t columns, double* to, const int64_t* places);

}  // namespace iact
