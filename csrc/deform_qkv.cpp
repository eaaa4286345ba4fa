// iact::deform_qkv and its backward on the CPU: checks, allocation, and the walk over tiles of tokens.
#include <torch/csrc/stable/library.h>

#include <memory>
#include <tuple>

#include "deform_qkv_cpu.h"
#include "tensors.h"

namespace iact {
namespace {

template <typename A>
constexpr ScalarType kWide = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

template <typename T>
struct Arithmetic {
  using Type = float;
};
template <>
struct Arithmetic<double> {
  using Type = double;
};

Tensor widened(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// Of one image and set of a tensor [B, S*18, H, W].
template <typename A>
Offsets<A> offsets_of(const Tensor& offset, int64_t b, int64_t set) {
  const A* first = const_data<A>(offset) + b * offset.stride(0) + set * 2 * kTaps * offset.stride(1);
  return {first, offset.stride(1), offset.stride(2), offset.stride(3)};
}

// What both directions read. Projection o of the 3 stands at rows o * C of the weight; a set has `parts` of them.
template <typename A>
struct Problem {
  Map map;
  int64_t batch, sets, parts;
  Tensor rows, offset, weight;  // rows: x, channels last
  std::vector<A> bias;          // empty without one

  Problem(const Tensor& x, const Tensor& offset_, const Tensor& weight_, const std::optional<Tensor>& bias_,
          int64_t heads)
      : map{x.size(2), x.size(3), heads, x.size(1) / heads},
        batch(x.size(0)),
        sets(offset_.size(1) / (2 * kTaps)),
        parts(3 / sets),
        rows(widened(torch::stable::contiguous(x, MemoryFormat::ChannelsLast), kWide<A>)),
        offset(widened(offset_, kWide<A>)),
        weight(widened(weight_, kWide<A>)) {
    STD_TORCH_CHECK(map.channels() == x.size(1), "deform_qkv: heads must divide the channels");
    STD_TORCH_CHECK((sets == 1 || sets == 3) && offset.size(1) == sets * 2 * kTaps && offset.size(0) == batch &&
                        offset.size(2) == map.height && offset.size(3) == map.width,
                    "deform_qkv: offset must be [B, 18 or 54, H, W]");
    STD_TORCH_CHECK(weight.size(0) == 3 * map.channels() && weight.size(1) == map.size && weight.size(2) == 3 &&
                        weight.size(3) == 3,
                    "deform_qkv: weight must be [3C, C / heads, 3, 3]");
    if (!bias_) return;
    const Tensor wide = torch::stable::contiguous(widened(*bias_, kWide<A>));
    bias.assign(const_data<A>(wide), const_data<A>(wide) + 3 * map.channels());
  }

  int64_t depth() const { return kTaps * map.size; }    // of the forward product
  int64_t outputs() const { return parts * map.size; }  // its columns
  int64_t tiles() const { return (map.pixels() + kTile - 1) / kTile; }
  int64_t count(int64_t tile) const { return std::min(kTile, map.pixels() - tile * kTile); }
  const A* image(int64_t b) const { return const_data<A>(rows) + b * map.pixels() * map.channels(); }
  int64_t output(int64_t set, int64_t head, int64_t column) const {  // the weight's row of a product's column
    return (set * parts + column / map.size) * map.channels() + head * map.size + column % map.size;
  }

  Offsets<A> offsets(int64_t b, int64_t set) const { return offsets_of<A>(offset, b, set); }
};

// Where the weight of one set and head stands: that of column n of the projections at depth k, which is
// tap * size + channel, at output[n] + input[k].
struct WeightPlaces {
  std::vector<int64_t> output, input;

  template <typename A>
  WeightPlaces(const Problem<A>& problem, const Tensor& weight, int64_t set, int64_t head) {
    for (int64_t n = 0; n < problem.outputs(); ++n) output.push_back(problem.output(set, head, n) * weight.stride(0));
    for (int64_t tap = 0; tap < kTaps; ++tap)
      for (int64_t channel = 0; channel < problem.map.size; ++channel)
        input.push_back(channel * weight.stride(1) + tap / 3 * weight.stride(2) + tap % 3 * weight.stride(3));
  }
};

// The weight of every set and head as the right-hand side of a product, in panels of 16 columns: [depth, outputs], or
// with `transposed` [outputs, depth].
template <typename A>
class Panels {
 public:
  Panels(const Problem<A>& problem, bool transposed)
      : depth_(transposed ? problem.outputs() : problem.depth()),
        columns_(transposed ? problem.depth() : problem.outputs()),
        heads_(problem.map.heads),
        values_(problem.sets * heads_ * depth_ * padded(columns_)) {
    torch::stable::parallel_for(0, problem.sets * heads_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const WeightPlaces places(problem, problem.weight, unit / heads_, unit % heads_);
        fill(unit, const_data<A>(problem.weight), transposed ? places.output : places.input,
             transposed ? places.input : places.output);
      }
    });
  }

