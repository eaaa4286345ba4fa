// CUDA's own spellings, and what a binding calls: emulator::run. An instruction of a whole warp is a collective of the
// machine: each lane offers its operands, and takes what it needs from those of the others.
#pragma once

#include <type_traits>
#include <utility>

#include "buffer.h"
#include "machine.h"
#include "shared.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace emulator {

// Calls `kernel` once for each thread. Throws Error at the first mistake.
template <typename Kernel>
void run(const Launch& launch, Kernel&& kernel) {
  dynamic_storage.resize(launch.dynamic_bytes);
  loans.clear();
  const FaultHandler handler;
  machine.run(launch, std::forward<Kernel>(kernel), {settle_loans, check_buffers});
}

template <typename T>
T shuffle(const Meeting& meeting, T value, int source) {
  if (!(meeting.mask >> source & 1))
    throw Error(machine.where() + meeting.describe() + " takes from lane " + std::to_string(source) +
                ", which the mask does not name");
  T result;
  machine.collective(meeting, &value, [&] { result = machine.offered<T>(source); });
  return result;
}

// Bit i is set where lane i is in the mask and its value is not 0.
inline unsigned vote(const Meeting& meeting, int value) {
  unsigned result = 0;
  machine.collective(meeting, &value, [&] {
    for (int lane = 0; lane < kWarp; ++lane)
      if ((meeting.mask >> lane & 1) && machine.offered<int>(lane)) result |= 1u << lane;
  });
  return result;
}

inline int lane() { return lane_of(machine.current()); }

}  // namespace emulator

inline void __syncthreads(int line = __builtin_LINE()) { emulator::machine.barrier(line); }

inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  emulator::machine.collective({"__syncwarp", mask, line, true}, nullptr, [] {});
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int line = __builtin_LINE()) {
  return emulator::shuffle({"__shfl_sync", mask, line, false}, value, source & 31);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int line = __builtin_LINE()) {
  return emulator::shuffle({"__shfl_xor_sync", mask, line, false}, value, (emulator::lane() ^ bits) & 31);
}

// The last lanes, which have no lane `distance` further on, keep their value.
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int line = __builtin_LINE()) {
  const unsigned source = emulator::lane() + distance;
  return emulator::shuffle({"__shfl_down_sync", mask, line, false}, value, source < 32 ? source : emulator::lane());
}

inline unsigned __ballot_sync(unsigned mask, int value, int line = __builtin_LINE()) {
  return emulator::vote({"__ballot_sync", mask, line, false}, value);
}

inline int __any_sync(unsigned mask, int value, int line = __builtin_LINE()) {
  return emulator::vote({"__any_sync", mask, line, false}, value) != 0;
}

template <typename T>
T atomicAdd(T* address, std::common_type_t<T> value) {
  const T old = *address;
  *address = old + value;
  return old;
}

template <typename T>
T atomicAdd(const emulator::Place<T>& place, std::common_type_t<T> value) {
  return place.add(value);
}
