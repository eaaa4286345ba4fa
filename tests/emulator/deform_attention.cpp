// The kernel of the whole attention on small maps under the emulator. Arrays of 16-bit floats travel as int16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <optional>
#include <string>

#include "arrays.h"
#include "emulator.h"

#include "attention_kernels.h"
#include "deform_tiles.h"

namespace {

int left_out = 0;  // the line of a barrier of the kernel that threads pass without waiting, to see it missed

}  // namespace

// only the barriers in the text of this kernel
#define __syncthreads() (__LINE__ == left_out ? void() : __syncthreads(__LINE__))
#define __syncwarp() (__LINE__ == left_out ? void() : __syncwarp(~0u, __LINE__))
#define wait_for_block() (__LINE__ == left_out ? void() : wait_for_block())
#include "deform_attention_kernels.h"
#undef __syncthreads
#undef __syncwarp
#undef wait_for_block

namespace py = pybind11;

namespace {

// Calls work(T(), D). To save time float16 comes with one size only: but for two conversions its kernels are those of
// bfloat16.
template <typename Work>
void with_type(const std::string& dtype, int size, const Work& work) {
  const auto with_size = [&](auto zero) {
    if (size == 48) return work(zero, std::integral_constant<int, 48>());
    if constexpr (std::is_same_v<decltype(zero), c10::Half>) throw py::value_error("float16 has size 48 here");
    else if (size == 16) return work(zero, std::integral_constant<int, 16>());
    else if (size == 32) return work(zero, std::integral_constant<int, 32>());
    else return work(zero, std::integral_constant<int, 64>());
  };
  if (dtype == "float32") return with_size(float());
  if (dtype == "bfloat16") return with_size(c10::BFloat16());
  return with_size(c10::Half());
}

// shape: (B, H, W, heads, S); strides: of the offset, which is in float32 if `wide`. `skipped` is a line of the text
// of the kernel, or 0.
void run(const std::string& dtype, int size, std::array<int, 5> shape, bool wide, std::array<int64_t, 4> strides,
         py::array x, py::array offset, py::array weight, std::optional<py::array> bias, py::array out, uint64_t seed,
         uint64_t hardware, int skipped) {
  const auto [batch, height, width, heads, sets] = shape;
  const iact::Deform deform{batch, height, width, heads, sets, wide, strides[0], strides[1], strides[2], strides[3]};
  const float scale = 1 / std::sqrt(static_cast<float>(size));
  const iact::Attention attention{heads, height * width, size, true, scale, iact::exponent_of(scale)};
  left_out = skipped;
  with_type(dtype, size, [&](auto zero, auto d) {
    using T = decltype(zero);
    const auto xs = buffer<T>("x", x), weights = buffer<T>("weight", weight);
    const auto offsets = buffer<char>("offset", offset);
    const auto biases = bias ? buffer<T>("bias", *bias) : emulator::Buffer<T>("bias", 0);
    auto outs = result<T>("out", out);
    const size_t bytes = iact::map_bytes<T, d>(iact::map_rows(deform.pixels()));
    const auto launch = [&](auto s) {
      emulator::run({dim3(batch * heads), dim3(iact::kMapThreads), bytes, seed, hardware}, [&] {
        iact::deform_attention_kernel<T, d, s>(deform, attention, xs.data(), offsets.data(), weights.data(),
                                               bias ? biases.data() : nullptr, outs.data());
      });
    };
    if (sets == 3)
      launch(std::integral_constant<int, 3>());
    else
      launch(std::integral_constant<int, 1>());
    take(outs, out);
  });
}

}  // namespace

PYBIND11_MODULE(deform_attention, module) { module.def("run", &run); }
