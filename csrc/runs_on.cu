// iact_cuda::runs_on: whether this build holds machine code, or PTX, for a GPU. All files are built for the same ones.
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>

namespace iact {
namespace {

__global__ void probe_kernel() {}

bool runs_on(int64_t device) {
  int current = 0;
  cudaFuncAttributes attributes;
  if (cudaGetDevice(&current) != cudaSuccess || cudaSetDevice(static_cast<int>(device)) != cudaSuccess) {
    cudaGetLastError();  // it is answered here; the next launch must not find it
    return false;
  }
  const bool found = cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess;
  cudaGetLastError();
  cudaSetDevice(current);
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(iact_cuda, library) { library.def("runs_on(int device) -> bool"); }

STABLE_TORCH_LIBRARY_IMPL(iact_cuda, CompositeExplicitAutograd, library) {
  library.impl("runs_on", TORCH_BOX(&runs_on));
}

}  // namespace iact
