// The target heatmap of a landmark, one pixel at a time: what iact/heatmaps.py draws whole.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"

namespace iact {

// A 32-bit integer hash with full avalanche.
IACT_HOST_DEVICE uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16);
}

IACT_HOST_DEVICE uint32_t key_of(int64_t seed) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  return mix(mix(static_cast<uint32_t>(bits)) ^ static_cast<uint32_t>(bits >> 32));
}

// A coordinate rounded up with a probability equal to its fraction; `index` is its place among all coordinates.
IACT_HOST_DEVICE float round_randomly(float coordinate, uint32_t key, uint32_t index) {
  const float lower = floorf(coordinate);
  const float uniform = static_cast<float>(mix(index ^ key) >> 8) * (1.0f / (1 << 24));
  return uniform < coordinate - lower ? lower + 1.0f : lower;
}

// How targets are drawn; the same for all landmarks of a call.
struct Drawing {
  float reach;       // heatmap px along x or y beyond which a target is an exact zero
  float falloff;     // the target is 2^(-falloff d^2)
  float map_factor;  // pixels near a landmark weigh 1 + map_factor
  float near2;       // d^2 up to which a pixel counts as near, once moved a pixel towards the landmark

  Drawing(double sigma, bool rounded, double map_factor)
      : reach(rounded ? static_cast<float>(3.0 * sigma) : INFINITY),
        falloff(static_cast<float>(0.5 / (sigma * sigma) / std::log(2.0))),
        map_factor(static_cast<float>(map_factor)),
        near2(static_cast<float>(2.0 * sigma * sigma * std::log(5.0))) {}  // where the Gaussian falls to 0.2
};

// The target at (dx, dy) from its landmark; NaN where the landmark is.
template <typename Math>
IACT_HOST_DEVICE float target_at(float dx, float dy, const Drawing& drawing) {
  const bool outside = fabsf(dx) > drawing.reach || fabsf(dy) > drawing.reach;
  return outside ? 0.0f : Math::exp2(-drawing.falloff * (dx * dx + dy * dy));
}

// The distance along one axis after the step of at most one pixel, inside the map, that brings it nearest.
IACT_HOST_DEVICE float stepped(float distance, float pixel, float last_pixel) {
  const float ahead = distance < 0 ? pixel + 1 : pixel - 1;
  const float closer = fabsf(fabsf(distance) - 1.0f);
  return ahead >= 0 && ahead <= last_pixel ? fminf(fabsf(distance), closer) : fabsf(distance);
}

// Adaptive Wing's weight map: 1 + factor where the target, dilated by 3 x 3, reaches 0.2.
IACT_HOST_DEVICE float map_weight(float dx, float dy, float x, float y, float last_x, float last_y,
                                  const Drawing& drawing) {
  const float nx = stepped(dx, x, last_x), ny = stepped(dy, y, last_y);
  return nx * nx + ny * ny <= drawing.near2 ? 1.0f + drawing.map_factor : 1.0f;
}

}  // namespace iact
