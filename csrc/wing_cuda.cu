// iact::wing_loss, iact::heatmap_loss and iact::scale_ on CUDA: checks, allocation, and the choice of a kernel.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "stream.h"
#include "tensors.h"
#include "wing_kernels.h"

namespace iact {
namespace {

// Calls work(std::integral_constant<int, N>) with the elements of T to move at a time: 16 bytes of them where a unit
// (a row, or whatever must not be left in the middle of a move) is a multiple of that and memory is aligned, else one.
template <typename T, typename Work>
void with_count(int64_t unit, std::initializer_list<const void*> pointers, const Work& work) {
  constexpr int kCount = 16 / sizeof(T);
  uintptr_t bits = unit % kCount;
  for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer) % 16;
  if (bits == 0)
    work(std::integral_constant<int, kCount>());
  else
    work(std::integral_constant<int, 1>());
}

int64_t blocks_for(int64_t pixels) { return (pixels + kBlockPixels - 1) / kBlockPixels; }

// What both losses return, and one sum per block.
struct Results {
  Tensor loss, slope, sums;

  Results(const Tensor& pred, MemoryFormat format, bool reduce, int64_t blocks)
      : loss(reduce ? empty_scalar(pred, wide(pred)) : empty_like(pred, wide(pred), format)),
        slope(empty_like(pred, pred.scalar_type(), format)),
        sums(torch::stable::empty({blocks}, wide(pred), std::nullopt, pred.device())) {}

  template <typename Real>
  void reduce(int64_t pixels, cudaStream_t stream) {
    sum_kernel<Real><<<1, kThreads, 0, stream>>>(const_data<Real>(sums), sums.numel(),
                                                 static_cast<double>(std::max<int64_t>(pixels, 1)), data<Real>(loss));
    check_launch("sum_kernel");
  }
};

struct GivenTarget {
  Tensor pred, target;  // both dense, in one layout; the target in the dtype of the predictions or of the loss
  std::optional<Tensor> weight;
  Broadcast place;
  bool reduce;
};

template <typename T, typename Target, int kCount, bool narrow>
void launch_wing(const GivenTarget& given, const Wing<RealOf<T>>& constants, Results& results, cudaStream_t stream) {
  using Real = RealOf<T>;
  wing_kernel<T, Target, kCount, narrow><<<results.sums.numel(), kThreads, 0, stream>>>(
      const_data<T>(given.pred), const_data<Target>(given.target),
      given.weight ? const_data<Real>(*given.weight) : nullptr, given.place, given.pred.numel(), constants,
      static_cast<Real>(slope_factor(given.pred, given.reduce)), data<T>(results.slope),
      given.reduce ? nullptr : data<Real>(results.loss), data<Real>(results.sums));
  check_launch("wing_kernel");
}

template <typename T, typename Target>
void launch_wing(const GivenTarget& given, const Wing<RealOf<T>>& constants, Results& results, cudaStream_t stream) {
  if (Arithmetic<T>::narrow && !constants.narrow())  // an unusual theta1: no need for speed
    return launch_wing<T, Target, 1, false>(given, constants, results, stream);
  with_count<T>(given.pred.numel(), {given.pred.const_data_ptr(), given.target.const_data_ptr()}, [&](auto count) {
    launch_wing<T, Target, count, Arithmetic<T>::narrow>(given, constants, results, stream);
  });
}

std::tuple<Tensor, Tensor> wing_loss(const Tensor& pred, const Tensor& target, const std::optional<Tensor>& weight,
                                     bool smooth, double omega, double theta1, double theta2, double alpha,
                                     double epsilon, bool reduce) {
  STD_TORCH_CHECK(same_shape(pred, target), "wing_loss: pred and target must have the same shape");
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device());
  const cudaStream_t stream = current_stream(pred.get_device());
  const MemoryFormat format = format_of(pred);
  const bool same = target.scalar_type() == pred.scalar_type();
  const Tensor readable = same ? target : torch::stable::to(target, wide(pred));
  GivenTarget given{
      torch::stable::contiguous(pred, format), torch::stable::contiguous(readable, format), {}, {}, reduce};
  if (weight) given.weight = torch::stable::to(*weight, wide(pred));
  if (weight) given.place = broadcast("wing_loss", *given.weight, pred, format);
  STD_TORCH_CHECK(!weight || pred.numel() < (int64_t{1} << 32), "wing_loss: fewer than 2^32 pixels can be weighted");
  Results results(pred, format, reduce, blocks_for(pred.numel()));
  with_dtype("the wing losses", pred, [&](auto zero) {
    using T = decltype(zero);
    const auto launch = same ? launch_wing<T, T> : launch_wing<T, RealOf<T>>;
    const auto constants = WingNumbers{omega, theta1, theta2, alpha, epsilon}.constants<RealOf<T>>(smooth);
    if (pred.numel() > 0) launch(given, constants, results, stream);
    if (reduce) results.reduce<RealOf<T>>(pred.numel(), stream);
  });
  return {results.loss, results.slope};
}

