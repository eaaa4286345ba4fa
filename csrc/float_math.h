// Powers and logarithms in float without a table, a branch or a library call, so that loops over pixels vectorise.
#pragma once

#include <cstdint>
#include <cstring>

#include "device.h"

namespace iact {

IACT_HOST_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

IACT_HOST_DEVICE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// 2^exponent for exponents from -126 to 127.
IACT_HOST_DEVICE float two_to(int32_t exponent) { return float_of(static_cast<uint32_t>(exponent + 127) << 23); }

// The k with 2^k nearest to a positive normal x, in ratio: x / 2^k is in [sqrt(1/2), sqrt(2)).
IACT_HOST_DEVICE int32_t nearest_power(float x) {
  constexpr uint32_t gap = 0x3f800000u - 0x3f3504f3u;  // from sqrt(1/2) to 1: adding it carries into the exponent
  return static_cast<int32_t>((bits_of(x) + gap) >> 23) - 127;
}

// log(1 + f) for f from sqrt(1/2) - 1 to 0.47, to 5e-8 (minimax).
IACT_HOST_DEVICE float log_near_one(float f) {
  float series = 0.0726118907f;
  series = series * f - 0.137074292f;
  series = series * f + 0.151670501f;
  series = series * f - 0.166639552f;
  series = series * f + 0.199481085f;
  series = series * f - 0.249977738f;
  series = series * f + 0.333342075f;
  series = series * f - 0.500000298f;
  return f + f * f * series;
}

// 2^f for f from -1/2 to 1/2, to 2e-9 before rounding (minimax).
IACT_HOST_DEVICE float exp2_near_zero(float f) {
  float series = 0.000153533605f;
  series = series * f + 0.00133988750f;
  series = series * f + 0.00961843692f;
  series = series * f + 0.0555033237f;
  series = series * f + 0.240226477f;
  series = series * f + 0.693147182f;
  return 1.0f + f * series;
}

// 2^(whole + part) for |part| <= 1/2; 0 below 2^-126, and at most about 2^127.
IACT_HOST_DEVICE float scaled_exp2(float whole, float part) {
  const float bounded = whole < -126.0f ? -126.0f : whole > 127.0f ? 127.0f : whole;
  return whole < -126.0f ? 0.0f : exp2_near_zero(part) * two_to(static_cast<int32_t>(bounded));
}

IACT_HOST_DEVICE float round_to_whole(float x) {
  constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves no room for a fraction
  return (x + rounder) - rounder;
}

// log(1 + q) for q >= 0.
IACT_HOST_DEVICE float log1p(float q) {
  const int32_t k = nearest_power(1.0f + q);
  const float inverse = two_to(-k);
  const float f = q * inverse + (inverse - 1.0f);  // (1 + q) / 2^k - 1, without rounding 1 + q
  return static_cast<float>(k) * 0.693147181f + log_near_one(f);
}

// base^(exponent + low) for a positive normal base. Neither the logarithm nor the product is rounded to the size of the
// whole before its fraction is taken, so the power keeps its digits: for results above 1e-30 it errs by 3e-7 at most.
IACT_HOST_DEVICE float power(float base, float exponent, float low) {
  const int32_t k = nearest_power(base);
  const float whole = static_cast<float>(k);
  const float part = log_near_one(base * two_to(-k) - 1.0f) * 1.44269504f;
  const float nearest = round_to_whole(exponent * (whole + part));
  const float rest = exponent * whole - nearest + low * whole;
  return scaled_exp2(nearest, exponent * part + rest);
}

}  // namespace iact
