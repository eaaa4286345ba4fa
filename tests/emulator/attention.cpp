// The kernels of attention under the emulator. Arrays of 16-bit floats travel as uint16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <type_traits>
#include <vector>

#include "emulator.h"

#include "attention_kernels.h"

namespace py = pybind11;

namespace {

// The tensors of one call: inputs of a common shape and common strides, contiguous results.
struct Case {
  std::string dtype;
  std::array<int, 4> shape;       // B, h, N, D
  std::array<int64_t, 3> stride;  // of image, head and token
  bool aligned;
  double scale;
  int tiles;  // of a warp
  uint64_t schedule, hardware;

  iact::Attention attention() const {
    const float factor = static_cast<float>(scale);
    return {shape[1], shape[2], shape[3], aligned, factor, iact::exponent_of(factor)};
  }

  size_t queries() const { return size_t(shape[0]) * shape[1] * shape[2]; }

  template <class P, typename Kernel>
  void run(int roles, const Kernel& kernel) const {
    const unsigned blocks = roles * shape[0] * shape[1] * P::blocks(shape[2]);
    emulator::run({dim3(blocks), dim3(iact::kAttentionThreads), P::kBytes, schedule, hardware}, kernel);
  }
};

template <typename T>
struct Input {
  emulator::Buffer<T> buffer;
  iact::Heads<const T> heads;

  Input(const Case& c, const char* name, const py::array& array)
      : buffer(name, static_cast<const T*>(array.data()), size_t(array.nbytes()) / sizeof(T)),
        heads{static_cast<const emulator::Buffer<T>&>(buffer).data(), c.stride[0], c.stride[1], c.stride[2]} {}
};

template <typename T>
struct Output {
  emulator::Buffer<T> buffer;

  Output(const char* name, size_t count) : buffer(name, count) {}

  void give(py::array& array) {
    buffer.require_written();
    buffer.copy_to(static_cast<T*>(array.mutable_data()));
  }
};

// Calls work(T(), kDim, kTiles) with the most tiles that the kernel has, up to those wanted.
template <bool kBackward, int kDim, typename T, typename Work>
void with_tiles(const Case& c, const Work& work) {
  constexpr int kMost = kBackward ? iact::kMostBackward<T, kDim> : iact::kMostForward<T, kDim>;
  if (c.tiles == 1)
    work(T(), std::integral_constant<int, kDim>(), std::integral_constant<int, 1>());
  else
    work(T(), std::integral_constant<int, kDim>(), std::integral_constant<int, kMost>());
}

// To save time float16 comes with one size only: but for two conversions its kernels are those of bfloat16.
template <bool kBackward, typename Work>
void dispatch(const Case& c, const Work& work) {
  const auto with_dtype = [&](auto zero) {
    using T = decltype(zero);
    const int size = c.shape[3];
    if (size > 32 && size <= 48) return with_tiles<kBackward, 48, T>(c, work);
    if constexpr (std::is_same_v<T, c10::Half>) throw py::value_error("float16 has sizes 33 to 48 here");
    else if (size <= 16) with_tiles<kBackward, 16, T>(c, work);
    else if (size <= 32) with_tiles<kBackward, 32, T>(c, work);
    else with_tiles<kBackward, 64, T>(c, work);
  };
  if (c.dtype == "float32") return with_dtype(float());
  if (c.dtype == "bfloat16") return with_dtype(c10::BFloat16());
  with_dtype(c10::Half());
}

void forward(const Case& c, py::array q, py::array k, py::array v, py::array out, py::array logsumexp) {
  dispatch<false>(c, [&](auto zero, auto dim, auto tiles) {
    using T = decltype(zero);
    const Input<T> queries(c, "q", q), keys(c, "k", k), values(c, "v", v);
    Output<T> result("out", c.queries() * c.shape[3]);
    Output<float> logarithms("logsumexp", c.queries());
    c.run<iact::Forward<T, dim, tiles>>(1, [&] {
      iact::attention_kernel<T, dim, tiles>(queries.heads, keys.heads, values.heads, c.attention(),
                                            result.buffer.data(), logarithms.buffer.data());
    });
    result.give(out);
    logarithms.give(logsumexp);
  });
}

// `saved` are q, k, v, the gradient and the result; `gradients` those of q, k and v.
void backward(const Case& c, std::vector<py::array> saved, py::array_t<float> logsumexp,
              std::vector<py::array> gradients) {
  dispatch<true>(c, [&](auto zero, auto dim, auto tiles) {
    using T = decltype(zero);
    const Input<T> q(c, "q", saved[0]), k(c, "k", saved[1]), v(c, "v", saved[2]), grad(c, "grad", saved[3]),
        out(c, "out", saved[4]);
    const emulator::Buffer<float> logarithms("logsumexp", logsumexp.data(), c.queries());
    const size_t elements = c.queries() * c.shape[3];
    Output<T> grad_q("grad_q", elements), grad_k("grad_k", elements), grad_v("grad_v", elements);
    const iact::Saved<T> inputs{q.heads, k.heads, v.heads, grad.heads, out.heads, logarithms.data()};
    const iact::Gradients<T> results{grad_q.buffer.data(), grad_k.buffer.data(), grad_v.buffer.data()};
    c.run<iact::Backward<T, dim, tiles>>(
        2, [&] { iact::attention_backward_kernel<T, dim, tiles>(inputs, results, c.attention()); });
    grad_q.give(gradients[0]);
    grad_k.give(gradients[1]);
    grad_v.give(gradients[2]);
  });
}

}  // namespace

PYBIND11_MODULE(attention, module) {
  py::class_<Case>(module, "Case")
      .def(py::init([](std::string dtype, std::array<int, 4> shape, std::array<int64_t, 3> stride, bool aligned,
                       double scale, int tiles, uint64_t schedule, uint64_t hardware) {
        return Case{dtype, shape, stride, aligned, scale, tiles, schedule, hardware};
      }));
  module.def("forward", &forward);
  module.def("backward", &backward);
}
