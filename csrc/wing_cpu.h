// The CPU loop of the wing losses; wing.cpp prepares its tensors.
#pragma once

#include <cstdint>

#include "wing.h"

namespace iact {

constexpr int64_t kWingBlock = 512;  // pixels per call; fixed, so that sums do not depend on the number of threads

// value[i], slope[i] <- wing loss of pred[i] against target[i], for kWingBlock pixels.
void wing_block(const double* pred, const double* target, const Wing<double>& constants, double* value, double* slope);

}  // namespace iact
