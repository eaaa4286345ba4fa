// iact::decode_heatmaps on the CPU: checks, allocation, registration, and the walk over blocks of maps.
#include "decode.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

namespace iact {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Method method_of(const std::string& name) {
  if (name == "argmax") return Method::kArgmax;
  if (name == "window") return Method::kWindow;
  STD_TORCH_CHECK(name == "topk", "decode_heatmaps: method must be argmax, window or topk");
  return Method::kTopK;
}

// The affine map of one image, from heatmap px to image px.
struct Affine {
  const float* data = nullptr;  // none: coordinates stay as they are
  int64_t row = 0, column = 0;

  void operator()(float& x, float& y) const {
    if (!data) return;
    const float *a = data, *b = data + row;
    const float to_x = a[0] * x + a[column] * y + a[2 * column], to_y = b[0] * x + b[column] * y + b[2 * column];
    x = to_x;
    y = to_y;
  }
};

Affine affine_of(const std::optional<Tensor>& to_image, int64_t image) {
  if (!to_image) return {};
  return {static_cast<const float*>(to_image->const_data_ptr()) + image * to_image->stride(0), to_image->stride(1),
          to_image->stride(2)};
}

// Where the landmarks of all images go.
struct Results {
  float *points, *scores;  // [B, K, 2] and [B, K], contiguous

  void put(int64_t to, Landmark landmark, const Affine& affine) const {
    affine(landmark.x, landmark.y);
    points[2 * to] = landmark.x;
    points[2 * to + 1] = landmark.y;
    scores[to] = landmark.score;
  }
};

template <typename T>
void decode_images(const Tensor& heatmaps, const Decoding& decoding, const std::optional<Tensor>& to_image,
                   const Results& results) {
  const Maps maps{heatmaps.size(2), heatmaps.size(3), heatmaps.stride(1), heatmaps.stride(2), heatmaps.stride(3)};
  const T* data = static_cast<const T*>(heatmaps.const_data_ptr());
  const int64_t batch = heatmaps.size(0), channels = heatmaps.size(1), image_stride = heatmaps.stride(0);
  const int64_t blocks = (channels + kMapsPerBlock - 1) / kMapsPerBlock;
  torch::stable::parallel_for(0, batch * blocks, 1, [&](int64_t begin, int64_t end) {
    Landmark landmarks[kMapsPerBlock];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / blocks, start = i % blocks * kMapsPerBlock;
      const int64_t first = std::max<int64_t>(std::min(start, channels - kMapsPerBlock), 0);  // a whole block if any
      const int64_t count = std::min(kMapsPerBlock, channels - first);
      decode_maps(data + image * image_stride + first * maps.channel, maps, start - first, count, decoding, landmarks);
      const Affine affine = affine_of(to_image, image);
      for (int64_t c = start - first; c < count; ++c) results.put(image * channels + first + c, landmarks[c], affine);
    }
  });
}

void check(const Tensor& heatmaps, const Decoding& decoding, const std::optional<Tensor>& to_image) {
  const int64_t pixels = heatmaps.dim() == 4 ? heatmaps.size(2) * heatmaps.size(3) : 0;
  STD_TORCH_CHECK(pixels > 0, "decode_heatmaps: heatmaps must be [B, K, H, W] with pixels");
  STD_TORCH_CHECK(decoding.method != Method::kTopK || (decoding.k >= 1 && decoding.k <= pixels),
                  "decode_heatmaps: k must be 1 to H * W");
  STD_TORCH_CHECK(decoding.radius >= 0, "decode_heatmaps: radius must not be negative");
  if (!to_image) return;
  const bool fits = to_image->dim() == 3 && to_image->size(0) == heatmaps.size(0) && to_image->size(1) == 2 &&
                    to_image->size(2) == 3 && to_image->scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(fits, "decode_heatmaps: to_image must be float32 [B, 2, 3]");
}

std::tuple<Tensor, Tensor> decode_heatmaps(const Tensor& heatmaps, std::string method, int64_t radius, int64_t k,
                                           std::optional<Tensor> to_image) {
  Decoding decoding{method_of(method), radius, k};
  check(heatmaps, decoding, to_image);
  decoding.radius = std::min(radius, std::max(heatmaps.size(2), heatmaps.size(3)));
  const auto empty = [&](torch::headeronly::IntHeaderOnlyArrayRef sizes) {
    return torch::stable::empty(sizes, ScalarType::Float, std::nullopt, heatmaps.device());
  };
  Tensor points = empty({heatmaps.size(0), heatmaps.size(1), 2}), scores = empty({heatmaps.size(0), heatmaps.size(1)});
  const Results results{static_cast<float*>(points.mutable_data_ptr()), static_cast<float*>(scores.mutable_data_ptr())};
  switch (heatmaps.scalar_type()) {
    case ScalarType::Float: decode_images<float>(heatmaps, decoding, to_image, results); break;
    case ScalarType::Double: decode_images<double>(heatmaps, decoding, to_image, results); break;
    case ScalarType::BFloat16: decode_images<c10::BFloat16>(heatmaps, decoding, to_image, results); break;
    case ScalarType::Half: decode_images<c10::Half>(heatmaps, decoding, to_image, results); break;
    default: STD_TORCH_CHECK(false, "decode_heatmaps: heatmaps must be float32, float64, bfloat16 or float16");
  }
  return {points, scores};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(iact, CPU, library) { library.impl("decode_heatmaps", TORCH_BOX(&decode_heatmaps)); }

}  // namespace iact
