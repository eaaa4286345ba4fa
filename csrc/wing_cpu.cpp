// Logarithm and exponential as straight-line code, so that the compiler turns the loop over pixels into vector code.
#include "wing_cpu.h"

#include <cstring>

#include "processor.h"

namespace iact {
namespace {

inline uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline double double_of(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct VectorMath {
  // Relative error below 1e-15 for normal positive numbers.
  static IACT_HOST_DEVICE double log2(double x) {
    // x = 2^k m with m in [sqrt(1/2), sqrt(2)); adding the gap from sqrt(1/2) to 1 carries into the exponent.
    const uint64_t shifted = bits_of(x) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
    const uint64_t biased = shifted >> 52;
    const double k = double_of(biased | 0x4330000000000000u) - (4503599627370496.0 + 1023.0);
    const double m = double_of((shifted & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu);
    const double z = (m - 1) / (m + 1), z2 = z * z;
    double series = 1.0 / 21;
    series = series * z2 + 1.0 / 19;
    series = series * z2 + 1.0 / 17;
    series = series * z2 + 1.0 / 15;
    series = series * z2 + 1.0 / 13;
    series = series * z2 + 1.0 / 11;
    series = series * z2 + 1.0 / 9;
    series = series * z2 + 1.0 / 7;
    series = series * z2 + 1.0 / 5;
    series = series * z2 + 1.0 / 3;
    return k + (z + z * z2 * series) * 2.8853900817779268;  // 2 / log(2)
  }

  // Relative error below 1e-15; 0 below 2^-1022, and no larger than 2^1023.
  static IACT_HOST_DEVICE double exp2(double x) {
    const double bounded = x < -1022 ? -1022 : x > 1023 ? 1023 : x;
    const double rounder = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, left in the low bits
    const double shifted = bounded + rounder;
    const double f = (bounded - (shifted - rounder)) * 0.6931471805599453;  // |f| <= log(2) / 2
    double series = 1.0 / 479001600;
    series = series * f + 1.0 / 39916800;
    series = series * f + 1.0 / 3628800;
    series = series * f + 1.0 / 362880;
    series = series * f + 1.0 / 40320;
    series = series * f + 1.0 / 5040;
    series = series * f + 1.0 / 720;
    series = series * f + 1.0 / 120;
    series = series * f + 1.0 / 24;
    series = series * f + 1.0 / 6;
    series = series * f + 1.0 / 2;
    series = series * f + 1;
    series = series * f + 1;
    const double power = double_of((bits_of(shifted) + 1023) << 52);
    return x < -1022 ? 0 : series * power;
  }

  // log(1 + q) for q >= 0, with what the addition rounded away put back.
  static IACT_HOST_DEVICE double log1p(double q) {
    const double sum = 1 + q;
    const double lost = q > 1 ? 1 - (sum - q) : q - (sum - 1);
    return log2(sum) * 0.6931471805599453 + lost / sum;
  }
};

}  // namespace

IACT_PER_PROCESSOR
void wing_block(const double* __restrict pred, const double* __restrict target, const Wing<double>& constants,
                double* __restrict value, double* __restrict slope) {
  const Wing<double> c = constants;
  for (int64_t i = 0; i < kWingBlock; ++i)
    wing<VectorMath>(pred[i] - target[i], target[i], c, value[i], slope[i]);
}

}  // namespace iact
