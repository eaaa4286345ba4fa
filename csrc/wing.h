// Smooth Wing and Adaptive Wing at one pixel: the value and its slope along the prediction, from one evaluation.
//
// The published inner piece K log(1 + e^2) + M e^2 has K = 75217 and M = -74919 at y = 1 and loses every digit in fp32.
// Here it is written around the point where it meets the middle piece, with t = e^2 / theta1^2:
//   loss = t (V + W (r(theta1^2) - t r(e^2))),  r(x) = (x - log(1 + x)) / x^2
// where V and S are value and slope of the middle piece at theta1; all terms are of the size of the result.
#pragma once

#ifdef __CUDACC__
#define IACT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define IACT_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace iact {

// r(x) = (x - log(1 + x)) / x^2 for x in [0, 1], to 3e-10, and to the last bit of a double below x = 0.09.
// With z = x / (2 + x): log(1 + x) = 2 z (1 + z^2 / 3 + z^4 / 5 + ...) and x - 2 z = x z, so nothing cancels.
template <typename Real>
IACT_HOST_DEVICE Real log_deficit(Real x) {
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

// What does not depend on the pixel. theta1 = 0 gives Adaptive Wing, which has no inner piece.
template <typename Real>
struct Wing {
  Real omega, alpha, inverse_epsilon, theta1, theta2, lowest;
  Real inverse_u, deficit, bend;  // 1 / theta1^2, r(theta1^2), and W / (2 V - S theta1)

  Wing(double omega, double theta1, double theta2, double alpha, double epsilon)
      : omega(omega), alpha(alpha), inverse_epsilon(1 / epsilon), theta1(theta1), theta2(theta2) {
    const double u = theta1 * theta1, r = log_deficit(u);
    lowest = Real(theta1 > 0 ? theta1 : 1e-300);  // keeps the logarithm finite at e = 0, where the power is 0 all the same
    inverse_u = Real(theta1 > 0 ? 1 / u : 0);
    deficit = Real(r);
    bend = Real((1 + u) / (2 * (1 - (1 + u) * r)));
  }
};

// `difference` is pred - target. The three pieces share one power: it is taken at e clamped to [theta1, theta2].
// Math gives log2 (of a positive number), exp2 and log1p (of a number >= 0). NaN comes out as NaN.
template <typename Math, typename Real>
IACT_HOST_DEVICE void wing(Real difference, Real target, const Wing<Real>& c, Real& value, Real& slope) {
  const Real e = difference < 0 ? -difference : difference;
  Real nearest = e < c.lowest ? c.lowest : e;
  nearest = nearest > c.theta2 ? c.theta2 : nearest;
  const Real p = c.alpha - target;
  const Real q = Math::exp2(p * Math::log2(nearest * c.inverse_epsilon));
  const Real V = c.omega * Math::log1p(q);
  const Real S = c.omega * p * q / ((Real(1) + q) * nearest);

  const Real x = e * e, t = x * c.inverse_u;
  const Real W = (Real(2) * V - S * c.theta1) * c.bend;
  const Real inner = t * (V + W * (c.deficit - t * log_deficit(x)));
  const Real inner_slope = Real(2) * e * c.inverse_u * (V + W * (c.deficit - t / (Real(1) + x)));

  const bool is_inner = e < c.theta1;
  const Real magnitude = is_inner ? inner_slope : S;
  const Real sign = difference > 0 ? Real(1) : difference < 0 ? Real(-1) : difference;  // 0 at 0, NaN at NaN
  value = is_inner ? inner : V + S * (e - nearest);
  slope = magnitude * sign;
}

}  // namespace iact
