// What kernel text is written in, so that one text compiles three ways: by nvcc for the GPU, by a C++ compiler for the
// tests (where tests/emulator/emulator.h, included first, stands in for the GPU), and, as far as functions marked
// IACT_HOST_DEVICE go, as plain host code. Without a GPU or the emulator only that macro is here.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define IACT_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define IACT_HOST_DEVICE __forceinline
#else
#define IACT_HOST_DEVICE inline __attribute__((always_inline))
#endif

// IACT_SHARED(type, name, count) declares an array in shared memory; IACT_DYNAMIC_SHARED(type, name) is the dynamic
// shared memory of the launch, from its first byte, as an array of `type`. Kernel text reads and writes their elements
// as name[index], hands the arrays to functions as a template argument, and takes element addresses for atomicAdd only.
#if defined(__CUDACC__)
#define IACT_DEVICE __device__ __forceinline__
#define IACT_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define IACT_DYNAMIC_SHARED(type, name)                              \
  extern __shared__ __align__(16) unsigned char iact_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(iact_dynamic_shared)
#elif defined(IACT_EMULATOR)
#define IACT_DEVICE inline __attribute__((always_inline))
#define IACT_SHARED(type, name, count)                                                 \
  static ::emulator::Storage name##_storage(sizeof(type), sizeof(type) * (count)); \
  const ::emulator::Shared<type> name(#name, name##_storage)
#define IACT_DYNAMIC_SHARED(type, name) const ::emulator::Shared<type> name(#name, ::emulator::dynamic_storage)
#endif

#if defined(__CUDACC__)
namespace iact {

// Subnormal arguments and results count as zero in all three.
// 2^x, relative error at most 2^-22.
IACT_DEVICE float fast_exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// log2(x), absolute error at most 2^-22 for x in (0.5, 2), relative error at most 2^-22 elsewhere.
IACT_DEVICE float fast_log2(float x) {
  float logarithm;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(logarithm) : "f"(x));
  return logarithm;
}

// 1 / x, wrong by at most one unit in the last place.
IACT_DEVICE float fast_reciprocal(float x) {
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(x));
  return reciprocal;
}

}  // namespace iact
#elif defined(IACT_EMULATOR)
namespace iact {

IACT_DEVICE float fast_exp2(float x) { return ::emulator::fast_exp2(x); }
IACT_DEVICE float fast_log2(float x) { return ::emulator::fast_log2(x); }
IACT_DEVICE float fast_reciprocal(float x) { return ::emulator::fast_reciprocal(x); }

}  // namespace iact
#endif
