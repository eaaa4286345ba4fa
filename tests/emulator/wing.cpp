// The kernels of the wing losses under the emulator. Arrays of 16-bit floats travel as uint16.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "arrays.h"
#include "emulator.h"

#include "wing_kernels.h"

namespace py = pybind11;

namespace {

using iact::RealOf;

// Calls work(T()) with the type of that name.
template <typename Work>
auto with_dtype(const std::string& dtype, const Work& work) {
  if (dtype == "float32") return work(float());
  if (dtype == "float64") return work(double());
  if (dtype == "bfloat16") return work(c10::BFloat16());
  return work(c10::Half());
}

// Calls work(std::integral_constant<int, N>) with 16 bytes of T, or with one.
template <typename T, typename Work>
auto with_count(bool vector, const Work& work) {
  if (vector) return work(std::integral_constant<int, 16 / sizeof(T)>());
  return work(std::integral_constant<int, 1>());
}

// The order of threads, and what the approximate instructions make of their arguments.
struct Machine {
  uint64_t schedule, hardware;

  emulator::Launch launch(int64_t blocks, size_t dynamic_bytes = 0) const {
    return {dim3(static_cast<unsigned>(blocks)), dim3(iact::kThreads), dynamic_bytes, schedule, hardware};
  }
};

// A kernel's results: slopes, and a sum per block.
template <typename T>
struct Results {
  emulator::Buffer<T> slope;
  emulator::Buffer<RealOf<T>> sums;
  int64_t pixels, blocks;

  Results(int64_t pixels, int64_t blocks)
      : slope("slope", static_cast<size_t>(pixels)),
        sums("sums", static_cast<size_t>(blocks)),
        pixels(pixels),
        blocks(blocks) {}

  // The mean loss, once its kernel has added the sums up; `slopes` is filled.
  double mean(py::array& slopes, const Machine& machine) {
    slope.require_written();
    sums.require_written();
    slope.copy_to(static_cast<T*>(slopes.mutable_data()));
    emulator::Buffer<RealOf<T>> total("total", 1);
    emulator::run(machine.launch(1),
                  [&] { iact::sum_kernel<RealOf<T>>(sums.data(), blocks, static_cast<double>(pixels), total.data()); });
    return static_cast<double>(total.data()[0]);
  }
};

// The mean loss; `slope` gets slopes times `factor`, `losses` (or None) the loss of each pixel. `weight` (or None) has
// the sizes and strides given.
double wing(const std::string& dtype, bool vector, py::array pred, py::array target, std::optional<py::array> weight,
            const std::vector<std::pair<int64_t, int64_t>>& weight_place, bool smooth, std::array<double, 5> numbers,
            double factor, py::array slope, std::optional<py::array> losses, uint64_t schedule, uint64_t hardware) {
  iact::Broadcast place;
  for (const auto& [size, stride] : weight_place) place.append(size, stride);
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    using Real = RealOf<T>;
    const int64_t pixels = static_cast<int64_t>(pred.nbytes() / sizeof(T));
    const auto preds = buffer<T>("pred", pred), targets = buffer<T>("target", target);
    const auto weights = weight ? buffer<Real>("weight", *weight) : emulator::Buffer<Real>("weight", 0);
    emulator::Buffer<Real> each("losses", losses ? static_cast<size_t>(pixels) : 0);
    const int64_t blocks = (pixels + iact::kBlockPixels - 1) / iact::kBlockPixels;
    Results<T> results(pixels, blocks);
    const auto [omega, theta1, theta2, alpha, epsilon] = numbers;
    const auto c = iact::WingNumbers{omega, theta1, theta2, alpha, epsilon}.constants<Real>(smooth);
    const auto run = [&](auto count, auto narrow) {
      emulator::run(Machine{schedule, hardware}.launch(blocks), [&] {
        iact::wing_kernel<T, T, count, narrow>(preds.data(), targets.data(), weight ? weights.data() : nullptr, place,
                                               pixels, c, static_cast<Real>(factor), results.slope.data(),
                                               losses ? each.data() : nullptr, results.sums.data());
      });
    };
    if (iact::Arithmetic<T>::narrow && !c.narrow())
      run(std::integral_constant<int, 1>(), std::false_type());
    else
      with_count<T>(vector, [&](auto count) { run(count, std::bool_constant<iact::Arithmetic<T>::narrow>()); });
    if (losses) each.require_written();
    if (losses) each.copy_to(static_cast<Real*>(losses->mutable_data()));
    return results.mean(slope, {schedule, hardware});
  });
}

