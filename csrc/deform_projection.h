// What deform_qkv and deform_attention share on the CPU: their arguments, and the projection of a tile of tokens.
// A is the type they compute in, float, or double for double tensors.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "deform_samples_cpu.h"
#include "products_cpu.h"
#include "scratch.h"
#include "tensors.h"

namespace iact {

template <typename T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename A>
constexpr ScalarType kWide = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

inline Tensor widened(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// Of one image and set of a tensor [B, S*18, H, W].
template <typename A>
Offsets<A> offsets_of(const Tensor& offset, int64_t b, int64_t set) {
  const A* first = const_data<A>(offset) + b * offset.stride(0) + set * 2 * kTaps * offset.stride(1);
  return {first, offset.stride(1), offset.stride(2), offset.stride(3)};
}

// Memory is read as these shapes say.
inline void check_arguments(const Tensor& x, const Tensor& offset, const Tensor& weight,
                            const std::optional<Tensor>& bias, int64_t heads) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be [B, C, H, W]");
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(heads > 0 && channels % heads == 0, "heads must divide the channels of x");
  STD_TORCH_CHECK(offset.dim() == 4 && offset.size(0) == x.size(0) && offset.size(2) == x.size(2) &&
                      offset.size(3) == x.size(3) && (offset.size(1) == 2 * kTaps || offset.size(1) == 6 * kTaps),
                  "offset must be [B, 18 or 54, H, W]");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(0) == 3 * channels && weight.size(1) == channels / heads &&
                      weight.size(2) == 3 && weight.size(3) == 3,
                  "weight must be [3C, C / heads, 3, 3]");
  STD_TORCH_CHECK(!bias || bias->numel() == 3 * channels, "bias must be [3C]");
}

// The arguments. Projection o of q, k and v has the weight's rows from o * C on; an offset set has `parts` of them.
template <typename A>
class Problem {
 public:
  const Map map;
  const int64_t batch, sets, parts;

  Problem(const Tensor& x, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias, int64_t heads)
      : map{x.size(2), x.size(3), heads, x.size(1) / heads},
        batch(x.size(0)),
        sets(offset.size(1) / (2 * kTaps)),
        parts(sets == 1 ? 3 : 1),
        rows_(widened(torch::stable::contiguous(x, MemoryFormat::ChannelsLast), kWide<A>)),
        offset_(widened(offset, kWide<A>)),
        weight_(widened(is_channels_last(weight) ? weight : torch::stable::contiguous(weight), kWide<A>)),
        bias_(3 * x.size(1)),
        image_(const_data<A>(rows_)),
        weights_(const_data<A>(weight_)),
        first_(offsets_of<A>(offset_, 0, 0)),
        offset_image_(offset_.stride(0)) {
    if (!bias) return;
    const Tensor wide = torch::stable::contiguous(widened(*bias, kWide<A>));
    std::copy_n(const_data<A>(wide), bias_.size(), bias_.data());
  }

  int64_t depth() const { return kTaps * map.size; }  // of the products: tap * size + channel
  int64_t tiles() const { return (map.pixels() + kTile - 1) / kTile; }
  int64_t count(int64_t tile) const { return std::min(kTile, map.pixels() - tile * kTile); }
  int64_t output(int64_t o, int64_t head) const { return o * map.channels() + head * map.size; }  // the first one's row

  const A* image(int64_t b) const { return image_ + b * map.pixels() * map.channels(); }
  Offsets<A> offsets(int64_t b, int64_t set) const {
    return {first_.data + b * offset_image_ + set * 2 * kTaps * first_.tap, first_.tap, first_.row, first_.column};
  }
  const A* bias(int64_t output) const { return &bias_[output]; }
  const A* weights(int64_t output) const { return weights_ + output * depth(); }
  // The depths at which the elements of such a row count.
  std::vector<int64_t> depths() const {
    const bool taps_last = weight_.is_contiguous();
    std::vector<int64_t> places(depth());
    for (int64_t i = 0; i < depth(); ++i) places[i] = taps_last ? i % kTaps * map.size + i / kTaps : i;
    return places;
  }

 private:
  const Tensor rows_, offset_, weight_;  // x, channels last; weight, contiguous or channels last
  std::vector<A> bias_;                  // zeros without one
  const A *const image_, *const weights_;
  const Offsets<A> first_;
  const int64_t offset_image_;
};

