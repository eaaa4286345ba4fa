// Memory for intermediate results, uninitialised, on a cache line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace iact {

template <typename A>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<A*>(::operator new(count * sizeof(A), kLine))) {}
  ~Scratch() { ::operator delete(data_, kLine); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  A* data() const { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  A* data_;
};

}  // namespace iact
