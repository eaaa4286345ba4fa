// Shared memory: 0xFF bytes (NaN) at the start of every block, indices checked, every access recorded to find races.
//
// A race is two accesses of one element by different threads, at least one of them a write, or one atomic and one not,
// that no barrier orders. It is found whatever the schedule, as order is taken from the barriers alone:
//   - __syncthreads orders all that lies before it before all that lies after it: they are of different epochs;
//   - __syncwarp orders the same for the lanes of its mask, also through a chain of them: a vector clock per thread;
//   - shuffles and votes order nothing: CUDA does not promise that they order memory.
// Elements are compared as wholes: two threads that write different members of one struct race.
//
// Numbers are exact. Of structs, name[index] is a plain reference, and a write shows by its changing the bytes: storing
// the value already there counts as a read, and a write through a reference kept over a barrier is not seen.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "machine.h"

namespace emulator {

enum class Access : uint8_t { read, write, atomic };

inline const char* name_of(Access access) {
  return access == Access::read ? "read" : access == Access::write ? "wrote" : "changed atomically";
}

// Whether what `thread` did at its time `clock`, in this epoch, lies before what the running thread does now.
inline bool lies_before_now(int thread, uint32_t clock) {
  const int me = machine.current();
  if (thread == me) return true;
  return warp_of(thread) == warp_of(me) && machine.thread(me).known[lane_of(thread)] >= clock;
}

inline uint32_t clock_now() { return machine.thread(machine.current()).known[lane_of(machine.current())]; }

// The accesses of one cell since the last barrier of the block, as far as a later one can race with them.
class Cell {
 public:
  // The thread that the access of the running one races with, -1 if there is none; `kind` is what that one did.
  int record(Access access, Access& kind) {
    kind = Access::write;
    if (write_epoch_ == machine.epoch() && !lies_before_now(writer_, write_clock_)) return writer_;
    kind = kind_;
    if (share_epoch_ == machine.epoch() && (access == Access::write || access != kind_)) {
      const int other = concurrent_sharer();
      if (other >= 0) return other;
      share_epoch_ = 0;  // those accesses lie before this one: who races with them races with it
    }
    if (access == Access::write) write();
    else share(access);
    return -1;
  }

 private:
  void write() {
    write_epoch_ = machine.epoch();
    write_clock_ = clock_now();
    writer_ = int16_t(machine.current());
  }

  // Reads do not race with reads, nor atomics with atomics: the cell remembers all that share it.
  void share(Access access) {
    const int me = machine.current();
    if (share_epoch_ != machine.epoch()) {
      share_epoch_ = machine.epoch();
      kind_ = access;
      sharer_ = int16_t(me);
      stranger_ = -1;
      lanes_ = 0;
    }
    if (warp_of(me) != warp_of(sharer_)) {
      stranger_ = int16_t(me);
      return;
    }
    lanes_ |= 1u << lane_of(me);
    clocks_[lane_of(me)] = clock_now();
  }

  int concurrent_sharer() const {
    const int warp = warp_of(machine.current());
    if (warp_of(sharer_) != warp) return sharer_;
    if (stranger_ >= 0) return stranger_;
    for (int lane = 0; lane < kWarp; ++lane)
      if ((lanes_ >> lane & 1) && !lies_before_now(warp * kWarp + lane, clocks_[lane])) return warp * kWarp + lane;
    return -1;
  }

  uint32_t write_epoch_ = 0, write_clock_ = 0, share_epoch_ = 0;
  int16_t writer_ = 0, sharer_ = 0, stranger_ = -1;  // the stranger is of another warp than the sharer
  Access kind_ = Access::read;                       // of the sharers
  uint32_t lanes_ = 0;                               // of the sharer's warp that share
  std::array<uint32_t, kWarp> clocks_;               // of these lanes
};

// The bytes of one array, or of the dynamic shared memory, and the cells that watch over them.
class Storage {
 public:
  Storage(size_t cell_bytes, size_t bytes) : cell_bytes_(cell_bytes) { resize(bytes); }

  void resize(size_t bytes) {
    bytes_.resize((bytes + sizeof(Line) - 1) / sizeof(Line));
    cells_.resize((bytes + cell_bytes_ - 1) / cell_bytes_);
    size_ = bytes;
  }

  // To be called by whoever uses it: the first in a block finds it poisoned.
  void open() {
    if (block_ == machine.block()) return;
    block_ = machine.block();
    std::memset(bytes_.data(), 0xFF, bytes_.size() * sizeof(Line));
  }

  size_t size() const { return size_; }
  size_t cell_bytes() const { return cell_bytes_; }
  unsigned char* bytes() { return bytes_.data()->bytes; }

