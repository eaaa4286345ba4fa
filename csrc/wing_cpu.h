// The CPU loops of the wing losses over blocks of pixels; wing.cpp prepares their tensors.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#include "target.h"
#include "wing.h"

namespace iact {

constexpr int64_t kWingBlock = 512;  // pixels per call; fixed, so that sums do not depend on the number of threads

// value[i], slope[i] <- wing loss of pred[i] against target[i], for kWingBlock pixels, times weight[i] (null: 1), the
// slope also times `factor`. Returns the sum of the values. The float version is for constants that are narrow().
double wing_block(const float* pred, const float* target, const float* weight, float factor,
                  const Wing<float>& constants, float* value, float* slope);
double wing_block(const double* pred, const double* target, const double* weight, double factor,
                  const Wing<double>& constants, double* value, double* slope);

// target[i] <- the target of one landmark at (dx + i, dy) from it.
void draw_row(float dx, float dy, int64_t count, const Drawing& drawing, float* target);
// target[i] <- the target of landmark i of many, at one pixel (x, y).
void draw_column(float x, float y, const float* centre_x, const float* centre_y, int64_t count, const Drawing& drawing,
                 float* target);

// Runs of elements of any supported dtype, read and written as float or double.
#define IACT_DECLARE_CONVERSIONS(Real, T)               \
  void convert(const T* from, int64_t count, Real* to); \
  void convert_back(const Real* from, int64_t count, T* to);
#define IACT_FOR_EACH_CONVERSION(macro)                                                                             \
  macro(float, float) macro(float, double) macro(float, c10::BFloat16) macro(float, c10::Half) macro(double, float) \
      macro(double, double) macro(double, c10::BFloat16) macro(double, c10::Half)
IACT_FOR_EACH_CONVERSION(IACT_DECLARE_CONVERSIONS)

}  // namespace iact
