// iact::wing_loss and iact::heatmap_loss on the CPU: checks, allocation, and the walk over blocks of pixels.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "drawn_target.h"
#include "tensors.h"
#include "wing_cpu.h"

namespace iact {
namespace {

template <typename Real>
using Block = std::array<Real, kWingBlock>;

// Elements of any supported dtype, read and written as Real.
template <typename Real>
struct Elements {
  void (*load)(const void* data, int64_t offset, int64_t count, Real* out);
  void (*store)(const Real* values, int64_t count, void* data, int64_t offset);
};

template <typename Real, typename T>
constexpr Elements<Real> elements = {[](const void* data, int64_t offset, int64_t count, Real* out) {
                                       convert(static_cast<const T*>(data) + offset, count, out);
                                     },
                                     [](const Real* values, int64_t count, void* data, int64_t offset) {
                                       convert_back(values, count, static_cast<T*>(data) + offset);
                                     }};

template <typename Real>
Elements<Real> elements_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return elements<Real, float>;
    case ScalarType::Double:
      return elements<Real, double>;
    case ScalarType::BFloat16:
      return elements<Real, c10::BFloat16>;
    case ScalarType::Half:
      return elements<Real, c10::Half>;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
  }
}

// A source of targets fills a block of them, in the order of memory, and says whether it filled weights too. It may
// replace predictions that are to count for nothing.
template <typename Real>
class GivenTarget {
 public:
  GivenTarget(const Tensor& target, const std::optional<Tensor>& weight, const Tensor& pred, MemoryFormat format)
      : target_(torch::stable::contiguous(target, format)), target_elements_(elements_of<Real>(target, "target")) {
    if (!weight) return;
    weight_ = weight->const_data_ptr();
    weight_elements_ = elements_of<Real>(*weight, "weight");
    place_ = broadcast("wing_loss", *weight, pred, format);
  }

  bool load(int64_t start, int64_t count, Real*, Real* target, Real* weight) const {
    target_elements_.load(target_.const_data_ptr(), start, count, target);
    if (weight_) load_weight(start, count, weight);
    return weight_;
  }

 private:
  void load_weight(int64_t start, int64_t count, Real* out) const {
    const int64_t size = place_.sizes[place_.dims - 1], stride = place_.strides[place_.dims - 1];
    for (int64_t run; count > 0; start += run, out += run, count -= run) {
      run = std::min(size - start % size, count);
      const int64_t first = place_.offset(start);
      if (stride == 1) {
        weight_elements_.load(weight_, first, run, out);
      } else {
        for (int64_t i = 0; i < (stride ? run : 1); ++i) weight_elements_.load(weight_, first + i * stride, 1, out + i);
        if (!stride) std::fill(out + 1, out + run, out[0]);
      }
    }
  }

  Tensor target_;
  Elements<Real> target_elements_, weight_elements_{};
  const void* weight_ = nullptr;
  Broadcast place_;
};

template <typename Real>
struct Job {
  const void* pred;
  void *slope, *loss;  // loss is null where only the sum is wanted
  Elements<Real> pred_elements, loss_elements;
  Wing<Real> constants;
  Real factor;  // of the slopes
};

// Pixels [start, start + count), count <= kWingBlock; returns the sum of their losses.
template <typename Real, typename Source>
double run_block(const Job<Real>& job, const Source& source, int64_t start, int64_t count) {
  alignas(64) Block<Real> pred, target, weight, value, slope;
  job.pred_elements.load(job.pred, start, count, pred.data());
  const bool weighted = source.load(start, count, pred.data(), target.data(), weight.data());
  std::fill(pred.begin() + count, pred.end(), Real(0));  // no difference, no loss
  std::fill(target.begin() + count, target.end(), Real(0));
  std::fill(weight.begin() + count, weight.end(), Real(0));
  const Real* weights = weighted ? weight.data() : nullptr;
  const double sum =
      wing_block(pred.data(), target.data(), weights, job.factor, job.constants, value.data(), slope.data());
  job.pred_elements.store(slope.data(), count, job.slope, start);
  if (job.loss) job.loss_elements.store(value.data(), count, job.loss, start);
  return sum;
}