  // c [rows, padded(columns)] += a [rows, depth] times the weight.
  void multiply(int64_t set, int64_t head, int64_t rows, const A* a, A* c) const {
    const A* b = &values_[(set * heads_ + head) * depth_ * padded(columns_)];
    iact::multiply(Product<A>{rows, depth_, columns_, a, depth_, 1, b, depth_ * kLanes, kLanes, c, padded(columns_)});
  }

 private:
  void fill(int64_t unit, const A* weight, const std::vector<int64_t>& down, const std::vector<int64_t>& across) {
    A* panel = &values_[unit * depth_ * padded(columns_)];
    for (int64_t n = 0; n < columns_; n += kLanes, panel += depth_ * kLanes)
      for (int64_t k = 0; k < depth_; ++k)
        for (int64_t lane = 0; lane < std::min(kLanes, columns_ - n); ++lane)
          panel[k * kLanes + lane] = weight[down[k] + across[n + lane]];
  }

  int64_t depth_, columns_, heads_;
  std::vector<A> values_;
};

// q, k and v, or their gradients: [B, heads, H*W, size] each.
template <typename T>
struct Projections {
  T* data[3];

  T* at(const Map& map, int64_t part, int64_t b, int64_t head, int64_t token) const {
    return data[part] + ((b * map.heads + head) * map.pixels() + token) * map.size;
  }
};

template <typename T, typename A>
void project_tile(const Problem<A>& problem, const Panels<A>& panels, const Projections<T>& to, int64_t unit,
                  Samples<A>& samples, std::vector<A>& columns, std::vector<A>& projected) {
  const Map& map = problem.map;
  const int64_t tile = unit % problem.tiles(), set = unit / problem.tiles() % problem.sets;
  const int64_t b = unit / problem.tiles() / problem.sets, first = tile * kTile, count = problem.count(tile);
  const int64_t outputs = problem.outputs();
  find_samples(map, problem.offsets(b, set), first, count, samples);
  sample(problem.image(b), {0, map.heads, map.size, map.channels()}, samples, count, columns.data());
  for (int64_t head = 0; head < map.heads; ++head) {
    std::fill(projected.begin(), projected.end(), A(0));
    if (!problem.bias.empty())
      for (int64_t token = 0; token < count; ++token)
        for (int64_t n = 0; n < outputs; ++n)
          projected[token * padded(outputs) + n] = problem.bias[problem.output(set, head, n)];
    panels.multiply(set, head, count, columns.data() + head * count * problem.depth(), projected.data());
    for (int64_t part = 0; part < problem.parts; ++part)
      for (int64_t token = 0; token < count; ++token) {
        const A* from = projected.data() + token * padded(outputs) + part * map.size;
        T* place = to.at(map, set * problem.parts + part, b, head, first + token);
        for (int64_t c = 0; c < map.size; ++c) place[c] = static_cast<T>(from[c]);
      }
  }
}

std::tuple<Tensor, Tensor, Tensor> deform_qkv(const Tensor& x, const Tensor& offset, const Tensor& weight,
                                              const std::optional<Tensor>& bias, int64_t heads) {
  const auto empty = [&] {
    return torch::stable::empty({x.size(0), heads, x.size(2) * x.size(3), x.size(1) / heads}, x.scalar_type(),
                                std::nullopt, x.device());
  };
  Tensor q = empty(), k = empty(), v = empty();
  if (x.numel() == 0) return {q, k, v};
  with_dtype("deform_qkv", x, [&](auto zero) {
    using T = decltype(zero);
    using A = typename Arithmetic<T>::Type;
    const Problem<A> problem(x, offset, weight, bias, heads);
    const Panels<A> panels(problem, false);
    const Projections<T> to{{data<T>(q), data<T>(k), data<T>(v)}};
    torch::stable::parallel_for(0, problem.batch * problem.sets * problem.tiles(), 1, [&](int64_t begin, int64_t end) {
      const auto samples = std::make_unique<Samples<A>>();
      std::vector<A> columns(kTile * kTaps * problem.map.channels()), projected(kTile * padded(problem.outputs()));
      for (int64_t i = begin; i < end; ++i) project_tile(problem, panels, to, i, *samples, columns, projected);
    });
  });
  return {q, k, v};
}

// The gradients of one tile's projections of one head, [count, row] with zeros behind the outputs.
template <typename T, typename A>
void load_grads(const Problem<A>& problem, const Projections<const T>& grads, int64_t b, int64_t set, int64_t head,
                int64_t first, int64_t count, int64_t row, A* to) {
  const Map& map = problem.map;
  for (int64_t token = 0; token < count; ++token) {
    for (int64_t part = 0; part < problem.parts; ++part) {
      const T* from = grads.at(map, set * problem.parts + part, b, head, first + token);
      for (int64_t c = 0; c < map.size; ++c) to[token * row + part * map.size + c] = static_cast<A>(from[c]);
    }
    std::fill(to + token * row + problem.outputs(), to + (token + 1) * row, A(0));
  }
}

// The gradients of an image and of its offsets. One image is one task: every sum is made in the same order, whatever
// the number of threads.
template <typename T, typename A>
void backward_of_image(const Problem<A>& problem, const Panels<A>& panels, const Projections<const T>& grads, int64_t b,
                       A* grad_rows, Tensor& grad_offset) {
  const Map& map = problem.map;
  const int64_t row = padded(problem.depth()), outputs = problem.outputs();
  const auto samples = std::make_unique<Samples<A>>();
  std::vector<A> grad(kTile * outputs), columns(map.heads * kTile * row), grad_y(kTile * kTaps), grad_x(kTile * kTaps);
  for (int64_t unit = 0; unit < problem.sets * problem.tiles(); ++unit) {
    const int64_t set = unit / problem.tiles(), tile = unit % problem.tiles();
    const int64_t first = tile * kTile, count = problem.count(tile);
    find_samples(map, problem.offsets(b, set), first, count, *samples);
    std::fill(columns.begin(), columns.end(), A(0));
    for (int64_t head = 0; head < map.heads; ++head) {
      load_grads(problem, grads, b, set, head, first, count, outputs, grad.data());
      panels.multiply(set, head, count, grad.data(), columns.data() + head * count * row);
    }
    scatter(problem.image(b), {0, map.heads, map.size, map.channels()}, *samples, count, columns.data(), row, grad_rows,
            grad_y.data(), grad_x.data());
    const Offsets<A> to = offsets_of<A>(grad_offset, b, set);
    for (int64_t i = 0; i < count * kTaps; ++i) {
      const int64_t token = first + i / kTaps;
      A* place = const_cast<A*>(to.at(i % kTaps, token / map.width, token % map.width));
      place[0] = grad_y[i];
      place[to.tap] = grad_x[i];
    }
  }
}

// The gradients of the weight and the bias of one set and head, summed over all tokens in order.
template <typename T, typename A>
void backward_of_weight(const Problem<A>& problem, const Projections<const T>& grads, int64_t set, int64_t head,
                        Tensor& grad_weight, A* grad_bias) {
  const Map& map = problem.map;
  const int64_t depth = problem.depth(), outputs = problem.outputs(), row = padded(outputs);
  const auto samples = std::make_unique<Samples<A>>();
  std::vector<A> columns(kTile * depth), grad(kTile * row), sums(depth * row), bias(row);
  for (int64_t unit = 0; unit < problem.batch * problem.tiles(); ++unit) {
    const int64_t b = unit / problem.tiles(), tile = unit % problem.tiles(), count = problem.count(tile);
    find_samples(map, problem.offsets(b, set), tile * kTile, count, *samples);
    sample(problem.image(b), {head * map.size, 1, map.size, map.channels()}, *samples, count, columns.data());
    load_grads(problem, grads, b, set, head, tile * kTile, count, row, grad.data());
    multiply(Product<A>{depth, count, outputs, columns.data(), 1, depth, grad.data(), kLanes, row, sums.data(), row});
    for (int64_t token = 0; token < count; ++token)
      for (int64_t n = 0; n < row; ++n) bias[n] += grad[token * row + n];
  }
  A* to = data<A>(grad_weight);
  const WeightPlaces places(problem, grad_weight, set, head);
  for (int64_t n = 0; n < outputs; ++n) {
    for (int64_t k = 0; k < depth; ++k) to[places.output[n] + places.input[k]] = sums[k * row + n];
    grad_bias[problem.output(set, head, n)] = bias[n];
  }
}

// A tensor like `like` in the precision A, to be filled; finished() gives it the dtype of `like`.
template <typename A>
struct Gradient {
  Tensor like, wide;