// Projects groups of tiles of tokens, one head at a time: its weight is brought into the order of the products once per
// group, and stays in the cache. Tiles are counted through all images from `first` on.
template <typename A>
class Projector {
 public:
  static constexpr int64_t kGroup = 8;  // tiles at most

  Projector(const Problem<A>& problem, int64_t first)
      : problem_(problem),
        first_(first),
        places_(problem.depths()),
        samples_(kGroup),
        panels_(problem.parts * outputs() * problem.depth()),
        columns_(kTile * problem.depth()),
        projected_(kTile * outputs()) {
    for (int64_t& place : places_) place *= kPanel;
  }

  void find(int64_t set, int64_t begin, int64_t end) {
    set_ = set, begin_ = begin, end_ = end;
    for (int64_t i = begin; i < end; ++i)
      find_samples(problem_.map, problem_.offsets(image(i), set), token(i), count(i), samples_.data()[i - begin],
                   nullptr);
  }

  // Calls store(o, image, head, token, count, rows) with each projected tile, rows [count, padded(size)].
  template <typename Store>
  void project(int64_t head, const Store& store) {
    for (int64_t part = 0; part < problem_.parts; ++part) load(part, head);
    const Map& map = problem_.map;
    for (int64_t i = begin_; i < end_; ++i) {
      sample(problem_.image(image(i)), {head * map.size, 1, map.size, map.channels()}, samples_.data()[i - begin_],
             count(i), columns_.data());
      for (int64_t part = 0; part < problem_.parts; ++part) {
        multiply_tile(part, head, count(i));
        store(set_ * problem_.parts + part, image(i), head, token(i), count(i), projected_.data());
      }
    }
  }

 private:
  int64_t outputs() const { return padded(problem_.map.size); }
  int64_t image(int64_t i) const { return first_ + i / problem_.tiles(); }
  int64_t token(int64_t i) const { return i % problem_.tiles() * kTile; }
  int64_t count(int64_t i) const { return problem_.count(i % problem_.tiles()); }

  void load(int64_t part, int64_t head) {
    const int64_t size = problem_.map.size, depth = problem_.depth();
    A* panel = panels_.data() + part * outputs() * depth;
    for (int64_t n = 0; n < size; n += kPanel, panel += kPanel * depth) {
      const int64_t count = std::min(kPanel, size - n);
      if (count < kPanel) std::fill_n(panel, kPanel * depth, A(0));
      transpose(problem_.weights(problem_.output(set_ * problem_.parts + part, head) + n), depth, count, depth, panel,
                places_.data());
    }
  }

  void multiply_tile(int64_t part, int64_t head, int64_t count) {
    const int64_t size = problem_.map.size, depth = problem_.depth();
    const A* bias = problem_.bias(problem_.output(set_ * problem_.parts + part, head));
    for (int64_t token = 0; token < count; ++token) {
      A* row = projected_.data() + token * outputs();
      std::fill(std::copy_n(bias, size, row), row + outputs(), A(0));
    }
    multiply(Product<A>{count, depth, size, columns_.data(), depth, 1, panels_.data() + part * outputs() * depth,
                        depth * kPanel, kPanel, projected_.data(), outputs(), true});
  }

  const Problem<A>& problem_;
  const int64_t first_;
  int64_t set_ = 0, begin_ = 0, end_ = 0;
  std::vector<int64_t> places_;  // in a panel, of the elements of a row of the weight
  Scratch<Samples<A>> samples_;
  Scratch<A> panels_, columns_, projected_;
};

// Projects `images` images from `first` on, and hands the tiles to `store` as Projector does. What comes out depends
// neither on the groups nor on the threads.
template <typename A, typename Store>
void project(const Problem<A>& problem, int64_t first, int64_t images, const Store& store) {
  const int64_t tiles = images * problem.tiles(), heads = problem.map.heads, units = problem.sets * heads;
  const int64_t busy = (2 * torch::stable::get_num_threads() + units - 1) / units;
  const int64_t groups = std::min(tiles, std::max(busy, (tiles + Projector<A>::kGroup - 1) / Projector<A>::kGroup));
  torch::stable::parallel_for(0, groups * units, 1, [&](int64_t begin, int64_t end) {
    Projector<A> projector(problem, first);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t set = i / heads % problem.sets, group = i / units;
      if (i == begin || i % heads == 0) projector.find(set, group * tiles / groups, (group + 1) * tiles / groups);
      projector.project(i % heads, store);
    }
  });
}

}  // namespace iact
