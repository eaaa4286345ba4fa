// iact::deform_columns and its backward on the CPU: checks, allocation, and the walk over images.
#include "deform_columns.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <tuple>
#include <vector>

namespace iact {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype, const Tensor& like) {
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device());
}

template <typename A>
constexpr ScalarType kDtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

// What both directions read: rows [B, H, W, C] and offset [B, S*18, H, W], both in the precision of the coordinates.
template <typename A>
struct Sampling {
  Tensor rows, offset;
  Map map;
  int64_t batch, sets;

  Sampling(const Tensor& rows_, const Tensor& offset_, int64_t heads)
      : rows(torch::stable::contiguous(rows_)),
        offset(offset_),
        map{rows_.size(1), rows_.size(2), heads, rows_.size(3) / heads},
        batch(rows_.size(0)),
        sets(offset_.size(1) / (2 * kTaps)) {
    STD_TORCH_CHECK(offset.scalar_type() == kDtype<A>, "deform_columns: offset must have the dtype of rows");
    STD_TORCH_CHECK(map.channels() == rows_.size(3), "deform_columns: heads must divide the channels");
    STD_TORCH_CHECK(offset.size(0) == batch && offset.size(1) == sets * 2 * kTaps && offset.size(2) == map.height &&
                        offset.size(3) == map.width,
                    "deform_columns: offset must be [B, S*18, H, W] of the batch and size of rows");
  }

  const A* image(int64_t b) const { return static_cast<const A*>(rows.const_data_ptr()) + b * map.pixels() * map.channels(); }

  Offsets<A> offsets(int64_t b, int64_t set) const {
    const A* data = static_cast<const A*>(offset.const_data_ptr());
    return {data + b * offset.stride(0) + set * 2 * kTaps * offset.stride(1), offset.stride(1), offset.stride(2),
            offset.stride(3)};
  }

  // Columns are [S*heads, B*H*W, 9*size].
  int64_t head_stride() const { return batch * map.pixels() * kTaps * map.size; }
  int64_t first_column(int64_t b, int64_t set) const {
    return set * map.heads * head_stride() + b * map.pixels() * kTaps * map.size;
  }
};

template <typename A, typename T>
Tensor columns_of(const Tensor& rows, const Tensor& offset, int64_t heads, ScalarType dtype) {
  const Sampling<A> job(rows, offset, heads);
  Tensor columns = empty({job.sets * heads, job.batch * job.map.pixels(), kTaps * job.map.size}, dtype, rows);
  T* to = static_cast<T*>(columns.mutable_data_ptr());
  torch::stable::parallel_for(0, job.batch * job.sets, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / job.sets, set = i % job.sets;
      sample_image<A, T>(job.map, job.image(b), job.offsets(b, set), to + job.first_column(b, set), job.head_stride());
    }
  });
  return columns;
}

// One image is one task, so that every sum into its pixels is made in the same order whatever the number of threads.
template <typename A, typename T>
std::tuple<Tensor, Tensor> columns_backward(const Tensor& grad_columns, const Tensor& rows, const Tensor& offset,
                                            int64_t heads) {
  const Tensor dense_offset = torch::stable::contiguous(offset), dense_grad = torch::stable::contiguous(grad_columns);
  const Sampling<A> job(rows, dense_offset, heads);
  Tensor grad_rows = empty(rows.sizes(), kDtype<A>, rows), grad_offset = empty(offset.sizes(), kDtype<A>, rows);
  const T* from = static_cast<const T*>(dense_grad.const_data_ptr());
  A* to_rows = static_cast<A*>(grad_rows.mutable_data_ptr());
  A* to_offset = static_cast<A*>(grad_offset.mutable_data_ptr());
  const int64_t image = job.map.pixels() * job.map.channels();
  torch::stable::parallel_for(0, job.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      std::fill_n(to_rows + b * image, image, A(0));
      for (int64_t set = 0; set < job.sets; ++set)
        sample_image_backward<A, T>(job.map, job.image(b), job.offsets(b, set), from + job.first_column(b, set),
                                    job.head_stride(), to_rows + b * image,
                                    to_offset + (b * job.sets + set) * 2 * kTaps * job.map.pixels());
    }
  });
  return {grad_rows, grad_offset};
}

Tensor deform_columns(const Tensor& rows, const Tensor& offset, int64_t heads, ScalarType dtype) {
  if (rows.scalar_type() == ScalarType::Double) return columns_of<double, double>(rows, offset, heads, dtype);
  if (dtype == ScalarType::BFloat16) return columns_of<float, c10::BFloat16>(rows, offset, heads, dtype);
  if (dtype == ScalarType::Half) return columns_of<float, c10::Half>(rows, offset, heads, dtype);
  return columns_of<float, float>(rows, offset, heads, dtype);
}

std::tuple<Tensor, Tensor> deform_columns_backward(const Tensor& grad_columns, const Tensor& rows,
                                                   const Tensor& offset, int64_t heads) {
  switch (grad_columns.scalar_type()) {
    case ScalarType::Double: return columns_backward<double, double>(grad_columns, rows, offset, heads);
    case ScalarType::BFloat16: return columns_backward<float, c10::BFloat16>(grad_columns, rows, offset, heads);
    case ScalarType::Half: return columns_backward<float, c10::Half>(grad_columns, rows, offset, heads);
    default: return columns_backward<float, float>(grad_columns, rows, offset, heads);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iact, CPU, library) {
  library.impl("deform_columns", TORCH_BOX(&deform_columns));
  library.impl("deform_columns_backward", TORCH_BOX(&deform_columns_backward));
}

}  // namespace iact
