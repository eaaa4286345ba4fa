// What the ops ask of their tensors: layouts, shapes, and where a broadcast element lies.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <optional>

#include "broadcast.h"

namespace iact {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
T* data(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// What Tensor::is_contiguous(ChannelsLast) says in full libtorch.
inline bool is_channels_last(const Tensor& tensor) {
  int64_t expected = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (tensor.size(d) != 1 && tensor.stride(d) != expected) return false;
    expected *= tensor.size(d);
  }
  return true;
}

// The layout of results per pixel: channels_last for a channels_last `pred`, contiguous for any other.
inline MemoryFormat format_of(const Tensor& pred) {
  const bool channels_last = pred.dim() == 4 && !pred.is_contiguous() && is_channels_last(pred);
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  const auto x = a.sizes(), y = b.sizes();
  return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin());
}

inline ScalarType wide(const Tensor& pred) {
  return pred.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty_like(const Tensor& pred, ScalarType dtype, MemoryFormat format) {
  return torch::stable::empty(pred.sizes(), dtype, std::nullopt, pred.device(), std::nullopt, format);
}

inline Tensor empty_scalar(const Tensor& pred, ScalarType dtype) {
  return torch::stable::empty({}, dtype, std::nullopt, pred.device(), std::nullopt, MemoryFormat::Contiguous);
}

// Calls work(T()) with the element type of the tensor.
template <typename Work>
auto with_dtype(const char* op, const Tensor& tensor, const Work& work) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return work(float());
    case ScalarType::Double:
      return work(double());
    case ScalarType::BFloat16:
      return work(c10::BFloat16());
    case ScalarType::Half:
      return work(c10::Half());
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, float64, bfloat16 or float16");
  }
}

// `tensor` broadcast to the shape of `pred`, its elements counted in the order in which `pred` lies in memory.
inline Broadcast broadcast(const char* op, const Tensor& tensor, const Tensor& pred, MemoryFormat format) {
  const int64_t dims = pred.dim(), missing = dims - tensor.dim();
  STD_TORCH_CHECK(missing >= 0, op, ": weight has more dimensions than pred");
  Broadcast result;
  for (int64_t i = 0; i < dims; ++i) {
    const int64_t d = format == MemoryFormat::ChannelsLast ? std::array<int64_t, 4>{0, 2, 3, 1}[i] : i;
    const bool repeated = d < missing || tensor.size(d - missing) == 1;
    STD_TORCH_CHECK(repeated || tensor.size(d - missing) == pred.size(d), op, ": weight does not broadcast");
    STD_TORCH_CHECK(result.append(pred.size(d), repeated ? 0 : tensor.stride(d - missing)), op,
                    ": weight has more dimensions than this op can broadcast");
  }
  return result;
}

// 1 / pixels for a mean. Float16 slopes are left unscaled: divided by millions of pixels they would be nothing.
inline double slope_factor(const Tensor& pred, bool reduce) {
  const bool scaled = reduce && pred.scalar_type() != ScalarType::Half;
  return scaled ? 1.0 / static_cast<double>(std::max<int64_t>(pred.numel(), 1)) : 1.0;
}

}  // namespace iact
