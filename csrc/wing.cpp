// iact::wing_loss on the CPU: checks, allocation, and the walk over blocks of pixels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "wing_cpu.h"

namespace iact {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Elements of any supported dtype, read and written as double.
struct Dtype {
  void (*load)(const void* data, int64_t offset, int64_t stride, int64_t count, double* out);
  void (*store)(const double* values, void* data, int64_t offset, int64_t count);
};

template <typename T>
void load(const void* data, int64_t offset, int64_t stride, int64_t count, double* out) {
  const T* from = static_cast<const T*>(data) + offset;
  if (stride == 1)
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<double>(from[i]);
  else
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<double>(from[i * stride]);
}

template <typename T>
void store(const double* values, void* data, int64_t offset, int64_t count) {
  T* to = static_cast<T*>(data) + offset;
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(values[i]);
}

Dtype dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return {load<float>, store<float>};
    case ScalarType::Double: return {load<double>, store<double>};
    case ScalarType::BFloat16: return {load<c10::BFloat16>, store<c10::BFloat16>};
    case ScalarType::Half: return {load<c10::Half>, store<c10::Half>};
    default: STD_TORCH_CHECK(false, "wing_loss: ", name, " must be float32, float64, bfloat16 or float16");
  }
}

// What Tensor::is_contiguous(ChannelsLast) says in full libtorch.
bool is_channels_last(const Tensor& tensor) {
  int64_t expected = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (tensor.size(d) != 1 && tensor.stride(d) != expected) return false;
    expected *= tensor.size(d);
  }
  return true;
}

MemoryFormat format_of(const Tensor& pred) {
  const bool channels_last = pred.dim() == 4 && !pred.is_contiguous() && is_channels_last(pred);
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

bool same_shape(const Tensor& a, const Tensor& b) {
  const auto x = a.sizes(), y = b.sizes();
  return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin());
}

// A weight broadcast to the shape of `pred`, read in the order in which `pred` lies in memory.
class Weight {
 public:
  Weight(const Tensor& tensor, const Tensor& pred, MemoryFormat format)
      : data_(tensor.const_data_ptr()), dtype_(dtype_of(tensor, "weight")) {
    const int64_t dims = pred.dim(), missing = dims - tensor.dim();
    STD_TORCH_CHECK(missing >= 0, "wing_loss: weight has more dimensions than pred");
    for (int64_t i = 0; i < dims; ++i) {
      const int64_t d = format == MemoryFormat::ChannelsLast ? std::array<int64_t, 4>{0, 2, 3, 1}[i] : i;
      const bool repeated = d < missing || tensor.size(d - missing) == 1;
      STD_TORCH_CHECK(repeated || tensor.size(d - missing) == pred.size(d), "wing_loss: weight does not broadcast");
      sizes_.push_back(pred.size(d));
      strides_.push_back(repeated ? 0 : tensor.stride(d - missing));
    }
    if (dims == 0) sizes_ = {1}, strides_ = {0};
  }

  void load(int64_t start, int64_t count, double* out) const {
    const int64_t row_size = sizes_.back(), row_stride = strides_.back();
    for (int64_t run; count > 0; start += run, out += run, count -= run) {
      const int64_t column = start % row_size;
      run = std::min(row_size - column, count);
      dtype_.load(data_, row_offset(start / row_size) + column * row_stride, row_stride, run, out);
    }
  }

 private:
  int64_t row_offset(int64_t row) const {
    int64_t offset = 0;
    for (size_t d = sizes_.size() - 1; d-- > 0; row /= sizes_[d]) offset += row % sizes_[d] * strides_[d];
    return offset;
  }

  const void* data_;
  Dtype dtype_;
  std::vector<int64_t> sizes_, strides_;
};

struct Job {
  const void *pred, *target;
  void *loss, *slope;  // loss is null where only the sum is wanted
  Dtype pred_dtype, target_dtype, loss_dtype;
  std::optional<Weight> weight;
  Wing<double> constants;
};

// Pixels [start, start + count), count <= kWingBlock; returns the sum of their losses.
double run_block(const Job& job, int64_t start, int64_t count) {
  using Block = std::array<double, kWingBlock>;
  alignas(64) Block pred, target, value, slope;
  job.pred_dtype.load(job.pred, start, 1, count, pred.data());
  job.target_dtype.load(job.target, start, 1, count, target.data());
  std::fill(pred.begin() + count, pred.end(), 0.0);  // no difference, no loss
  std::fill(target.begin() + count, target.end(), 0.0);
  wing_block(pred.data(), target.data(), job.constants, value.data(), slope.data());
  if (job.weight) {
    Block& weight = pred;
    job.weight->load(start, count, weight.data());
    for (int64_t i = 0; i < count; ++i) value[i] *= weight[i], slope[i] *= weight[i];
  }
  job.pred_dtype.store(slope.data(), job.slope, start, count);
  if (job.loss) job.loss_dtype.store(value.data(), job.loss, start, count);
  double sums[8] = {};
  for (int64_t i = 0; i < kWingBlock; i += 8)
    for (int64_t lane = 0; lane < 8; ++lane) sums[lane] += value[i + lane];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// The sum over all pixels. Blocks and the order of their sums are fixed, whatever the number of threads.
double run(const Job& job, int64_t pixels) {
  std::vector<double> sums((pixels + kWingBlock - 1) / kWingBlock);
  torch::stable::parallel_for(0, static_cast<int64_t>(sums.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = block * kWingBlock;
      sums[block] = run_block(job, start, std::min(kWingBlock, pixels - start));
    }
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

std::tuple<Tensor, Tensor> wing_loss(const Tensor& pred, const Tensor& target, const std::optional<Tensor>& weight,
                                     bool smooth, double omega, double theta1, double theta2, double alpha,
                                     double epsilon, bool reduce) {
  STD_TORCH_CHECK(same_shape(pred, target), "wing_loss: pred and target must have the same shape");
  const MemoryFormat format = format_of(pred);
  const Tensor dense_pred = torch::stable::contiguous(pred, format);
  const Tensor dense_target = torch::stable::contiguous(target, format);
  const auto empty = [&](torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype, MemoryFormat layout) {
    return torch::stable::empty(sizes, dtype, std::nullopt, pred.device(), std::nullopt, layout);
  };
  const ScalarType wide = pred.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor loss = reduce ? empty({}, wide, MemoryFormat::Contiguous) : empty(pred.sizes(), wide, format);
  Tensor slope = empty(pred.sizes(), pred.scalar_type(), format);

  Job job{dense_pred.const_data_ptr(), dense_target.const_data_ptr(), reduce ? nullptr : loss.mutable_data_ptr(),
          slope.mutable_data_ptr(), dtype_of(pred, "pred"), dtype_of(target, "target"), dtype_of(loss, "loss"),
          std::nullopt, Wing<double>(omega, smooth ? theta1 : 0, theta2, alpha, epsilon)};
  if (weight) job.weight.emplace(*weight, pred, format);
  const double total = run(job, pred.numel());
  const double mean = total / static_cast<double>(std::max<int64_t>(pred.numel(), 1));
  if (reduce) job.loss_dtype.store(&mean, loss.mutable_data_ptr(), 0, 1);
  return {loss, slope};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iact, CPU, library) { library.impl("wing_loss", TORCH_BOX(&wing_loss)); }

}  // namespace iact