  void record(const char* name, size_t element, size_t element_bytes, Access access) {
    const size_t first = element * element_bytes / cell_bytes_, count = element_bytes / cell_bytes_;
    Access kind;
    for (size_t i = first; i < first + count; ++i) {
      const int other = cells_[i].record(access, kind);
      if (other >= 0)
        throw Error(machine.where() + "race in shared memory: " + name_of(access) + " " + name + "[" +
                    std::to_string(element) + "], which " + thread_name(other) + " " + name_of(kind) +
                    ", with no barrier between");
    }
  }

 private:
  struct alignas(128) Line {
    unsigned char bytes[128];
  };
  size_t cell_bytes_, size_ = 0;
  uint64_t block_ = 0;
  std::vector<Line> bytes_;
  std::vector<Cell> cells_;
};

constexpr size_t kDynamicCell = 2;  // views of several types may lie over dynamic shared memory; the smallest is a half
inline Storage dynamic_storage(kDynamicCell, 0);

// One number in shared memory.
template <typename T>
class Place {
 public:
  Place(const char* name, Storage& storage, size_t index) : name_(name), storage_(&storage), index_(index) {}

  T read() const {
    storage_->record(name_, index_, sizeof(T), Access::read);
    T value;
    std::memcpy(&value, bytes(), sizeof(T));
    return value;
  }
  void write(const T& value) const {
    storage_->record(name_, index_, sizeof(T), Access::write);
    std::memcpy(bytes(), &value, sizeof(T));
  }
  T add(T value) const {
    storage_->record(name_, index_, sizeof(T), Access::atomic);
    T old;
    std::memcpy(&old, bytes(), sizeof(T));
    value = old + value;
    std::memcpy(bytes(), &value, sizeof(T));
    return old;
  }

 private:
  unsigned char* bytes() const { return storage_->bytes() + index_ * sizeof(T); }

  const char* name_;
  Storage* storage_;
  size_t index_;
};

// What name[index] is for numbers. It converts and assigns as an rvalue only: `auto x = name[index]`, which would not
// be a copy, cannot be used (write the type).
template <typename T>
class Number {
 public:
  explicit Number(const Place<T>& place) : place_(place) {}
  Number(const Number&) = delete;

  operator T() && { return place_.read(); }
  // BFloat16 and Half go to float by a conversion of their own, and C++ chains no two of those.
  template <typename Float, std::enable_if_t<std::is_same_v<Float, float> && !std::is_arithmetic_v<T>, int> = 0>
  operator Float() && {
    return float(place_.read());
  }
  T operator=(T value) && {
    place_.write(value);
    return value;
  }
  T operator=(Number&& other) && { return std::move(*this) = T(std::move(other)); }
  T operator+=(T value) && { return std::move(*this) = T(place_.read() + value); }
  T operator-=(T value) && { return std::move(*this) = T(place_.read() - value); }
  T operator*=(T value) && { return std::move(*this) = T(place_.read() * value); }
  Place<T> operator&() && { return place_; }

 private:
  Place<T> place_;
};

// A struct element that the running thread got a reference to: if its bytes are others than before when the thread
// next stops, the thread has written to it.
struct Loan {
  const char* name;
  Storage* storage;
  size_t index;
  std::vector<unsigned char> before;

  const unsigned char* now() const { return storage->bytes() + index * before.size(); }
};

inline std::vector<Loan> loans;

inline void settle_loans() {
  const std::vector<Loan> settled = std::move(loans);
  loans.clear();
  for (const Loan& loan : settled)
    if (std::memcmp(loan.now(), loan.before.data(), loan.before.size()) != 0)
      loan.storage->record(loan.name, loan.index, loan.before.size(), Access::write);
}

// An array in shared memory, as kernel text sees it. It is passed by value, as a pointer would be.
template <typename T>
class Shared {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Shared(const char* name, Storage& storage) : name_(name), storage_(&storage) {
    if (sizeof(T) % storage.cell_bytes())
      throw Error(machine.where() + name + ": elements of an odd number of bytes are not watched in dynamic memory");
    storage.open();
  }

  decltype(auto) operator[](std::ptrdiff_t index) const {
    const std::ptrdiff_t count = std::ptrdiff_t(storage_->size() / sizeof(T));
    if (index < 0 || index >= count)
      throw Error(machine.where() + "outside shared memory: " + name_ + "[" + std::to_string(index) + "], which has " +
                  std::to_string(count) + " elements");
    if constexpr (std::is_convertible_v<T, float>) return Number<T>(Place<T>(name_, *storage_, size_t(index)));
    else return lend(size_t(index));
  }

 private:
  T& lend(size_t index) const {
    storage_->record(name_, index, sizeof(T), Access::read);
    unsigned char* bytes = storage_->bytes() + index * sizeof(T);
    loans.push_back({name_, storage_, index, {bytes, bytes + sizeof(T)}});
    return *reinterpret_cast<T*>(bytes);
  }

  const char* name_;
  Storage* storage_;
};

}  // namespace emulator
