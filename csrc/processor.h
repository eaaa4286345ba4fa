// IACT_PER_PROCESSOR: one version of a function per generation of processors, chosen when the library is loaded.
// IACT_INLINE: compiled into its caller, so that it is of the caller's version.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__x86_64__) && defined(__GLIBC__)
#define IACT_PER_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define IACT_PER_PROCESSOR
#endif

#if defined(_MSC_VER)
#define IACT_INLINE __forceinline
#else
#define IACT_INLINE inline __attribute__((always_inline))
#endif
