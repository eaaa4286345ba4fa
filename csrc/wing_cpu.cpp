// Straight-line code per pixel, so that the compiler turns the loops into vector code.
#include "wing_cpu.h"

#include "float_math.h"
#include "processor.h"

namespace iact {
namespace {

uint64_t constexpr kLogGap = 0x3ff0000000000000u - 0x3fe6a09e667f3bcdu;  // from sqrt(1/2) to 1

IACT_INLINE uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

IACT_INLINE double double_of(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct FloatMath {
  static IACT_INLINE float power(float base, float exponent, float low) { return iact::power(base, exponent, low); }
  static IACT_INLINE float log1p(float q) { return iact::log1p(q); }
  static IACT_INLINE float reciprocal(float x) { return 1.0f / x; }
  static IACT_INLINE float exp2(float x) {
    const float whole = round_to_whole(x);
    return scaled_exp2(whole, x - whole);
  }
};

struct DoubleMath {
  // Relative error below 1e-15 for normal positive numbers.
  static IACT_INLINE double log2(double x) {
    // x = 2^k m with m in [sqrt(1/2), sqrt(2)); adding the gap from sqrt(1/2) to 1 carries into the exponent.
    const uint64_t shifted = bits_of(x) + kLogGap;
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
  static IACT_INLINE double exp2(double x) {
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
    const double scale = double_of((bits_of(shifted) + 1023) << 52);
    return x < -1022 ? 0 : series * scale;
  }

  static IACT_INLINE double power(double base, double exponent, double) { return exp2(exponent * log2(base)); }

  static IACT_INLINE double reciprocal(double x) { return 1 / x; }

  // With what the addition rounded away put back.
  static IACT_INLINE double log1p(double q) {
    const double sum = 1 + q;
    const double lost = q > 1 ? 1 - (sum - q) : q - (sum - 1);
    return log2(sum) * 0.6931471805599453 + lost / sum;
  }
};

constexpr int64_t kGroup = 32;  // pixels that take the short way together, where all of them can

template <typename Real>
IACT_INLINE bool all_background(const Real* pred, const Real* target, const Wing<Real>& c) {
  int all = 1;
  for (int64_t i = 0; i < kGroup; ++i) all &= is_background(pred[i], target[i], c);
  return all;
}

template <typename Math, typename Real>
IACT_INLINE double wing_block_in(const Real* pred, const Real* target, const Real* weight, Real factor,
                                 const Wing<Real>& constants, Real* value, Real* slope) {
  const Wing<Real> c = constants;
  constexpr bool narrow = sizeof(Real) == 4;
  double total = 0;
  for (int64_t start = 0; start < kWingBlock; start += kGroup) {
    const Real *p = pred + start, *y = target + start;
    Real *v = value + start, *s = slope + start;
    if (all_background(p, y, c))
      for (int64_t i = 0; i < kGroup; ++i) background_wing(p[i], c, narrow, v[i], s[i]);
    else
      for (int64_t i = 0; i < kGroup; ++i) wing<Math>(p[i] - y[i], y[i], c, narrow, v[i], s[i]);
    if (weight)
      for (int64_t i = 0; i < kGroup; ++i) v[i] *= weight[start + i], s[i] *= weight[start + i];
    for (int64_t i = 0; i < kGroup; ++i) s[i] *= factor;
    Real sums[16] = {};
    for (int64_t i = 0; i < kGroup; i += 16)
      for (int64_t lane = 0; lane < 16; ++lane) sums[lane] += v[i + lane];
    for (int64_t half = 8; half > 0; half /= 2)
      for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    total += static_cast<double>(sums[0]);
  }
  return total;
}

}  // namespace

IACT_PER_PROCESSOR
double wing_block(const float* __restrict pred, const float* __restrict target, const float* __restrict weight,
                  float factor, const Wing<float>& constants, float* __restrict value, float* __restrict slope) {
  return wing_block_in<FloatMath>(pred, target, weight, factor, constants, value, slope);
}

IACT_PER_PROCESSOR
double wing_block(const double* __restrict pred, const double* __restrict target, const double* __restrict weight,
                  double factor, const Wing<double>& constants, double* __restrict value, double* __restrict slope) {
  return wing_block_in<DoubleMath>(pred, target, weight, factor, constants, value, slope);
}

IACT_PER_PROCESSOR
void draw_row(float dx, float dy, int64_t count, const Drawing& drawing, float* __restrict target) {
  const Drawing d = drawing;
  for (int64_t i = 0; i < count; ++i)
    target[i] = target_at<FloatMath>(dx + static_cast<float>(static_cast<int32_t>(i)), dy, d);
}

IACT_PER_PROCESSOR
void draw_column(float x, float y, const float* __restrict centre_x, const float* __restrict centre_y, int64_t count,
                 const Drawing& drawing, float* __restrict target) {
  const Drawing d = drawing;
  for (int64_t i = 0; i < count; ++i) target[i] = target_at<FloatMath>(x - centre_x[i], y - centre_y[i], d);
}

#define IACT_DEFINE_CONVERSIONS(Real, T)                                                               \
  IACT_PER_PROCESSOR void convert(const T* __restrict from, int64_t count, Real* __restrict to) {      \
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Real>(from[i]);                            \
  }                                                                                                    \
  IACT_PER_PROCESSOR void convert_back(const Real* __restrict from, int64_t count, T* __restrict to) { \
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(static_cast<Real>(from[i]));            \
  }
IACT_FOR_EACH_CONVERSION(IACT_DEFINE_CONVERSIONS)

}  // namespace iact