  explicit Gradient(const Tensor& tensor)
      : like(torch::stable::empty_like(tensor)),
        wide(like.scalar_type() == kWide<A> ? like : torch::stable::empty(like.sizes(), kWide<A>)) {}

  Tensor finished() {
    if (like.scalar_type() != kWide<A>) torch::stable::copy_(like, wide);
    return like;
  }
};

template <typename T, typename A>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Projections<const T>& grads, const Problem<A>& problem,
                                                    const Tensor& x, const Tensor& offset, const Tensor& weight,
                                                    const std::optional<Tensor>& bias) {
  Gradient<A> grad_offset(offset), grad_weight(weight);
  Tensor rows =
      torch::stable::empty(x.sizes(), kWide<A>, std::nullopt, x.device(), std::nullopt, MemoryFormat::ChannelsLast);
  Tensor grad_bias = torch::stable::empty({3 * problem.map.channels()}, kWide<A>, std::nullopt, x.device());
  const Panels<A> panels(problem, true);
  const int64_t image = problem.map.pixels() * problem.map.channels();
  A* const to_rows = data<A>(rows);
  torch::stable::parallel_for(0, problem.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      std::fill_n(to_rows + b * image, image, A(0));
      backward_of_image(problem, panels, grads, b, to_rows + b * image, grad_offset.wide);
    }
  });
  A* const to_bias = data<A>(grad_bias);
  torch::stable::parallel_for(0, problem.sets * problem.map.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit)
      backward_of_weight(problem, grads, unit / problem.map.heads, unit % problem.map.heads, grad_weight.wide, to_bias);
  });
  Tensor grad_x = rows;
  if (x.scalar_type() != kWide<A> || !is_channels_last(x)) {
    grad_x = torch::stable::empty_like(x);
    torch::stable::copy_(grad_x, rows);
  }
  const Tensor no_bias = torch::stable::empty({0}, weight.scalar_type(), std::nullopt, weight.device());
  return {grad_x, grad_offset.finished(), grad_weight.finished(),
          bias ? widened(grad_bias, bias->scalar_type()) : no_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deform_qkv_backward(const Tensor& grad_q, const Tensor& grad_k,
                                                               const Tensor& grad_v, const Tensor& x,
                                                               const Tensor& offset, const Tensor& weight,
                                                               const std::optional<Tensor>& bias, int64_t heads) {
  const Tensor q = torch::stable::contiguous(grad_q), k = torch::stable::contiguous(grad_k);
  const Tensor v = torch::stable::contiguous(grad_v);
  return with_dtype("deform_qkv", x, [&](auto zero) {
    using T = decltype(zero);
    using A = typename Arithmetic<T>::Type;
    const Problem<A> problem(x, offset, weight, bias, heads);
    const Projections<const T> grads{{const_data<T>(q), const_data<T>(k), const_data<T>(v)}};
    return backward(grads, problem, x, offset, weight, bias);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iact, CPU, library) {
  library.impl("deform_qkv", TORCH_BOX(&deform_qkv));
  library.impl("deform_qkv_backward", TORCH_BOX(&deform_qkv_backward));
}

}  // namespace iact
