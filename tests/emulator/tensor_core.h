// Instructions for matrix products: 16-byte accesses of shared memory, asynchronous copies, ldmatrix and mma.
//
// ldmatrix counts as a read by the lane that names the row and by each that gets a part of it: neither may be without
// order to a write. An asynchronous copy counts as a write where it is issued and again where it is waited for. In
// between there is 0xFF (NaN), so a kernel that reads too early, or never waits, computes nonsense.
//
// mma adds in steps of 4 (tf32) or 8 products, as an A100 does: exact products, cut off below 2^-24 of the step's
// largest term; their sum is rounded towards zero. Newer cards take longer steps with more bits, in an order of their
// own: sums on a card differ in the last bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "machine.h"
#include "shared.h"

namespace emulator {

// The index of 16 bytes of shared memory, once it is known that they can be accessed as one.
template <typename T>
int aligned16(int index, const char* access) {
  if (index * int(sizeof(T)) % 16)
    throw Error(machine.where() + access + " of shared memory at element " + std::to_string(index) +
                ", which is not at a multiple of 16 bytes");
  return index;
}

template <typename Raw, typename T>
Raw load16(const Shared<T>& array, int index, const char* access = "a 16-byte load") {
  static_assert(sizeof(Raw) == 16);
  T values[16 / sizeof(T)];
  aligned16<T>(index, access);
  for (T& value : values) value = array[index++];
  Raw raw;
  std::memcpy(&raw, values, 16);
  return raw;
}

template <typename Raw, typename T>
void store16(const Shared<T>& array, int index, const Raw& raw, const char* access = "a 16-byte store") {
  static_assert(sizeof(Raw) == 16);
  T values[16 / sizeof(T)];
  std::memcpy(values, &raw, 16);
  aligned16<T>(index, access);
  for (const T& value : values) array[index++] = value;
}

// The asynchronous copies that a thread has issued and not waited for: those of each committed group, oldest first,
// and last those that are in no group yet.
struct Copies {
  uint64_t block = 0;
  std::deque<std::vector<std::function<void()>>> groups;
};

inline Copies& copies() {
  static std::vector<Copies> all(kMostThreads);
  Copies& mine = all[machine.current()];
  if (mine.block != machine.block()) {
    mine.block = machine.block();
    mine.groups.assign(1, {});
  }
  return mine;
}

struct Bytes16 {
  unsigned char bytes[16];
};

template <typename T>
void copy_async16(const Shared<T>& array, int index, const T* from) {
  static const char* const access = "an asynchronous copy";
  if (reinterpret_cast<uintptr_t>(from) % 16)
    throw Error(machine.where() + access + " from an address that is not a multiple of 16 bytes");
  Bytes16 arriving, poison;
  std::memcpy(&arriving, from, 16);
  std::memset(&poison, 0xFF, 16);
  store16(array, index, poison, access);
  copies().groups.back().push_back([=] { store16(array, index, arriving, access); });
}

inline void commit_copies() { copies().groups.emplace_back(); }

// Waits for all groups but the newest `pending`.
inline void wait_copies(size_t pending) {
  auto& groups = copies().groups;
  for (; groups.size() > pending + 1; groups.pop_front())
    for (const auto& arrive : groups.front()) arrive();
}

// ldmatrix of 8x8 matrices of 16-bit numbers, or 8x4 of 32-bit ones: lane 8 m + r names row r of matrix m. Of each
// matrix, lane l gets word l % 4 of row l / 4, or, transposed, rows 2 (l % 4) and the next of column l / 4.
template <bool kTransposed, typename T, int kMatrices>
void load_matrices(uint32_t (&words)[kMatrices], const Shared<T>& array, int index, int line) {
  constexpr int kNumbers = 4 / sizeof(T);
  const int me = lane_of(machine.current());
  if (me < 8 * kMatrices) load16<Bytes16>(array, index, "ldmatrix");
  machine.collective({"ldmatrix", ~0u, line, false}, &index, [&] {
    for (int matrix = 0; matrix < kMatrices; ++matrix) {
      T numbers[kNumbers];
      for (int i = 0; i < kNumbers; ++i) {
        const int across = me % 4 * kNumbers + i, row = kTransposed ? across : me / 4;
        numbers[i] = array[machine.offered<int>(8 * matrix + row) + (kTransposed ? me / 4 : across)];
      }
      std::memcpy(&words[matrix], numbers, 4);
    }
  });
}

// The numbers in a word of an operand.
template <typename T>
void numbers_of(uint32_t word, double* numbers) {
  if (sizeof(T) == 4) word &= ~0x1FFFu;  // the hardware does not look at the rest
  T values[4 / sizeof(T)];
  std::memcpy(values, &word, 4);
  for (const T& value : values) *numbers++ = float(value);
}

inline float rounded_towards_zero(double x) {
  const float nearest = float(x);
  return std::fabs(double(nearest)) > std::fabs(x) ? std::nextafter(nearest, 0.0f) : nearest;
}

// sum + the products of `count` pairs, added as the hardware adds them in one step.
inline float add_products(float sum, const double* a, const double* b, int count) {
  double plain = sum, largest = std::fabs(sum);
  for (int i = 0; i < count; ++i) {
    plain += a[i] * b[i];
    largest = std::max(largest, std::fabs(a[i] * b[i]));
  }
  if (!std::isfinite(plain) || largest == 0) return float(plain);
  const double scale = std::ldexp(1.0, 24 - std::ilogb(largest));
  int64_t total = int64_t(sum * scale);
  for (int i = 0; i < count; ++i) total += int64_t(a[i] * b[i] * scale);
  return rounded_towards_zero(double(total) / scale);
}

// mma.m16n8k16 of 16-bit T, mma.m16n8k8 of tf32 in words of 32 bits.
template <typename T>
void multiply_add(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
  constexpr int kNumbers = 4 / sizeof(T), kDepth = 8 * kNumbers, kStep = kDepth / 2;
  struct Operands {
    uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b, b, sizeof b);
  const int me = lane_of(machine.current());
  machine.collective({"mma", ~0u, line, false}, &mine, [&] {
    double rows[2][kDepth], columns[2][kDepth];  // of A and B: those that the lane's sums want
    for (int half = 0; half < 2; ++half)
      for (int k = 0; k < kDepth; k += kNumbers) {
        const int word = k / kStep, quarter = k / kNumbers % 4;
        numbers_of<T>(machine.offered<Operands>(me / 4 * 4 + quarter).a[half + 2 * word], &rows[half][k]);
        numbers_of<T>(machine.offered<Operands>((me % 4 * 2 + half) * 4 + quarter).b[word], &columns[half][k]);
      }
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < kDepth; k += kStep) sum[i] = add_products(sum[i], &rows[i / 2][k], &columns[i % 2][k], kStep);
  });
}

}  // namespace emulator
