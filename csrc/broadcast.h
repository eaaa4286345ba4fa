// Where an element of a broadcast tensor lies.
#pragma once

#include <cstdint>

#include "device.h"

namespace iact {

// Sizes and strides, outermost first; neighbours that walk memory evenly are one dimension.
struct Broadcast {
  static constexpr int kDims = 6;
  int dims = 1;
  int64_t sizes[kDims] = {1}, strides[kDims] = {0};

  // Adds an innermost dimension; false where there is no room for it.
  bool append(int64_t size, int64_t stride) {
    if (size == 1) return true;
    int64_t& last_size = sizes[dims - 1];
    int64_t& last_stride = strides[dims - 1];
    if (last_size == 1 || last_stride == stride * size) {
      last_size *= size, last_stride = stride;
      return true;
    }
    if (dims == kDims) return false;
    sizes[dims] = size, strides[dims] = stride;
    ++dims;
    return true;
  }

  // The offset of element `index`; an Index of 32 bits divides faster, where all elements can be counted with it.
  template <typename Index>
  IACT_HOST_DEVICE int64_t offset(Index index) const {
    int64_t result = 0;
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int d = kDims - 1; d > 0; --d) {  // over all of them, so that the arrays can live in registers
      if (d >= dims) continue;
      const Index size = static_cast<Index>(sizes[d]);
      result += index % size * strides[d];
      index /= size;
    }
    return result + index * strides[0];
  }
};

}  // namespace iact