// The sum over all pixels. Blocks and the order of their sums are fixed, whatever the number of threads.
template <typename Real, typename Source>
double run(const Job<Real>& job, const Source& source, int64_t pixels) {
  std::vector<double> sums((pixels + kWingBlock - 1) / kWingBlock);
  torch::stable::parallel_for(0, static_cast<int64_t>(sums.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = block * kWingBlock;
      sums[block] = run_block(job, source, start, std::min(kWingBlock, pixels - start));
    }
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

// Loss and slope of `pred`; make_source(pred, format) gives the targets in the arithmetic of its first argument.
template <typename Real, typename MakeSource>
std::tuple<Tensor, Tensor> loss_and_slope(const Tensor& pred, const Wing<Real>& constants, bool reduce,
                                          const MakeSource& make_source) {
  const MemoryFormat format = format_of(pred);
  const Tensor dense = torch::stable::contiguous(pred, format);
  Tensor slope = empty_like(pred, pred.scalar_type(), format);
  Tensor loss = reduce ? empty_scalar(pred, wide(pred)) : empty_like(pred, wide(pred), format);
  const Job<Real> job{dense.const_data_ptr(),
                      slope.mutable_data_ptr(),
                      reduce ? nullptr : loss.mutable_data_ptr(),
                      elements_of<Real>(pred, "pred"),
                      elements_of<Real>(loss, "loss"),
                      constants,
                      static_cast<Real>(slope_factor(pred, reduce))};
  const double total = run(job, make_source(Real(), format), pred.numel());
  const double mean = total / static_cast<double>(std::max<int64_t>(pred.numel(), 1));
  if (reduce) elements_of<double>(loss, "loss").store(&mean, 1, loss.mutable_data_ptr(), 0);
  return {loss, slope};
}

// In float where its digits and the short series serve, else in double.
template <typename MakeSource>
std::tuple<Tensor, Tensor> dispatch(const Tensor& pred, const WingNumbers& numbers, bool smooth, bool reduce,
                                    const MakeSource& make_source) {
  const auto constants = numbers.constants<float>(smooth);
  if (pred.scalar_type() != ScalarType::Double && constants.narrow())
    return loss_and_slope(pred, constants, reduce, make_source);
  return loss_and_slope(pred, numbers.constants<double>(smooth), reduce, make_source);
}

std::tuple<Tensor, Tensor> wing_loss(const Tensor& pred, const Tensor& target, const std::optional<Tensor>& weight,
                                     bool smooth, double omega, double theta1, double theta2, double alpha,
                                     double epsilon, bool reduce) {
  STD_TORCH_CHECK(same_shape(pred, target), "wing_loss: pred and target must have the same shape");
  return dispatch(pred, {omega, theta1, theta2, alpha, epsilon}, smooth, reduce, [&](auto real, MemoryFormat format) {
    return GivenTarget<decltype(real)>(target, weight, pred, format);
  });
}

std::tuple<Tensor, Tensor> heatmap_loss(const Tensor& pred, const Tensor& landmarks,
                                        const std::optional<Tensor>& visible, const std::optional<Tensor>& seed,
                                        bool smooth, double sigma, double map_factor) {
  const Landmarks points(pred, landmarks, visible, seed);
  const Drawing drawing(sigma, seed.has_value(), map_factor);
  return dispatch(pred, kPublished, smooth, true, [&](auto real, MemoryFormat format) {
    return DrawnTarget<decltype(real)>(points, drawing, pred, format);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iact, CPU, library) {
  library.impl("wing_loss", TORCH_BOX(&wing_loss));
  library.impl("heatmap_loss", TORCH_BOX(&heatmap_loss));
}

}  // namespace iact
