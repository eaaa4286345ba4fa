// Vectors as wide as a processor's registers, for functions that have one version per generation of processors.
#pragma once

#include <cstdint>

#include "processor.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // functions with vector arguments are inlined, all of them

// Defines the function `name`: it calls name_with<kBytes> for registers of kBytes bytes, as wide as this processor has.
#define IACT_VERSION(attribute, name, bytes, parameters, arguments) \
  attribute static void name##_version parameters { name##_with<bytes> arguments; }
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__x86_64__) && defined(__GLIBC__)
#define IACT_TARGET(processor) __attribute__((target(processor)))
#define IACT_VERSIONS(name, parameters, arguments)                             \
  IACT_VERSION(IACT_TARGET("arch=x86-64-v4"), name, 64, parameters, arguments) \
  IACT_VERSION(IACT_TARGET("arch=x86-64-v3"), name, 32, parameters, arguments) \
  IACT_VERSION(IACT_TARGET("default"), name, 16, parameters, arguments)        \
  void name parameters { name##_version arguments; }
#else
#define IACT_VERSIONS(name, parameters, arguments) \
  IACT_VERSION(, name, 16, parameters, arguments)  \
  void name parameters { name##_version arguments; }
#endif

namespace iact {

// kBytes of numbers, which may lie anywhere in memory.
template <typename A, int kBytes>
struct Lanes {
  typedef A Type __attribute__((vector_size(kBytes), aligned(alignof(A)), may_alias));
  static constexpr int64_t kCount = kBytes / sizeof(A);

  static IACT_INLINE Type at(const A* from) { return *reinterpret_cast<const Type*>(from); }
  static IACT_INLINE void put(Type lanes, A* to) { *reinterpret_cast<Type*>(to) = lanes; }
};

}  // namespace iact
