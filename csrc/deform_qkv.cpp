// iact::deform_qkv and its backward on the CPU: allocation, and the walk over tiles of tokens.
#include <torch/csrc/stable/library.h>

#include <memory>
#include <tuple>

#include "deform_projection.h"

namespace iact {
namespace {

// q, k and v, or their gradients: [B, heads, H*W, size] each.
template <typename T>
struct Projections {
  T* data[3];

  T* at(const Map& map, int64_t o, int64_t b, int64_t head, int64_t token) const {
    return data[o] + ((b * map.heads + head) * map.pixels() + token) * map.size;
  }
};

std::tuple<Tensor, Tensor, Tensor> deform_qkv(const Tensor& x, const Tensor& offset, const Tensor& weight,
                                              const std::optional<Tensor>& bias, int64_t heads) {
  check_arguments(x, offset, weight, bias, heads);
  const auto empty = [&] {
    return torch::stable::empty({x.size(0), heads, x.size(2) * x.size(3), x.size(1) / heads}, x.scalar_type(),
                                std::nullopt, x.device());
  };
  Tensor q = empty(), k = empty(), v = empty();
  if (x.numel() == 0) return {q, k, v};
  with_dtype("deform_qkv", x, [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    const Problem<A> problem(x, offset, weight, bias, heads);
    const Map& map = problem.map;
    const Projections<T> to{{data<T>(q), data<T>(k), data<T>(v)}};
    project(problem, 0, problem.batch,
            [&](int64_t o, int64_t b, int64_t head, int64_t token, int64_t count, const A* rows) {
              for (int64_t i = 0; i < count; ++i, rows += padded(map.size))
                std::transform(rows, rows + map.size, to.at(map, o, b, head, token + i),
                               [](A value) { return static_cast<T>(value); });
            });
  });
  return {q, k, v};
}

// The weight of every projection and head as the right-hand side of the products that bring gradients back to the
// columns: [size, depth] in panels.
template <typename A>
class BackwardPanels {
 public:
  explicit BackwardPanels(const Problem<A>& problem)
      : size_(problem.map.size), depth_(problem.depth()), values_(3 * problem.map.channels() * padded(depth_)) {
    std::vector<int64_t> places = problem.depths();
    for (int64_t& place : places) place = place / kPanel * kPanel * size_ + place % kPanel;
    torch::stable::parallel_for(0, 3 * problem.map.channels(), size_, [&](int64_t begin, int64_t end) {
      for (int64_t output = begin; output < end; ++output) {
        const A* from = problem.weights(output);
        A* to = &values_[output / size_ * size_ * padded(depth_) + output % size_ * kPanel];
        for (int64_t i = 0; i < depth_; ++i) to[places[i]] = from[i];
      }
    });
  }

  // columns [count, padded(depth)] += grad [count, size] times the weight of projection o of a head.
  void multiply(int64_t output, int64_t count, const A* grad, A* columns) const {
    const A* b = &values_[output * padded(depth_)];
    iact::multiply(
        Product<A>{count, size_, depth_, grad, size_, 1, b, size_ * kPanel, kPanel, columns, padded(depth_), true});
  }

