// Smooth Wing and Adaptive Wing at one pixel: the value and its slope along the prediction, from one evaluation.
//
// The published inner piece K log(1 + e^2) + M e^2 has K = 75217 and M = -74919 at y = 1 and loses every digit in fp32.
// Here it is written around the point where it meets the middle piece, with t = e^2 / theta1^2:
//   loss = t (V + W (r(theta1^2) - t r(e^2))),  r(x) = (x - log(1 + x)) / x^2
// where V and S are value and slope of the middle piece at theta1; all terms are of the size of the result.
#pragma once

#include <cmath>

#include "device.h"

namespace iact {

constexpr double kNarrow =
    0.01;  // the largest theta1^2 for which short series serve the inner piece, to float's digits

// r(x) = (x - log(1 + x)) / x^2 for x in [0, 1], to 3e-10, and to the last bit of a double below x = 0.09.
// With z = x / (2 + x): log(1 + x) = 2 z (1 + z^2 / 3 + z^4 / 5 + ...) and x - 2 z = x z, so nothing cancels.
template <typename Real>
IACT_HOST_DEVICE Real log_deficit(Real x, bool narrow) {
  if (narrow) return ((Real(-0.2) * x + Real(0.25)) * x - Real(1.0 / 3)) * x + Real(0.5);
  const Real inverse = Real(1) / (Real(2) + x);
  const Real z = x * inverse, z2 = z * z;
  Real series = Real(1.0 / 17);
  series = series * z2 + Real(1.0 / 15);
  series = series * z2 + Real(1.0 / 13);
  series = series * z2 + Real(1.0 / 11);
  series = series * z2 + Real(1.0 / 9);
  series = series * z2 + Real(1.0 / 7);
  series = series * z2 + Real(1.0 / 5);
  series = series * z2 + Real(1.0 / 3);
  return inverse * (Real(1) - Real(2) * z * inverse * series);
}

template <typename Real>
IACT_HOST_DEVICE Real inverse_of_one_plus(Real x, bool narrow) {
  return narrow ? ((Real(1) - x) * x - Real(1)) * x + Real(1) : Real(1) / (Real(1) + x);
}

// What does not depend on the pixel. Adaptive Wing is theta1 = 0: its inner piece is the point e = 0.
template <typename Real>
struct Wing {
  Real omega, alpha, alpha_low, inverse_epsilon, theta1, theta2;  // alpha + alpha_low is alpha to twice the digits
  Real u, inverse_u, deficit, bend;        // theta1^2, its inverse, r(theta1^2), and W / (2 V - S theta1)
  Real background_value, background_bend;  // V and W where the target is 0, which it is almost everywhere

  Wing(double omega, double smooth_theta1, double theta2, double alpha, double epsilon)
      : omega(omega), alpha(alpha), alpha_low(alpha - Real(alpha)), inverse_epsilon(1 / epsilon), theta2(theta2) {
    const bool smooth = smooth_theta1 > 0;
    const double start = smooth ? smooth_theta1 : sizeof(Real) == 4 ? 1e-30 : 1e-300;  // above 0, for the logarithm
    const double start2 = start * start, r = log_deficit(smooth ? start2 : 0.0, false), ratio = start / epsilon;
    const double q = std::pow(ratio, alpha), V = omega * std::log1p(q), S = omega * alpha * q / ((1 + q) * start);
    theta1 = Real(start);
    u = Real(smooth ? start2 : 0);
    inverse_u = Real(smooth ? 1 / start2 : 0);
    deficit = Real(r);
    bend = Real((1 + start2) / (2 * (1 - (1 + start2) * r)));
    background_value = Real(V);
    background_bend = Real((2 * V - S * start) * (1 + start2) / (2 * (1 - (1 + start2) * r)));
  }

  IACT_HOST_DEVICE bool narrow() const { return sizeof(Real) == 4 && u <= Real(1.0001 * kNarrow); }
};

// The constants of the losses as the ops take them.
struct WingNumbers {
  double omega, theta1, theta2, alpha, epsilon;

  template <typename Real>
  Wing<Real> constants(bool smooth) const {
    return {omega, smooth ? theta1 : 0, theta2, alpha, epsilon};
  }
};

constexpr WingNumbers kPublished{14.0, 0.05, 0.5, 2.1, 1.0};

// The piece below theta1, which meets value V and bend W there.
template <typename Real>
IACT_HOST_DEVICE void inner_piece(Real difference, Real V, Real W, const Wing<Real>& c, bool narrow, Real& value,
                                  Real& slope) {
  const Real x = difference * difference, t = x * c.inverse_u;
  value = t * (V + W * (c.deficit - t * log_deficit(x, narrow)));
  slope = difference * (Real(2) * c.inverse_u) * (V + W * (c.deficit - t * inverse_of_one_plus(x, narrow)));
}

// `difference` is pred - target. The three pieces share one power: it is taken at e clamped to [theta1, theta2].
// Math gives reciprocal, log1p of a number >= 0, and power(base, exponent, rest of the exponent) of a positive base.
// NaN comes out as NaN.
template <typename Math, typename Real>
IACT_HOST_DEVICE void wing(Real difference, Real target, const Wing<Real>& c, bool narrow, Real& value, Real& slope) {
  const Real e = difference < 0 ? -difference : difference;
  Real nearest = e < c.theta1 ? c.theta1 : e;
  nearest = nearest > c.theta2 ? c.theta2 : nearest;
  const Real p = c.alpha - target, p_low = ((c.alpha - p) - target) + c.alpha_low;  // what rounding p left
  const Real q = Math::power(nearest * c.inverse_epsilon, p, p_low);
  const Real V = c.omega * Math::log1p(q);
  const Real S = c.omega * p * q * Math::reciprocal((Real(1) + q) * nearest);

  Real inner_value, inner_slope;
  inner_piece(difference, V, (Real(2) * V - S * c.theta1) * c.bend, c, narrow, inner_value, inner_slope);
  const bool is_inner = e < c.theta1;
  const Real sign = difference > 0 ? Real(1) : difference < 0 ? Real(-1) : difference;  // 0 at 0, NaN at NaN
  value = is_inner ? inner_value : V + S * (e - nearest);
  slope = is_inner ? inner_slope : S * sign;
}

// The same where the target is 0 and e below theta1: no power, no logarithm, no division.
template <typename Real>
IACT_HOST_DEVICE void background_wing(Real pred, const Wing<Real>& c, bool narrow, Real& value, Real& slope) {
  inner_piece(pred, c.background_value, c.background_bend, c, narrow, value, slope);
}

template <typename Real>
IACT_HOST_DEVICE bool is_background(Real pred, Real target, const Wing<Real>& c) {
  return target == 0 && pred * pred < c.u;
}

}  // namespace iact
