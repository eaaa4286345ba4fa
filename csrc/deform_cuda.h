// What both directions of the deformable projection on CUDA ask of their tensors, and how they launch their kernels.
#pragma once

#include <optional>
#include <type_traits>

#include "deform_geometry.h"
#include "stream.h"
#include "tensors.h"

namespace iact {

// The tensor in that layout and from a multiple of 16 bytes on: itself wherever it can be.
inline Tensor readable(const Tensor& tensor, MemoryFormat format) {
  const Tensor dense = torch::stable::contiguous(tensor, format);
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 ? torch::stable::clone(dense) : dense;
}

// Where a kernel writes a result in channels_last that has to be laid out as `like` is: into it wherever it can be.
struct ChannelsLast {
  Tensor result, memory;

  explicit ChannelsLast(const Tensor& like) : result(torch::stable::empty_like(like)), memory(result) {
    if (!is_channels_last(result)) memory = empty_like(like, like.scalar_type(), MemoryFormat::ChannelsLast);
  }
  Tensor finished() { return memory.data_ptr() == result.data_ptr() ? result : torch::stable::copy_(result, memory); }
};

// The arguments of the op, x and weight in channels_last. The tensors are checked as far as memory safety goes.
struct DeformProblem {
  Tensor x, offset, weight;
  std::optional<Tensor> bias;
  int size;  // channels per head
  Deform deform;

  DeformProblem(const Tensor& x, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,
                int64_t heads)
      : x(checked(x, offset, weight, bias, heads)),
        offset(offset),
        weight(readable(weight, MemoryFormat::ChannelsLast)) {
    if (bias) this->bias = torch::stable::contiguous(*bias);
    size = static_cast<int>(x.size(1) / heads);
    deform = {static_cast<int>(x.size(0)),
              static_cast<int>(x.size(2)),
              static_cast<int>(x.size(3)),
              static_cast<int>(heads),
              static_cast<int>(offset.size(1) / (2 * kTaps)),
              offset.scalar_type() == ScalarType::Float,
              offset.stride(0),
              offset.stride(1),
              offset.stride(2),
              offset.stride(3)};
  }

  template <typename T>
  const T* bias_data() const {
    return bias ? const_data<T>(*bias) : nullptr;
  }

  // Calls work(T(), D, P), the numbers as std::integral_constant.
  template <typename Work>
  void with_type(const Work& work) const {
    const auto with_size = [&](auto zero) {
      if (size == 16) return with_sets(zero, std::integral_constant<int, 16>(), work);
      if (size == 32) return with_sets(zero, std::integral_constant<int, 32>(), work);
      if (size == 48) return with_sets(zero, std::integral_constant<int, 48>(), work);
      STD_TORCH_CHECK(size == 64, "deform_qkv: the kernels take 16, 32, 48 or 64 channels per head, got ", size);
      with_sets(zero, std::integral_constant<int, 64>(), work);
    };
    if (x.scalar_type() == ScalarType::BFloat16) return with_size(c10::BFloat16());
    if (x.scalar_type() == ScalarType::Half) return with_size(c10::Half());
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "deform_qkv: the kernels take 16- and 32-bit floats");
    with_size(float());
  }

 private:
  template <typename T, typename Size, typename Work>
  void with_sets(T zero, Size size, const Work& work) const {
    if (deform.sets == 3) return work(zero, size, std::integral_constant<int, 1>());
    work(zero, size, std::integral_constant<int, 3>());
  }

  static Tensor checked(const Tensor& x, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,
                        int64_t heads) {
    STD_TORCH_CHECK(x.dim() == 4 && heads > 0 && x.size(1) % heads == 0,
                    "deform_qkv: x must be [B, C, H, W], with heads a divisor of C");
    const int64_t channels = x.size(1), tokens = x.size(0) * x.size(2) * x.size(3);
    STD_TORCH_CHECK(offset.dim() == 4 && (offset.size(1) == 2 * kTaps || offset.size(1) == 6 * kTaps) &&
                        offset.size(0) == x.size(0) && offset.size(2) == x.size(2) && offset.size(3) == x.size(3),
                    "deform_qkv: offset must be [B, 18 or 54, H, W] of the batch and size of x");
    STD_TORCH_CHECK(weight.dim() == 4 && weight.size(0) == 3 * channels && weight.size(1) == channels / heads &&
                        weight.size(2) == 3 && weight.size(3) == 3 && (!bias || bias->numel() == 3 * channels),
                    "deform_qkv: weight must be [3C, C/heads, 3, 3], and bias [3C]");
    const ScalarType dtype = x.scalar_type();
    STD_TORCH_CHECK(weight.scalar_type() == dtype && (!bias || bias->scalar_type() == dtype) &&
                        (offset.scalar_type() == dtype || offset.scalar_type() == ScalarType::Float),
                    "deform_qkv: x, weight and bias must have one dtype, and offset that one or float32");
    STD_TORCH_CHECK(
        offset.device() == x.device() && weight.device() == x.device() && (!bias || bias->device() == x.device()),
        "deform_qkv: all tensors must be on one device");
    STD_TORCH_CHECK(tokens > 0 && tokens < int64_t{1} << 26 && tokens * heads < int64_t{1} << 31,
                    "deform_qkv: the kernels take 1 to 2^26 - 1 tokens, fewer than 2^31 in all heads");
    return readable(x, MemoryFormat::ChannelsLast);
  }
};

}  // namespace iact
