// The kernels of the gradients of offset, weight and bias of the deformable projection under the emulator. Arrays of
// 16-bit floats travel as int16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "arrays.h"
#include "emulator.h"

#include "deform_gradients.h"

namespace py = pybind11;

namespace {

using iact::Deform;

// (B, H, W, heads, S), whether the offset is in float32, and its strides.
using Problem = std::tuple<std::array<int, 5>, bool, std::array<int64_t, 4>>;

Deform deform_of(const Problem& problem) {
  const auto& [shape, wide, strides] = problem;
  const auto [batch, height, width, heads, sets] = shape;
  return {batch, height, width, heads, sets, wide, strides[0], strides[1], strides[2], strides[3]};
}

// Calls work(T(), D, P), the numbers as std::integral_constant.
template <typename Work>
void with_type(const std::string& dtype, int size, int sets, const Work& work) {
  const auto with_size = [&](auto zero, auto d) {
    if (sets == 1) return work(zero, d, std::integral_constant<int, 3>());
    return work(zero, d, std::integral_constant<int, 1>());
  };
  const auto with_dtype = [&](auto zero) {
    switch (size) {
      case 16: return with_size(zero, std::integral_constant<int, 16>());
      case 32: return with_size(zero, std::integral_constant<int, 32>());
      case 48: return with_size(zero, std::integral_constant<int, 48>());
      default: return with_size(zero, std::integral_constant<int, 64>());
    }
  };
  if (dtype == "float32") return with_dtype(float());
  if (dtype == "bfloat16") return with_dtype(c10::BFloat16());
  return with_dtype(c10::Half());
}

emulator::Launch launch_of(const iact::GradientLaunch& launch, uint64_t seed) {
  const size_t shared = static_cast<size_t>(launch.shared_bytes);
  return {dim3(launch.grid_x, launch.grid_y, launch.grid_z), dim3(launch.threads), shared, seed};
}

// The gradients of q, k and v.
template <typename T>
struct Gradients {
  emulator::Buffer<T> q, k, v;

  explicit Gradients(const std::array<py::array, 3>& arrays)
      : q(buffer<T>("grad_q", arrays[0])), k(buffer<T>("grad_k", arrays[1])), v(buffer<T>("grad_v", arrays[2])) {}

  iact::ProjectedGradients<T> pointers() const { return {q.data(), k.data(), v.data()}; }
};

// Fills `out` with the gradient of the offset; `taps` of each block, or 0 for what offset_taps() says.
void offset_gradient(const std::string& dtype, int size, const Problem& problem, const std::array<py::array, 3>& grads,
                     py::array x, py::array offset, py::array weight, int taps, py::array out, uint64_t seed) {
  const Deform deform = deform_of(problem);
  with_type(dtype, size, deform.sets, [&](auto zero, auto d, auto p) {
    using T = decltype(zero);
    const Gradients<T> gradients(grads);
    const auto xs = buffer<T>("x", x), weights = buffer<T>("weight", weight);
    const auto offsets = buffer<char>("offset", offset);
    auto to = result<float>("grad_offset", out);
    auto launch = iact::offset_launch<T, d, p>(deform);
    const int own = taps ? taps : iact::offset_taps<T, d, p>(deform);
    launch.grid_z = static_cast<unsigned>(iact::kTaps / own);
    emulator::run(launch_of(launch, seed), [&] {
      iact::deform_qkv_offset_kernel<T, d, p>(deform, gradients.pointers(), xs.data(), offsets.data(), weights.data(),
                                              own, to.data());
    });
    take(to, out);
  });
}

// Fills the gradients of weight and bias (or None); `slices` of the tokens, or 0 for what weight_slices() says.
void weight_gradient(const std::string& dtype, int size, const Problem& problem, const std::array<py::array, 3>& grads,
                     py::array x, py::array offset, int slices, py::array out, std::optional<py::array> out_bias,
                     uint64_t seed) {
  const Deform deform = deform_of(problem);
  with_type(dtype, size, deform.sets, [&](auto zero, auto d, auto p) {
    using T = decltype(zero);
    const Gradients<T> gradients(grads);
    const auto xs = buffer<T>("x", x);
    const auto offsets = buffer<char>("offset", offset);
    auto to = result<T>("grad_weight", out), to_bias = result<T>("grad_bias", out_bias.value_or(out));
    auto launch = iact::weight_launch<T, d, p>(deform);
    if (slices) launch.grid_y = static_cast<unsigned>(slices);
    const int64_t elements = iact::partial_elements(deform, d), weights = iact::weight_elements(deform, d);
    emulator::Buffer<float> partials("partials", static_cast<size_t>(launch.grid_y * elements));
    emulator::run(launch_of(launch, seed), [&] {
      iact::deform_qkv_weight_kernel<T, d, p>(deform, gradients.pointers(), xs.data(), offsets.data(), partials.data());
    });
    partials.require_written();
    emulator::run(launch_of(iact::weight_sum_launch(deform, d), seed), [&] {
      iact::deform_qkv_weight_sum_kernel<T>(partials.data(), static_cast<int>(launch.grid_y), weights,
                                            elements - weights, to.data(), out_bias ? to_bias.data() : nullptr);
    });
    take(to, out);
    if (out_bias) take(to_bias, *out_bias);
  });
}

}  // namespace

PYBIND11_MODULE(deform_gradients, module) {
  module.def("offset_gradient", &offset_gradient);
  module.def("weight_gradient", &weight_gradient);
}
