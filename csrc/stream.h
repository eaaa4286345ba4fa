// Launching CUDA kernels from the extension: torch's current stream, and the check after a launch.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

// Weak: the extension has to load in a torch without CUDA, which lacks this function; it is not called there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace iact {

// The stream to launch on; the caller holds a torch::stable::accelerator::DeviceGuard of that device.
inline cudaStream_t current_stream(int32_t device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "iact: this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Right after a launch: raises a RuntimeError naming the kernel if CUDA refused it. Waits for nothing.
inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, kernel, ": the launch failed: ", cudaGetErrorString(error));
}

// The usual launch, with as much dynamic shared memory as is asked for.
constexpr int kUsualShared = 32 << 10;  // bytes of it that a kernel may have without asking, beside 16 KiB of static

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned threads, int shared,
            cudaStream_t stream, const Arguments&... arguments) {
  if (shared > kUsualShared) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  kernel<<<grid, threads, shared, stream>>>(arguments...);
  check_launch(name);
}

}  // namespace iact
