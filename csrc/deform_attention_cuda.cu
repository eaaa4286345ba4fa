// iact_cuda::deform_attention: the whole attention of small maps by one kernel.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>

#include "deform_attention_kernels.h"
#include "deform_cuda.h"

namespace iact {
namespace {

// Raises a RuntimeError where a block may not have that many bytes of shared memory.
void check_shared(int64_t bytes, int32_t device) {
  int most = 0;
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  STD_TORCH_CHECK(bytes <= most, "deform_attention: the map would take ", bytes, " bytes of shared memory, of ", most);
}

Tensor deform_attention(const Tensor& x, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,
                        int64_t heads) {
  const int32_t device = x.get_device();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const DeformProblem problem(x, offset, weight, bias, heads);
  const Deform& deform = problem.deform;
  const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(problem.size)));
  const Attention attention{deform.heads, deform.pixels(), problem.size, true, scale, exponent_of(scale)};
  Tensor out = torch::stable::empty({deform.batch, deform.pixels(), x.size(1)}, x.scalar_type(), std::nullopt,
                                    x.device());
  problem.with_type([&](auto zero, auto d, auto p) {
    using T = decltype(zero);
    constexpr int kSets = kProjections / decltype(p)::value;
    const int64_t shared = map_bytes<T, d>(map_rows(deform.pixels()));
    check_shared(shared, device);
    launch("deform_attention_kernel", deform_attention_kernel<T, d, kSets>, dim3(deform.batch * deform.heads),
           kMapThreads, static_cast<int>(shared), current_stream(device), deform, attention, const_data<T>(problem.x),
           problem.offset.const_data_ptr(), const_data<T>(problem.weight), problem.bias_data<T>(), data<T>(out));
  });
  return out;
}

}  // namespace

// The fragment is of the library that deform_cuda.cu defines.
STABLE_TORCH_LIBRARY_FRAGMENT(iact_cuda, library) {
  library.def("deform_attention_forward(Tensor x, Tensor offset, Tensor weight, Tensor? bias, int heads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(iact_cuda, CUDA, library) { library.impl("deform_attention_forward", TORCH_BOX(&deform_attention)); }

}  // namespace iact
