// Several numbers moved by one access of global memory.
#pragma once

#include <cstdint>
#include <cstring>

#include "device.h"

namespace iact {

// What one access moves: kBytes bytes, in registers of 32 bits where they fill one.
template <int kBytes>
struct alignas(kBytes < 16 ? kBytes : 16) Raw {
  uint32_t words[kBytes / 4];
};
template <>
struct Raw<2> {
  uint16_t word;
};

template <typename T, int kCount>
using RawOf = Raw<sizeof(T) * kCount>;

template <typename T, int kCount>
struct Vector {
  T values[kCount];
};

template <typename T, int kCount>
IACT_DEVICE RawOf<T, kCount> load(const T* from) {
  return *reinterpret_cast<const RawOf<T, kCount>*>(from);
}

template <typename T, int kCount>
IACT_DEVICE Vector<T, kCount> unpack(const RawOf<T, kCount>& raw) {
  Vector<T, kCount> vector;
  memcpy(&vector, &raw, sizeof raw);
  return vector;
}

template <typename T, int kCount>
IACT_DEVICE void store(const Vector<T, kCount>& vector, T* to) {
  RawOf<T, kCount> raw;
  memcpy(&raw, &vector, sizeof raw);
  *reinterpret_cast<RawOf<T, kCount>*>(to) = raw;
}

}  // namespace iact
