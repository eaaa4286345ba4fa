// The CPU loops of the softmax over keys, for a tile of queries that lie side by side, some keys at a time.
// A is float, or double for double tensors.
#pragma once

#include <cstdint>

namespace iact {

constexpr int64_t kQueries = 32;

// What is known of the queries of a tile after the keys so far. Exponents are of 2; sums are of 2^(exponent - largest).
template <typename A>
struct Softmax {
  A largest[kQueries], total[kQueries];
  A change[kQueries];  // what the last keys, by a new `largest`, make of a sum of those before
};

// scores [keys, kQueries] <- 2^(score * factor - largest), of the next keys.
void soften(float* scores, int64_t keys, float factor, Softmax<float>& softmax);
void soften(double* scores, int64_t keys, double factor, Softmax<double>& softmax);

// attended [size, kQueries], the sums of values so far, gets `more` of them, those of the last keys.
void attend_more(const float* more, int64_t size, const Softmax<float>& softmax, float* attended);
void attend_more(const double* more, int64_t size, const Softmax<double>& softmax, double* attended);

}  // namespace iact
