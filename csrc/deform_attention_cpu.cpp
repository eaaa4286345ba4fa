// Queries are the inner, vectorised direction.
#include "deform_attention_cpu.h"

#include <cmath>

#include "float_math.h"
#include "processor.h"

namespace iact {
namespace {

// 2^x for x up to about 0, to rounding; next to nothing below -125, NaN for NaN.
IACT_INLINE float exp2_of(float x) {
  constexpr float rounder = 12582912.0f + 127.0f;  // 1.5 * 2^23: adding it leaves a whole number in the low bits
  const float bounded = x < -125.0f ? -125.0f : x;
  const float shifted = bounded + rounder;
  return exp2_near_zero(bounded - (shifted - rounder)) * float_of(bits_of(shifted) << 23);
}

IACT_INLINE double exp2_of(double x) { return std::exp2(x); }

template <typename A>
IACT_INLINE void soften_all(A* __restrict scores, int64_t keys, A factor, Softmax<A>& softmax) {
  A largest[kQueries], total[kQueries] = {};
  for (int64_t i = 0; i < kQueries; ++i) largest[i] = scores[i];
  for (int64_t key = 1; key < keys; ++key)
    for (int64_t i = 0; i < kQueries; ++i) {
      const A score = scores[key * kQueries + i];
      largest[i] = score > largest[i] ? score : largest[i];
    }
  for (int64_t i = 0; i < kQueries; ++i) {
    const A before = softmax.largest[i], now = largest[i] * factor;
    largest[i] = now > before ? now : before;
    softmax.largest[i] = largest[i];
    softmax.change[i] = exp2_of(before - largest[i]);
  }
  for (int64_t key = 0; key < keys; ++key)
    for (int64_t i = 0; i < kQueries; ++i) {
      const A power = exp2_of(scores[key * kQueries + i] * factor - largest[i]);
      scores[key * kQueries + i] = power;
      total[i] += power;
    }
  for (int64_t i = 0; i < kQueries; ++i) softmax.total[i] = softmax.total[i] * softmax.change[i] + total[i];
}

template <typename A>
IACT_INLINE void attend_more_all(const A* __restrict more, int64_t size, const Softmax<A>& softmax,
                                 A* __restrict attended) {
  for (int64_t c = 0; c < size; ++c)
    for (int64_t i = 0; i < kQueries; ++i) {
      const int64_t at = c * kQueries + i;
      attended[at] = attended[at] * softmax.change[i] + more[at];
    }
}

}  // namespace

#define IACT_SOFTMAX(A)                                                                                      \
  IACT_PER_PROCESSOR void soften(A* scores, int64_t keys, A factor, Softmax<A>& softmax) {                   \
    soften_all(scores, keys, factor, softmax);                                                               \
  }                                                                                                          \
  IACT_PER_PROCESSOR void attend_more(const A* more, int64_t size, const Softmax<A>& softmax, A* attended) { \
    attend_more_all(more, size, softmax, attended);                                                          \
  }

IACT_SOFTMAX(float)
IACT_SOFTMAX(double)

}  // namespace iact
