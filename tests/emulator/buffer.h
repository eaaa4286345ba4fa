// Global memory: each array that a kernel gets is copied between pages that nothing may touch.
//
//   inaccessible page | 0xFF bytes | elements | fewer than 16 bytes of 0xFF | inaccessible page
//
// Reading or writing past an end is thus an error naming buffer, element and thread, except close to it: a write to the
// 0xFF bytes is found after the block, naming buffer and element, and a read of them gives NaN.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "machine.h"

namespace emulator {

// The pages of one buffer. It lies at the end of them, on a multiple of 16 bytes, as vector loads want.
class Pages {
 public:
  Pages(const char* name, size_t count, size_t element_bytes);
  Pages(const Pages&) = delete;
  ~Pages();

  unsigned char* data() const { return data_; }
  bool contains(const void* address) const { return address >= base_ && address < base_ + total_; }
  std::string describe(const void* address) const;
  void check() const;  // throws where the 0xFF bytes were written to

  static std::vector<Pages*>& all() {
    static std::vector<Pages*> list;
    return list;
  }

 private:
  std::string name_;
  size_t count_, element_bytes_, page_, total_;
  unsigned char *base_, *data_;
};

inline Pages::Pages(const char* name, size_t count, size_t element_bytes)
    : name_(name), count_(count), element_bytes_(element_bytes), page_(size_t(sysconf(_SC_PAGESIZE))) {
  const size_t bytes = (count * element_bytes + 15) / 16 * 16;
  total_ = (bytes / page_ + 3) * page_;  // at least one page between the two
  void* mapped = mmap(nullptr, total_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<unsigned char*>(mapped);
  mprotect(base_ + page_, total_ - 2 * page_, PROT_READ | PROT_WRITE);
  std::memset(base_ + page_, 0xFF, total_ - 2 * page_);
  data_ = base_ + total_ - page_ - bytes;
  all().push_back(this);
}

inline Pages::~Pages() {
  all().erase(std::find(all().begin(), all().end(), this));
  munmap(base_, total_);
}

inline std::string Pages::describe(const void* address) const {
  const std::ptrdiff_t offset = static_cast<const unsigned char*>(address) - data_;
  const std::ptrdiff_t size = std::ptrdiff_t(element_bytes_);
  const std::ptrdiff_t element = offset >= 0 ? offset / size : -((size - 1 - offset) / size);
  return "element " + std::to_string(element) + " (byte " + std::to_string(offset) + ") of buffer '" + name_ +
         "', which has " + std::to_string(count_) + " elements";
}

inline void Pages::check() const {
  const unsigned char *first = base_ + page_, *last = base_ + total_ - page_, *end = data_ + count_ * element_bytes_;
  const auto touched = [](unsigned char byte) { return byte != 0xFF; };
  const unsigned char* before = std::find_if(first, static_cast<const unsigned char*>(data_), touched);
  const unsigned char* after = std::find_if(end, last, touched);
  if (before != data_ || after != last)
    throw Error(block_name() + ": wrote outside global memory: " + describe(before != data_ ? before : after));
}

// While it lives, an access of inaccessible memory ends the kernel with an Error, and so do the traps that the compiler
// sets (see build.py) for an index outside a local array, a misaligned vector and a shift by more than the width.
class FaultHandler {
 public:
  FaultHandler() {
    struct sigaction action = {};
    action.sa_sigaction = report;
    action.sa_flags = SA_SIGINFO;
    for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &before_[i]);
  }
  FaultHandler(const FaultHandler&) = delete;
  ~FaultHandler() {
    for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  static constexpr std::array<int, 4> kSignals = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};

  // A fault of the kernel is not inside the allocator: making a message is safe.
  static void report(int signal, siginfo_t* info, void*) {
    if (signal == SIGILL || signal == SIGTRAP)
      machine.abandon("an index outside a local array, a misaligned access, or a shift by more than the width");
    for (const Pages* pages : Pages::all())
      if (pages->contains(info->si_addr)) machine.abandon("outside global memory: " + pages->describe(info->si_addr));
    machine.abandon("outside global memory: an address of no buffer");
  }

  std::array<struct sigaction, kSignals.size()> before_;
};

// A kernel's array of global memory.
template <typename T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  // With 0xFF in every byte: NaN for floating point.
  Buffer(const char* name, size_t count) : count_(count), pages_(name, count, sizeof(T)) {}
  Buffer(const char* name, const T* values, size_t count) : Buffer(name, count) {
    std::memcpy(pages_.data(), values, count * sizeof(T));
  }

  T* data() { return reinterpret_cast<T*>(pages_.data()); }
  const T* data() const { return reinterpret_cast<const T*>(pages_.data()); }
  void copy_to(T* values) const { std::memcpy(values, pages_.data(), count_ * sizeof(T)); }

  // Throws Error where an element still holds nothing but 0xFF, which no computed floating point number does.
  void require_written() const {
    static_assert(!std::is_integral_v<T>, "an integer may well be -1");
    for (size_t i = 0; i < count_; ++i) {
      const unsigned char* bytes = pages_.data() + i * sizeof(T);
      if (std::all_of(bytes, bytes + sizeof(T), [](unsigned char byte) { return byte == 0xFF; }))
        throw Error("never written: " + pages_.describe(bytes));
    }
  }

 private:
  size_t count_;
  Pages pages_;
};

inline void check_buffers() {
  for (const Pages* pages : Pages::all()) pages->check();
}

}  // namespace emulator
