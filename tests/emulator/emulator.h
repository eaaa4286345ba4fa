// Runs CUDA kernel text on the CPU and finds its mistakes: races in shared memory, divergent barriers and collectives,
// accesses outside shared, global or local memory, misaligned vectors, elements left unwritten. A mistake is an
// emulator::Error, which is a RuntimeError in Python, and says where it was made.
//
// Include this before the kernel text. A binding of `template <typename T> __global__ void scale(const T*, T*, int)`:
//
//   #include "emulator.h"
//   #include "scale_kernel.h"  // the kernel text, which includes csrc/device.h
//   void scale(py::array_t<float> x, py::array_t<float> out, uint64_t seed) {
//     const int count = int(x.size());
//     const emulator::Buffer<float> source("x", x.data(), count);
//     emulator::Buffer<float> result("out", count);  // poisoned: NaN until the kernel writes it
//     const emulator::Launch launch{dim3((count + 255) / 256), dim3(256), /*dynamic_bytes=*/0, seed};
//     emulator::run(launch, [&] { scale_kernel<float>(source.data(), result.data(), count); });
//     result.require_written();
//     result.copy_to(out.mutable_data());
//   }
//
// The seed draws the order of blocks and of threads: run several. What each header below finds, and what it cannot, is
// said at its top. Nothing watches for races in global memory: compare the results of several seeds.
#pragma once

#define IACT_EMULATOR

#include "approximate.h"
#include "buffer.h"
#include "machine.h"
#include "shared.h"
#include "tensor_core.h"
// The spellings of CUDA are macros and global names: after all that they could disturb.
#include "intrinsics.h"
