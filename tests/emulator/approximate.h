// The approximate instructions, with any error that NVIDIA's PTX manual allows them: a fixed function of the argument,
// as on a real card, drawn from Launch::hardware. An accuracy that holds for several draws holds on every card.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "machine.h"

namespace emulator {

// A number in [-1, 1] that depends on nothing but `exact` and the hardware.
inline double deviation(double exact) {
  uint64_t bits;
  std::memcpy(&bits, &exact, sizeof bits);
  uint64_t state = bits + (machine.hardware() + 1) * 0x9e3779b97f4a7c15u;
  state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;  // the finaliser of splitmix64
  state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
  return double(int64_t(state ^ (state >> 31))) / 9223372036854775808.0;
}

inline float flush_subnormal(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

// The distance of a positive float from the next.
inline double spacing(float x) { return double(std::nextafter(x, std::numeric_limits<float>::infinity())) - double(x); }

// `exact` as a float that is wrong by up to `error`, rounding included. Infinity stays what it is.
inline float approximate(double exact, double error) {
  const double drawn = error - spacing(float(std::fabs(exact))) / 2;
  const bool exactly = !std::isfinite(exact) || drawn <= 0;
  return flush_subnormal(float(exactly ? exact : exact + drawn * deviation(exact)));
}

inline float fast_exp2(float x) {
  const double exact = std::exp2(double(flush_subnormal(x)));
  return approximate(exact, 0x1p-22 * exact);
}

inline float fast_log2(float x) {
  const double exact = std::log2(double(flush_subnormal(x)));
  const bool near_one = x > 0.5f && x < 2.0f;
  return approximate(exact, near_one ? 0x1p-22 : 0x1p-22 * std::fabs(exact));
}

inline float fast_reciprocal(float x) {
  const double exact = 1.0 / double(flush_subnormal(x));
  return approximate(exact, exact == 0 ? 0 : spacing(float(std::fabs(exact))));
}

}  // namespace emulator