LandmarkMaps maps_of(const Tensor& pred, const Tensor& landmarks, const std::optional<Tensor>& visible,
                     const std::optional<Tensor>& seed, const Drawing& drawing) {
  STD_TORCH_CHECK(pred.dim() == 4 && landmarks.numel() == pred.size(0) * pred.size(1) * 2 &&
                      landmarks.scalar_type() == ScalarType::Float,
                  "heatmap_loss: pred must be [B, K, H, W] and landmarks float32 [B, K, 2]");
  STD_TORCH_CHECK(!visible || (visible->numel() * 2 == landmarks.numel() && visible->scalar_type() == ScalarType::Bool),
                  "heatmap_loss: visible must be bool [B, K]");
  STD_TORCH_CHECK(pred.size(1) * pred.size(2) * pred.size(3) < (int64_t{1} << 31),
                  "heatmap_loss: the maps of one image must have fewer than 2^31 pixels");
  return {const_data<float>(landmarks),
          visible ? const_data<bool>(*visible) : nullptr,
          seed ? const_data<int64_t>(*seed) : nullptr,
          static_cast<int>(pred.size(1)),
          static_cast<int>(pred.size(2)),
          static_cast<int>(pred.size(3)),
          0,
          0,
          drawing};
}

template <typename T>
void launch_contiguous(const Tensor& pred, LandmarkMaps maps, const Wing<RealOf<T>>& constants, Results& results,
                       cudaStream_t stream) {
  using Real = RealOf<T>;
  with_count<T>(maps.width, {pred.const_data_ptr()}, [&](auto count) {
    maps.row_step = kThreads * count / maps.width, maps.column_step = kThreads * count % maps.width;
    heatmap_kernel<T, count><<<results.sums.numel(), kThreads, 0, stream>>>(
        const_data<T>(pred), maps, constants, static_cast<Real>(slope_factor(pred, true)), data<T>(results.slope),
        data<Real>(results.sums));
    check_launch("heatmap_kernel");
  });
}

template <typename T>
void launch_channels_last(const Tensor& pred, LandmarkMaps maps, const Wing<RealOf<T>>& constants, Results& results,
                          cudaStream_t stream) {
  using Real = RealOf<T>;
  const int64_t elements = int64_t{1} * maps.channels * maps.height * maps.width;
  const int64_t shared = 3 * sizeof(float) * maps.channels;
  STD_TORCH_CHECK(shared <= 48 * 1024, "heatmap_loss: at most 4096 channels_last heatmaps an image");
  with_count<T>(elements, {pred.const_data_ptr()}, [&](auto count) {
    launch("heatmap_channels_last_kernel", heatmap_channels_last_kernel<T, count>, results.sums.numel(), kThreads,
           shared, stream, const_data<T>(pred), maps, static_cast<int>(blocks_for(elements)), constants,
           static_cast<Real>(slope_factor(pred, true)), data<T>(results.slope), data<Real>(results.sums));
  });
}

std::tuple<Tensor, Tensor> heatmap_loss(const Tensor& pred, const Tensor& landmarks,
                                        const std::optional<Tensor>& visible, const std::optional<Tensor>& seed,
                                        bool smooth, double sigma, double map_factor) {
  const torch::stable::accelerator::DeviceGuard guard(pred.get_device());
  const cudaStream_t stream = current_stream(pred.get_device());
  const MemoryFormat format = format_of(pred);
  const bool channels_last = format == MemoryFormat::ChannelsLast;
  const Tensor dense = torch::stable::contiguous(pred, format), points = torch::stable::contiguous(landmarks);
  std::optional<Tensor> flags;
  if (visible) flags = torch::stable::contiguous(*visible);
  const LandmarkMaps maps = maps_of(pred, points, flags, seed, Drawing(sigma, seed.has_value(), map_factor));
  const int64_t image = pred.size(1) * pred.size(2) * pred.size(3);
  const int64_t blocks = channels_last ? pred.size(0) * blocks_for(image) : pred.size(0) * pred.size(1);
  Results results(pred, format, true, pred.numel() ? blocks : 0);
  with_dtype("the wing losses", pred, [&](auto zero) {
    using T = decltype(zero);
    const auto launch = channels_last ? launch_channels_last<T> : launch_contiguous<T>;
    if (pred.numel() > 0) launch(dense, maps, kPublished.constants<RealOf<T>>(smooth), results, stream);
    results.reduce<RealOf<T>>(pred.numel(), stream);
  });
  return {results.loss, results.slope};
}

void scale(Tensor slope, const Tensor& grad) {
  STD_TORCH_CHECK(grad.numel() == 1 && grad.scalar_type() == wide(slope), "scale_: grad must be a scalar of the loss");
  if (slope.numel() == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(slope.get_device());
  with_dtype("scale_", slope, [&](auto zero) {
    using T = decltype(zero);
    const int64_t blocks = std::min<int64_t>(blocks_for(slope.numel()), 2048);  // enough to fill any GPU
    with_count<T>(slope.numel(), {slope.const_data_ptr()}, [&](auto count) {
      scale_kernel<T, count><<<blocks, kThreads, 0, current_stream(slope.get_device())>>>(data<T>(slope), slope.numel(),
                                                                                          const_data<RealOf<T>>(grad));
      check_launch("scale_kernel");
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(iact_cuda, library) {
  library.def(
      "wing_loss(Tensor pred, Tensor target, Tensor? weight, bool smooth, float omega, float theta1, float theta2, "
      "float alpha, float epsilon, bool reduce) -> (Tensor loss, Tensor slope)");
  library.def(
      "heatmap_loss(Tensor pred, Tensor landmarks, Tensor? visible, Tensor? seed, bool smooth, float sigma, "
      "float map_factor) -> (Tensor, Tensor)");
  library.def("scale_(Tensor(a!) slope, Tensor grad) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(iact_cuda, CUDA, library) {
  library.impl("wing_loss", TORCH_BOX(&wing_loss));
  library.impl("heatmap_loss", TORCH_BOX(&heatmap_loss));
  library.impl("scale_", TORCH_BOX(&scale));
}

}  // namespace iact
