// The gradients of the deformable projection on CUDA: checks, workspace, and the kernels one after the other.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <utility>

#include "deform_cuda.h"
#include "deform_gradients.h"
#include "deform_kernels.h"

namespace iact {
namespace {

template <typename... Parameters, typename... Arguments>
void launch_as(const GradientLaunch& how, const char* name, void (*kernel)(Parameters...), cudaStream_t stream,
               const Arguments&... arguments) {
  launch(name, kernel, dim3(how.grid_x, how.grid_y, how.grid_z), how.threads, how.shared_bytes, stream, arguments...);
}

// Gradients of q, k and v, and what else every gradient is made of.
struct Backward {
  DeformProblem problem;
  Tensor q, k, v;
  cudaStream_t stream;

  Backward(const Tensor& grad_q, const Tensor& grad_k, const Tensor& grad_v, DeformProblem&& problem)
      : problem(std::move(problem)),
        q(checked(grad_q)),
        k(checked(grad_k)),
        v(checked(grad_v)),
        stream(current_stream(q.get_device())) {}

  const Deform& deform() const { return problem.deform; }

  template <typename T>
  ProjectedGradients<T> grads() const {
    return {const_data<T>(q), const_data<T>(k), const_data<T>(v)};
  }

  Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype) const {
    return torch::stable::empty(sizes, dtype, std::nullopt, q.device());
  }

 private:
  Tensor checked(const Tensor& grad) const {
    STD_TORCH_CHECK(grad.scalar_type() == problem.x.scalar_type() && grad.numel() == problem.x.numel() &&
                        grad.device() == problem.x.device(),
                    "deform_qkv_backward: gradients must have the dtype of x, and be [B, heads, H*W, C/heads]");
    return readable(grad, MemoryFormat::Contiguous);
  }
};

// Which tokens read each pixel, as deform_lists_kernel leaves it.
struct Lists {
  Tensor starts, readers;

  explicit Lists(const Backward& backward)
      : starts(backward.empty({layers(backward), backward.deform().batch, backward.deform().pixels() + 1},
                              ScalarType::Int)),
        readers(backward.empty({layers(backward), backward.deform().tokens(), 4, 2}, ScalarType::Int)) {}

  static int64_t layers(const Backward& backward) { return backward.deform().sets * kTaps; }
};

template <typename T>
void make_lists(const Backward& backward, Lists& lists) {
  const Deform& deform = backward.deform();
  const int range = readers_range(deform);
  const dim3 grid(Lists::layers(backward) * deform.batch, (deform.pixels() + range - 1) / range);
  launch("deform_lists_kernel", deform_lists_kernel<T>, grid, 32, range * int{sizeof(int)}, backward.stream, deform,
         backward.problem.offset.const_data_ptr(), range, data<int>(lists.starts), data<Reader>(lists.readers));
}

template <typename T, int D>
Tensor gradient_of_x(const Backward& backward, const Tensor& x) {
  const Deform& deform = backward.deform();
  Lists lists(backward);
  make_lists<T>(backward, lists);
  ChannelsLast grad(x);
  const ProjectedGradients<T> grads = backward.grads<T>();
  launch("deform_qkv_x_kernel", deform_qkv_x_kernel<T, D>, dim3(tiles_of(deform), deform.heads), kTileThreads,
         kBackwardBytes<T, D>, backward.stream, deform, grads.q, grads.k, grads.v,
         const_data<T>(backward.problem.weight), const_data<int>(lists.starts), const_data<Reader>(lists.readers),
         data<T>(grad.memory));
  return grad.finished();
}

template <typename T, int D, int P>
Tensor gradient_of_offset(const Backward& backward, const Tensor& offset) {
  Tensor grad = backward.empty(offset.sizes(), ScalarType::Float);
  launch_as(offset_launch<T, D, P>(backward.deform()), "deform_qkv_offset_kernel", deform_qkv_offset_kernel<T, D, P>,
            backward.stream, backward.deform(), backward.grads<T>(), const_data<T>(backward.problem.x),
            offset.const_data_ptr(), const_data<T>(backward.problem.weight), offset_taps<T, D, P>(backward.deform()),
            data<float>(grad));
  if (offset.scalar_type() == ScalarType::Float && offset.is_contiguous()) return grad;
  Tensor result = torch::stable::empty_like(offset);
  return torch::stable::copy_(result, grad);
}

// Of the weight, and of the bias (empty without one).
template <typename T, int D, int P>
std::tuple<Tensor, Tensor> gradients_of_weight(const Backward& backward, const Tensor& weight, bool has_bias) {
  const Deform& deform = backward.deform();
  const int slices = weight_slices<T, D, P>(deform);
  Tensor partials = backward.empty({slices, partial_elements(deform, D)}, ScalarType::Float);
  launch_as(weight_launch<T, D, P>(deform), "deform_qkv_weight_kernel", deform_qkv_weight_kernel<T, D, P>,
            backward.stream, deform, backward.grads<T>(), const_data<T>(backward.problem.x),
            backward.problem.offset.const_data_ptr(), data<float>(partials));
  ChannelsLast grad(weight);
  const int64_t weights = weight_elements(deform, D), biases = weight.size(0);
  Tensor grad_bias = backward.empty({has_bias ? biases : 0}, weight.scalar_type());
  launch_as(weight_sum_launch(deform, D), "deform_qkv_weight_sum_kernel", deform_qkv_weight_sum_kernel<T>,
            backward.stream, const_data<float>(partials), slices, weights, biases, data<T>(grad.memory),
            has_bias ? data<T>(grad_bias) : nullptr);
  return {grad.finished(), grad_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_qkv_backward(const Tensor& grad_q, const Tensor& grad_k,
                                                               const Tensor& grad_v, const Tensor& x,
                                                               const Tensor& offset, const Tensor& weight,
                                                               const std::optional<Tensor>& bias, int64_t heads) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const Backward backward(grad_q, grad_k, grad_v, {x, offset, weight, bias, heads});
  std::optional<std::tuple<Tensor, Tensor, Tensor, Tensor>> result;
  backward.problem.with_type([&](auto zero, auto d, auto p) {
    using T = decltype(zero);
    const Tensor of_x = gradient_of_x<T, d>(backward, x), of_offset = gradient_of_offset<T, d, p>(backward, offset);
    const auto [of_weight, of_bias] = gradients_of_weight<T, d, p>(backward, weight, bias.has_value());
    result = {of_x, of_offset, of_weight, of_bias};
  });
  return *result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iact_cuda, CUDA, library) {
  library.impl("deform_qkv_backward", TORCH_BOX(&deform_qkv_backward));
}

}  // namespace iact