// The mean loss of maps pred of that shape (B, K, H, W), stored [B, H, W, K] where `channels_last`.
double heatmap(const std::string& dtype, bool vector, bool channels_last, std::array<int, 4> shape, py::array pred,
               py::array_t<float> landmarks, std::optional<py::array_t<bool>> visible, std::optional<int64_t> rounding,
               bool smooth, double sigma, double map_factor, double factor, py::array slope, uint64_t schedule,
               uint64_t hardware) {
  const auto [batch, channels, height, width] = shape;
  return with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    using Real = RealOf<T>;
    const int64_t image = int64_t{1} * channels * height * width, pixels = batch * image;
    const auto preds = buffer<T>("pred", pred);
    const auto points = buffer<float>("landmarks", landmarks);
    const auto flags = visible ? buffer<bool>("visible", *visible) : emulator::Buffer<bool>("visible", 0);
    const int64_t key = rounding.value_or(0);
    const emulator::Buffer<int64_t> keys("seed", &key, 1);
    const auto c = iact::kPublished.constants<Real>(smooth);
    const iact::Drawing drawing(sigma, rounding.has_value(), map_factor);
    return with_count<T>(vector, [&](auto count) {
      const int across = iact::kThreads * count;
      const iact::LandmarkMaps maps{points.data(),
                                    visible ? flags.data() : nullptr,
                                    rounding ? keys.data() : nullptr,
                                    channels,
                                    height,
                                    width,
                                    across / width,
                                    across % width,
                                    drawing};
      const int64_t chunks = (image + iact::kBlockPixels - 1) / iact::kBlockPixels;
      const int64_t blocks = channels_last ? batch * chunks : batch * channels;
      Results<T> results(pixels, blocks);
      emulator::run(Machine{schedule, hardware}.launch(blocks, channels_last ? 3 * sizeof(float) * channels : 0), [&] {
        if (channels_last)
          iact::heatmap_channels_last_kernel<T, count>(preds.data(), maps, static_cast<int>(chunks), c,
                                                       static_cast<Real>(factor), results.slope.data(),
                                                       results.sums.data());
        else
          iact::heatmap_kernel<T, count>(preds.data(), maps, c, static_cast<Real>(factor), results.slope.data(),
                                         results.sums.data());
      });
      return results.mean(slope, {schedule, hardware});
    });
  });
}

// slope <- slope * by, in place.
void scale(const std::string& dtype, bool vector, py::array slope, double by, uint64_t schedule) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    auto slopes = buffer<T>("slope", slope);
    const auto factor = static_cast<RealOf<T>>(by);
    const emulator::Buffer<RealOf<T>> factors("scale", &factor, 1);
    const int64_t pixels = static_cast<int64_t>(slope.nbytes() / sizeof(T));
    with_count<T>(vector, [&](auto count) {  // 2 blocks: a thread may have to go round more than once
      emulator::run(Machine{schedule, 0}.launch(2),
                    [&] { iact::scale_kernel<T, count>(slopes.data(), pixels, factors.data()); });
    });
    slopes.copy_to(static_cast<T*>(slope.mutable_data()));
  });
}

}  // namespace

PYBIND11_MODULE(wing, module) {
  module.def("wing", &wing);
  module.def("heatmap", &heatmap);
  module.def("scale", &scale);
}
