// iact::deform_attention_forward on the CPU. Some images at a time: first q, k and v of all their tokens, then, for
// every tile of queries, the keys in steps, so that neither needs memory for more than these images.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>

#include "deform_attention_cpu.h"
#include "deform_projection.h"

namespace iact {
namespace {

constexpr int64_t kKeys = 64;   // of one step
constexpr int64_t kUnits = 128;  // tiles of queries that are enough for all threads

// q, k and v of some images: [3, images, heads, H*W, padded(size)].
template <typename A>
struct Tokens {
  Map map;
  int64_t images;
  Scratch<A> values;

  Tokens(const Map& map_, int64_t images_)
      : map(map_), images(images_), values(3 * images * map.heads * map.pixels() * row()) {}

  int64_t row() const { return padded(map.size); }
  A* at(int64_t o, int64_t image, int64_t head, int64_t token) const {
    return values.data() + (((o * images + image) * map.heads + head) * map.pixels() + token) * row();
  }
};

// Lets tiles of queries attend, one after the other.
template <typename A>
class Attender {
 public:
  explicit Attender(const Tokens<A>& tokens)
      : tokens_(tokens),
        size_(tokens.map.size),
        factor_(static_cast<A>(1.4426950408889634 / std::sqrt(static_cast<double>(size_)))),
        queries_(size_ * kQueries),
        scores_(kKeys * kQueries),
        more_(size_ * kQueries),
        attended_(size_ * kQueries),
        result_(kQueries * size_),
        places_(std::max(size_, kQueries)) {}

  // [count, size]: what queries `first` and following get.
  const A* attend(int64_t image, int64_t head, int64_t first, int64_t count) {
    const int64_t pixels = tokens_.map.pixels(), row = tokens_.row();
    load_queries(tokens_.at(0, image, head, first), count);
    std::fill_n(softmax_.largest, kQueries, -std::numeric_limits<A>::infinity());
    std::fill_n(softmax_.total, kQueries, A(0));
    std::fill_n(attended_.data(), size_ * kQueries, A(0));
    for (int64_t key = 0; key < pixels; key += kKeys) {
      const int64_t keys = std::min(kKeys, pixels - key);
      multiply(Product<A>{keys, size_, kQueries, tokens_.at(1, image, head, key), row, 1, queries_.data(),
                          size_ * kPanel, kPanel, scores_.data(), kQueries, false});
      soften(scores_.data(), keys, factor_, softmax_);
      multiply(Product<A>{size_, keys, kQueries, tokens_.at(2, image, head, key), 1, row, scores_.data(), kPanel,
                          kQueries, more_.data(), kQueries, false});
      attend_more(more_.data(), size_, softmax_, attended_.data());
    }
    return finish(count);
  }

 private:
  // The queries in panels, [size, kQueries]; those beyond `count` are zero.
  void load_queries(const A* from, int64_t count) {
    if (count < kQueries) std::fill_n(queries_.data(), size_ * kQueries, A(0));
    for (int64_t c = 0; c < size_; ++c) places_[c] = c * kPanel;
    for (int64_t n = 0; n < count; n += kPanel)
      transpose(from + n * tokens_.row(), tokens_.row(), std::min(kPanel, count - n), size_,
                queries_.data() + n * size_, places_.data());
  }

  const A* finish(int64_t count) {
    for (int64_t c = 0; c < size_; ++c)
      for (int64_t i = 0; i < kQueries; ++i) attended_.data()[c * kQueries + i] /= softmax_.total[i];
    for (int64_t i = 0; i < count; ++i) places_[i] = i * size_;
    transpose(attended_.data(), kQueries, size_, count, result_.data(), places_.data());
    return result_.data();
  }

  const Tokens<A>& tokens_;
  int64_t size_;
  A factor_;  // of the scores, as exponents of 2
  Softmax<A> softmax_;
  Scratch<A> queries_, scores_, more_, attended_, result_;
  std::vector<int64_t> places_;
};

// Writes [images, H*W, C].
template <typename T, typename A>
void attend(const Tokens<A>& tokens, T* to) {
  const Map& map = tokens.map;
  const int64_t tiles = (map.pixels() + kQueries - 1) / kQueries;
  torch::stable::parallel_for(0, tokens.images * map.heads * tiles, 1, [&](int64_t begin, int64_t end) {
    Attender<A> attender(tokens);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % tiles * kQueries, head = i / tiles % map.heads, image = i / tiles / map.heads;
      const int64_t count = std::min(kQueries, map.pixels() - first);
      const A* from = attender.attend(image, head, first, count);
      T* place = to + (image * map.pixels() + first) * map.channels() + head * map.size;
      for (int64_t n = 0; n < count; ++n, from += map.size, place += map.channels())
        std::transform(from, from + map.size, place, [](A value) { return static_cast<T>(value); });
    }
  });
}

Tensor deform_attention(const Tensor& x, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& bias,
                        int64_t heads) {
  check_arguments(x, offset, weight, bias, heads);
  Tensor out =
      torch::stable::empty({x.size(0), x.size(2) * x.size(3), x.size(1)}, x.scalar_type(), std::nullopt, x.device());
  if (x.numel() == 0) return out;
  with_dtype("deform_attention", x, [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    const Problem<A> problem(x, offset, weight, bias, heads);
    const Map& map = problem.map;
    const int64_t images = std::clamp<int64_t>(kUnits / (heads * problem.tiles()), 1, problem.batch);
    Tokens<A> tokens(map, images);
    for (int64_t first = 0; first < problem.batch; first += images) {
      tokens.images = std::min(images, problem.batch - first);
      project(problem, first, tokens.images,
              [&](int64_t o, int64_t b, int64_t head, int64_t token, int64_t count, const A* rows) {
                std::copy_n(rows, count * tokens.row(), tokens.at(o, b - first, head, token));
              });
      attend(tokens, data<T>(out) + first * map.pixels() * map.channels());
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iact, CPU, library) {
  library.impl("deform_attention_forward", TORCH_BOX(&deform_attention));
}

}  // namespace iact
