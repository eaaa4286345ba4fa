// Targets drawn from landmarks on the CPU, a block of pixels at a time.
#pragma once

#include <cmath>
#include <vector>

#include "tensors.h"
#include "wing_cpu.h"

namespace iact {

// The landmarks of a batch [B, K], rounded where there is a seed.
struct Landmarks {
  std::vector<float> x, y;
  std::vector<bool> shown;
  bool all_shown = true;

  Landmarks(const Tensor& pred, const Tensor& landmarks, const std::optional<Tensor>& visible,
            const std::optional<Tensor>& seed) {
    STD_TORCH_CHECK(pred.dim() == 4 && landmarks.numel() == pred.size(0) * pred.size(1) * 2 &&
                        landmarks.scalar_type() == ScalarType::Float,
                    "heatmap_loss: pred must be [B, K, H, W] and landmarks float32 [B, K, 2]");
    const int64_t count = landmarks.numel() / 2;
    const Tensor dense = torch::stable::contiguous(landmarks);
    const float* points = static_cast<const float*>(dense.const_data_ptr());
    const uint32_t key = seed ? key_of(*static_cast<const int64_t*>(seed->const_data_ptr())) : 0;
    const auto coordinate = [&](int64_t i) {
      return seed ? round_randomly(points[i], key, static_cast<uint32_t>(i)) : points[i];
    };
    for (int64_t i = 0; i < count; ++i) x.push_back(coordinate(2 * i)), y.push_back(coordinate(2 * i + 1));
    shown.assign(count, true);
    if (visible) read_visible(*visible, count);
  }

 private:
  void read_visible(const Tensor& visible, int64_t count) {
    STD_TORCH_CHECK(visible.numel() == count && visible.scalar_type() == ScalarType::Bool,
                    "heatmap_loss: visible must be bool [B, K]");
    const Tensor dense = torch::stable::contiguous(visible);
    const bool* flags = static_cast<const bool*>(dense.const_data_ptr());
    for (int64_t i = 0; i < count; ++i) shown[i] = flags[i], all_shown &= flags[i];
  }
};

// A source of targets as wing.cpp wants it. Runs of pixels are pieces of a row of one map, or where channels lie last,
// one pixel of many maps.
template <typename Real>
class DrawnTarget {
 public:
  DrawnTarget(const Landmarks& landmarks, const Drawing& drawing, const Tensor& pred, MemoryFormat format)
      : landmarks_(landmarks),
        drawing_(drawing),
        channels_(pred.size(1)),
        height_(pred.size(2)),
        width_(pred.size(3)),
        channels_last_(format == MemoryFormat::ChannelsLast) {}

  bool load(int64_t start, int64_t count, Real* pred, Real* target, Real* weight) const {
    float drawn[kWingBlock];
    const int64_t run_size = channels_last_ ? channels_ : width_;
    for (int64_t done = 0, run; done < count; done += run) {
      const int64_t within = (start + done) % run_size, line = (start + done) / run_size;
      run = std::min(run_size - within, count - done);
      const int64_t y = line / (channels_last_ ? width_ : 1) % height_;
      if (channels_last_)
        load_pixel(line % width_, y, line / (width_ * height_) * channels_ + within, run, drawn + done, weight + done);
      else
        load_row(within, y, line / height_, run, drawn + done, weight + done);
      if (!landmarks_.all_shown)
        hide(channels_last_ ? line / (width_ * height_) * channels_ + within : line / height_, run, pred + done,
             drawn + done);
    }
    convert(drawn, count, target);
    return drawing_.map_factor != 0;
  }

 private:
  void load_row(int64_t x, int64_t y, int64_t landmark, int64_t run, float* target, Real* weight) const {
    const float dx = x - landmarks_.x[landmark], dy = y - landmarks_.y[landmark];
    if (std::fabs(dy) > drawing_.reach)
      std::fill(target, target + run, 0.0f);
    else
      draw_row(dx, dy, run, drawing_, target);
    if (drawing_.map_factor != 0)
      for (int64_t i = 0; i < run; ++i) weight[i] = map_weight(dx + i, dy, x + i, y, width_ - 1, height_ - 1, drawing_);
  }

  void load_pixel(int64_t x, int64_t y, int64_t first, int64_t run, float* target, Real* weight) const {
    const float *centre_x = landmarks_.x.data() + first, *centre_y = landmarks_.y.data() + first;
    draw_column(x, y, centre_x, centre_y, run, drawing_, target);
    if (drawing_.map_factor != 0)
      for (int64_t i = 0; i < run; ++i)
        weight[i] = map_weight(x - centre_x[i], y - centre_y[i], x, y, width_ - 1, height_ - 1, drawing_);
  }

  // A hidden landmark adds nothing: no difference, no loss.
  void hide(int64_t landmark, int64_t run, Real* pred, float* target) const {
    for (int64_t i = 0; i < run; ++i)
      if (!landmarks_.shown[landmark + (channels_last_ ? i : 0)]) pred[i] = 0, target[i] = 0;
  }

  const Landmarks& landmarks_;
  const Drawing& drawing_;
  int64_t channels_, height_, width_;
  bool channels_last_;
};

}  // namespace iact
