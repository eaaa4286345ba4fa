// The kernels of the deformable projection and of its gradient by x under the emulator. Arrays of 16-bit floats travel
// as int16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>

#include "arrays.h"
#include "emulator.h"

// The lanes of the mask that give the same value.
inline unsigned __match_any_sync(unsigned mask, int value, int line = __builtin_LINE()) {
  unsigned peers = 0;
  emulator::machine.collective({"__match_any_sync", mask, line, false}, &value, [&] {
    for (int lane = 0; lane < emulator::kWarp; ++lane)
      if ((mask >> lane & 1) && emulator::machine.offered<int>(lane) == value) peers |= 1u << lane;
  });
  return peers;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

#include "deform_kernels.h"

namespace py = pybind11;

namespace {

using iact::Deform;
using iact::Reader;

// Calls work(T(), std::integral_constant<int, D>()). To save time float16 comes with two sizes only: but for two
// conversions its kernels are those of bfloat16.
template <typename Work>
void with_type(const std::string& dtype, int size, const Work& work) {
  const auto with_size = [&](auto zero) {
    if (size == 16) return work(zero, std::integral_constant<int, 16>());
    if (size == 48) return work(zero, std::integral_constant<int, 48>());
    if constexpr (std::is_same_v<decltype(zero), c10::Half>) throw py::value_error("float16 has sizes 16 and 48 here");
    else if (size == 32) return work(zero, std::integral_constant<int, 32>());
    else return work(zero, std::integral_constant<int, 64>());
  };
  if (dtype == "float32") return with_size(float());
  if (dtype == "bfloat16") return with_size(c10::BFloat16());
  return with_size(c10::Half());
}

// A problem: (B, H, W, heads, S), whether the offset is in float32, and its strides.
struct Problem {
  std::array<int, 5> shape;
  bool wide;
  std::array<int64_t, 4> strides;

  operator Deform() const {
    const auto [batch, height, width, heads, sets] = shape;
    return {batch, height, width, heads, sets, wide, strides[0], strides[1], strides[2], strides[3]};
  }
  unsigned tiles() const { return (Deform(*this).tokens() + iact::kTileRows - 1) / iact::kTileRows; }
};

void qkv(const std::string& dtype, int size, const Problem& problem, py::array x, py::array offset, py::array weight,
         std::optional<py::array> bias, std::array<py::array, 3> out, uint64_t seed) {
  const Deform deform = problem;
  with_type(dtype, size, [&](auto zero, auto d) {
    using T = decltype(zero);
    const auto run = [&](auto p) {
      const auto xs = buffer<T>("x", x), weights = buffer<T>("weight", weight);
      const auto offsets = buffer<char>("offset", offset);
      const auto biases = bias ? buffer<T>("bias", *bias) : emulator::Buffer<T>("bias", 0);
      auto q = result<T>("q", out[0]), k = result<T>("k", out[1]), v = result<T>("v", out[2]);
      const dim3 grid(problem.tiles(), deform.heads, deform.sets);
      emulator::run({grid, dim3(iact::kTileThreads), iact::kForwardBytes<T, d, p>, seed}, [&] {
        iact::deform_qkv_kernel<T, d, p>(deform, xs.data(), offsets.data(), weights.data(),
                                         bias ? biases.data() : nullptr, q.data(), k.data(), v.data());
      });
      take(q, out[0]), take(k, out[1]), take(v, out[2]);
    };
    if (deform.sets == 3)
      run(std::integral_constant<int, 1>());
    else
      run(std::integral_constant<int, 3>());
  });
}

// starts [S, 9, B, H*W + 1], and readers [S, 9, 4*B*H*W], of which some are left as they are: (int32, float32) pairs.
void lists(const std::string& dtype, const Problem& problem, py::array offset, int range, py::array_t<int> starts,
           py::array readers, uint64_t seed) {
  const Deform deform = problem;
  const auto offsets = buffer<char>("offset", offset);
  auto places = result<int>("starts", starts);
  auto rows = buffer<Reader>("readers", readers);
  const int ranges = (deform.pixels() + range - 1) / range;
  const dim3 grid(deform.sets * iact::kTaps * deform.batch, ranges);
  emulator::run({grid, dim3(32), sizeof(int) * range, seed}, [&] {
    if (dtype == "bfloat16")
      iact::deform_lists_kernel<c10::BFloat16>(deform, offsets.data(), range, places.data(), rows.data());
    else if (dtype == "float16")
      iact::deform_lists_kernel<c10::Half>(deform, offsets.data(), range, places.data(), rows.data());
    else
      iact::deform_lists_kernel<float>(deform, offsets.data(), range, places.data(), rows.data());
  });
  places.copy_to(static_cast<int*>(starts.mutable_data()));
  rows.copy_to(static_cast<Reader*>(readers.mutable_data()));
}

void grad_x(const std::string& dtype, int size, const Problem& problem, std::array<py::array, 3> grads,
            py::array weight, py::array starts, py::array readers, py::array out, uint64_t seed) {
  const Deform deform = problem;
  with_type(dtype, size, [&](auto zero, auto d) {
    using T = decltype(zero);
    const auto q = buffer<T>("grad_q", grads[0]), k = buffer<T>("grad_k", grads[1]), v = buffer<T>("grad_v", grads[2]);
    const auto weights = buffer<T>("weight", weight);
    const auto places = buffer<int>("starts", starts);
    const auto rows = buffer<Reader>("readers", readers);
    auto grad = result<T>("grad_x", out);
    const dim3 grid(problem.tiles(), deform.heads);
    emulator::run({grid, dim3(iact::kTileThreads), iact::kBackwardBytes<T, d>, seed}, [&] {
      iact::deform_qkv_x_kernel<T, d>(deform, q.data(), k.data(), v.data(), weights.data(), places.data(), rows.data(),
                                      grad.data());
    });
    take(grad, out);
  });
}

}  // namespace

PYBIND11_MODULE(deform, module) {
  py::class_<Problem>(module, "Problem").def(py::init<std::array<int, 5>, bool, std::array<int64_t, 4>>());
  module.def("qkv", &qkv);
  module.def("lists", &lists);
  module.def("grad_x", &grad_x);
}
