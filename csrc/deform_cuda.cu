// The deformable projection on CUDA: q, k and v. iact::deform_qkv calls this for what the kernels take (iact/ops).
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "deform_cuda.h"
#include "deform_kernels.h"

namespace iact {
namespace {

std::tuple<Tensor, Tensor, Tensor> deform_qkv(const Tensor& x, const Tensor& offset, const Tensor& weight,
                                              const std::optional<Tensor>& bias, int64_t heads) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const cudaStream_t stream = current_stream(x.get_device());
  const DeformProblem problem(x, offset, weight, bias, heads);
  const Deform& deform = problem.deform;
  const auto output = [&] {
    return torch::stable::empty({deform.batch, deform.heads, deform.pixels(), problem.size}, x.scalar_type(),
                                std::nullopt, x.device());
  };
  Tensor q = output(), k = output(), v = output();
  problem.with_type([&](auto zero, auto d, auto p) {
    using T = decltype(zero);
    const dim3 grid(tiles_of(deform), deform.heads, deform.sets);
    launch("deform_qkv_kernel", deform_qkv_kernel<T, d, p>, grid, kTileThreads, kForwardBytes<T, d, p>, stream, deform,
           const_data<T>(problem.x), problem.offset.const_data_ptr(), const_data<T>(problem.weight),
           problem.bias_data<T>(), data<T>(q), data<T>(k), data<T>(v));
  });
  return {q, k, v};
}

}  // namespace

STABLE_TORCH_LIBRARY(iact_cuda, library) {
  library.def(
      "deform_qkv(Tensor x, Tensor offset, Tensor weight, Tensor? bias, int heads) -> (Tensor, Tensor, Tensor)");
  library.def(
      "deform_qkv_backward(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor x, Tensor offset, Tensor weight, "
      "Tensor? bias, int heads) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(iact_cuda, CUDA, library) { library.impl("deform_qkv", TORCH_BOX(&deform_qkv)); }

}  // namespace iact
