// iact_cuda::attention and iact_cuda::attention_backward: checks, allocation, and the choice of a kernel.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "attention_kernels.h"
#include "stream.h"
#include "tensors.h"

namespace iact {
namespace {

void check(const Tensor& q, std::initializer_list<Tensor> others) {
  STD_TORCH_CHECK(q.dim() == 4 && q.numel() > 0 && q.size(3) <= 64, "attention: q must be [B, heads, N, D], D <= 64");
  for (const Tensor& other : others)
    STD_TORCH_CHECK(
        same_shape(q, other) && q.scalar_type() == other.scalar_type() && q.get_device() == other.get_device(),
        "attention: all tensors must have the shape, dtype and device of q");
}

// Rows whose elements lie side by side.
Tensor with_dense_rows(const Tensor& tensor) {
  return tensor.stride(3) == 1 || tensor.size(3) == 1 ? tensor : torch::stable::contiguous(tensor);
}

template <typename T>
Heads<const T> heads_of(const Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

bool is_aligned(const Tensor& tensor) {
  const int64_t vector = 16 / static_cast<int64_t>(tensor.element_size());
  bool aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0 && tensor.size(3) % vector == 0;
  for (int d : {0, 1, 2}) aligned &= tensor.size(d) == 1 || tensor.stride(d) % vector == 0;
  return aligned;
}

// What the kernels have to know of `all`, the tensors of the shape of `q`.
Attention attention_of(const Tensor& q, std::initializer_list<Tensor> all, std::optional<double> scale) {
  const int64_t heads = q.size(0) * q.size(1), tokens = q.size(2), size = q.size(3);
  STD_TORCH_CHECK(tokens < (1 << 30) && heads * ((tokens + 63) / 64) < (1 << 30),
                  "attention: N must be below 2^30, and B * heads * N below 2^36");
  bool aligned = true;
  for (const Tensor& tensor : all) aligned &= is_aligned(tensor);
  const float factor = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(size))));
  return {static_cast<int>(q.size(1)), static_cast<int>(tokens), static_cast<int>(size), aligned, factor,
          exponent_of(factor)};
}

// Calls work(T()) with the element type of the tensor.
template <typename Work>
void with_dtype(const Tensor& tensor, const Work& work) {
  if (tensor.scalar_type() == ScalarType::Float) return work(float());
  if (tensor.scalar_type() == ScalarType::BFloat16) return work(c10::BFloat16());
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Half, "attention takes float32, bfloat16 or float16");
  work(c10::Half());
}

// Calls work(std::integral_constant<int, N>) with the elements to which rows of that size are padded.
template <typename Work>
void with_dim(int64_t size, const Work& work) {
  if (size <= 16) return work(std::integral_constant<int, 16>());
  if (size <= 32) return work(std::integral_constant<int, 32>());
  if (size <= 48) return work(std::integral_constant<int, 48>());
  return work(std::integral_constant<int, 64>());
}

// Calls work(T(), kDim, kTiles). Fewer tiles make more blocks: best where they would not fill a GPU otherwise.
template <bool kBackward, typename Work>
void with_kernel(const Tensor& q, const Work& work) {
  constexpr int kFull = 128;  // blocks
  const int64_t large_blocks = q.size(0) * q.size(1) * ((q.size(2) + 127) / 128);
  const bool most = q.size(2) > 64 && large_blocks >= kFull;
  with_dtype(q, [&](auto zero) {
    with_dim(q.size(3), [&](auto dim) {
      using T = decltype(zero);
      constexpr int kMost = kBackward ? kMostBackward<T, decltype(dim)::value> : kMostForward<T, decltype(dim)::value>;
      if (most)
        work(zero, dim, std::integral_constant<int, kMost>());
      else
        work(zero, dim, std::integral_constant<int, 1>());
    });
  });
}

Tensor empty(const Tensor& q, int dims, ScalarType dtype) {
  return torch::stable::empty(q.sizes().slice(0, dims), dtype, std::nullopt, q.device(), std::nullopt,
                              MemoryFormat::Contiguous);
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v, std::optional<double> scale) {
  check(q, {k, v});
  const torch::stable::accelerator::DeviceGuard guard(q.get_device());
  const Tensor queries = with_dense_rows(q), keys = with_dense_rows(k), values = with_dense_rows(v);
  Tensor out = empty(q, 4, q.scalar_type()), logsumexp = empty(q, 3, ScalarType::Float);
  const Attention numbers = attention_of(q, {queries, keys, values, out}, scale);
  with_kernel<false>(q, [&](auto zero, auto dim, auto tiles) {
    using T = decltype(zero);
    using P = Forward<T, dim, tiles>;
    const int64_t blocks = q.size(0) * q.size(1) * P::blocks(numbers.tokens);
    launch("attention_kernel", attention_kernel<T, dim, tiles>, dim3(static_cast<unsigned>(blocks)), kAttentionThreads,
           P::kBytes, current_stream(q.get_device()), heads_of<T>(queries), heads_of<T>(keys), heads_of<T>(values),
           numbers, data<T>(out), data<float>(logsumexp));
  });
  return {out, logsumexp};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                      const Tensor& v, const Tensor& out, const Tensor& logsumexp,
                                                      std::optional<double> scale) {
  check(q, {grad, k, v, out});
  STD_TORCH_CHECK(logsumexp.numel() * q.size(3) == q.numel() && logsumexp.scalar_type() == ScalarType::Float,
                  "attention_backward: logsumexp must be float32 [B, heads, N]");
  const torch::stable::accelerator::DeviceGuard guard(q.get_device());
  const Tensor queries = with_dense_rows(q), keys = with_dense_rows(k), values = with_dense_rows(v);
  const Tensor grads = with_dense_rows(grad), outs = with_dense_rows(out), sums = torch::stable::contiguous(logsumexp);
  const ScalarType dtype = q.scalar_type();
  Tensor grad_q = empty(q, 4, dtype), grad_k = empty(q, 4, dtype), grad_v = empty(q, 4, dtype);
  const Attention numbers = attention_of(q, {queries, keys, values, grads, outs, grad_q, grad_k, grad_v}, scale);
  with_kernel<true>(q, [&](auto zero, auto dim, auto tiles) {
    using T = decltype(zero);
    using P = Backward<T, dim, tiles>;
    const Saved<T> saved{heads_of<T>(queries), heads_of<T>(keys), heads_of<T>(values),
                         heads_of<T>(grads),   heads_of<T>(outs), static_cast<const float*>(sums.const_data_ptr())};
    const Gradients<T> gradients{data<T>(grad_q), data<T>(grad_k), data<T>(grad_v)};
    const int64_t blocks = 2 * q.size(0) * q.size(1) * P::blocks(numbers.tokens);
    launch("attention_backward_kernel", attention_backward_kernel<T, dim, tiles>, dim3(static_cast<unsigned>(blocks)),
           kAttentionThreads, P::kBytes, current_stream(q.get_device()), saved, gradients, numbers);
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace

// Ops of their own, for what these kernels take. The fragment is of the library that deform_cuda.cu defines.
STABLE_TORCH_LIBRARY_FRAGMENT(iact_cuda, library) {
  library.def("attention(Tensor q, Tensor k, Tensor v, float? scale) -> (Tensor out, Tensor logsumexp)");
  library.def(
      "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, float? scale) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(iact_cuda, CUDA, library) {
  library.impl("attention", TORCH_BOX(&attention));
  library.impl("attention_backward", TORCH_BOX(&attention_backward));
}

}  // namespace iact