 private:
  int64_t size_, depth_;
  std::vector<A> values_;
};

// to [count, row] <- the gradients of one tile's projections, with zeros behind the `size` outputs.
template <typename T, typename A>
void load_grads(const T* from, int64_t count, int64_t size, int64_t row, A* to) {
  for (int64_t token = 0; token < count; ++token) {
    for (int64_t n = 0; n < size; ++n) to[token * row + n] = static_cast<A>(from[token * size + n]);
    std::fill(to + token * row + size, to + (token + 1) * row, A(0));
  }
}

// The gradients of an image and of its offsets. One image is one task: every sum is made in the same order, whatever
// the number of threads.
template <typename T, typename A>
void backward_of_image(const Problem<A>& problem, const BackwardPanels<A>& panels, const Projections<const T>& grads,
                       int64_t b, A* grad_rows, Tensor& grad_offset) {
  const Map& map = problem.map;
  const int64_t row = padded(problem.depth());
  const auto samples = std::make_unique<Samples<A>>();
  const auto slopes = std::make_unique<Slopes<A>>();
  std::vector<A> grad(kTile * map.size), columns(map.heads * kTile * row), grad_y(kTile * kTaps), grad_x(kTile * kTaps);
  for (int64_t unit = 0; unit < problem.sets * problem.tiles(); ++unit) {
    const int64_t set = unit / problem.tiles(), tile = unit % problem.tiles();
    const int64_t first = tile * kTile, count = problem.count(tile);
    find_samples(map, problem.offsets(b, set), first, count, *samples, slopes.get());
    std::fill(columns.begin(), columns.end(), A(0));
    for (int64_t head = 0; head < map.heads; ++head)
      for (int64_t o = set * problem.parts; o < (set + 1) * problem.parts; ++o) {
        load_grads(grads.at(map, o, b, head, first), count, map.size, map.size, grad.data());
        panels.multiply(problem.output(o, head), count, grad.data(), columns.data() + head * count * row);
      }
    scatter(problem.image(b), {0, map.heads, map.size, map.channels()}, *samples, *slopes, count, columns.data(), row,
            grad_rows, grad_y.data(), grad_x.data());
    const Offsets<A> to = offsets_of<A>(grad_offset, b, set);
    for (int64_t i = 0; i < count * kTaps; ++i) {
      const int64_t token = first + i / kTaps;
      A* place = const_cast<A*>(to.at(i % kTaps, token / map.width, token % map.width));
      place[0] = grad_y[i];
      place[to.tap] = grad_x[i];
    }
  }
}

// Writes the sums [parts, depth, padded(size)] of one set and head to the weight's gradient.
template <typename A>
void store_weight(const Problem<A>& problem, int64_t set, int64_t head, const A* sums, Tensor& grad_weight) {
  const int64_t size = problem.map.size, row = grad_weight.stride(0);
  std::vector<int64_t> places(problem.depth());
  for (int64_t k = 0; k < problem.depth(); ++k)
    places[k] =
        k % size * grad_weight.stride(1) + k / size / 3 * grad_weight.stride(2) + k / size % 3 * grad_weight.stride(3);
  for (int64_t part = 0; part < problem.parts; ++part, sums += problem.depth() * padded(size)) {
    A* to = data<A>(grad_weight) + problem.output(set * problem.parts + part, head) * row;
    for (int64_t n = 0; n < size; ++n)
      for (int64_t k = 0; k < problem.depth(); ++k) to[n * row + places[k]] = sums[k * padded(size) + n];
  }
}

// The gradients of the weight and the bias of one set and head, summed over all tokens in order.
template <typename T, typename A>
void backward_of_weight(const Problem<A>& problem, const Projections<const T>& grads, int64_t set, int64_t head,
                        Tensor& grad_weight, A* grad_bias) {
  const Map& map = problem.map;
  const int64_t depth = problem.depth(), row = padded(map.size);
  const auto samples = std::make_unique<Samples<A>>();
  std::vector<A> columns(kTile * depth), grad(kTile * row), sums(problem.parts * depth * row);
  for (int64_t o = set * problem.parts; o < (set + 1) * problem.parts; ++o)
    std::fill_n(grad_bias + problem.output(o, head), map.size, A(0));
  for (int64_t unit = 0; unit < problem.batch * problem.tiles(); ++unit) {
    const int64_t b = unit / problem.tiles(), first = unit % problem.tiles() * kTile;
    const int64_t count = problem.count(unit % problem.tiles());
    find_samples(map, problem.offsets(b, set), first, count, *samples, nullptr);
    sample(problem.image(b), {head * map.size, 1, map.size, map.channels()}, *samples, count, columns.data());
    for (int64_t part = 0; part < problem.parts; ++part) {
      const int64_t o = set * problem.parts + part;
      load_grads(grads.at(map, o, b, head, first), count, map.size, row, grad.data());
      multiply(Product<A>{depth, count, map.size, columns.data(), 1, depth, grad.data(), kPanel, row,
                          sums.data() + part * depth * row, row, true});
      for (int64_t token = 0; token < count; ++token)
        for (int64_t n = 0; n < map.size; ++n) grad_bias[problem.output(o, head) + n] += grad[token * row + n];
    }
  }
  store_weight(problem, set, head, sums.data(), grad_weight);
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
  const BackwardPanels<A> panels(problem);
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
  check_arguments(x, offset, weight, bias, heads);
  for (const Tensor* grad : {&grad_q, &grad_k, &grad_v})
    STD_TORCH_CHECK(grad->numel() == x.numel() && grad->scalar_type() == x.scalar_type(),
                    "deform_qkv_backward: gradients must have the elements and the dtype of x");
  const Tensor q = torch::stable::contiguous(grad_q), k = torch::stable::contiguous(grad_k);
  const Tensor v = torch::stable::contiguous(grad_v);
  return with_dtype("deform_qkv", x, [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
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
