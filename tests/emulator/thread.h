// The threads of a block, and where they meet.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Launch {
  dim3 grid, block;
  size_t dynamic_bytes = 0;  // of shared memory
  uint64_t seed = 0;         // of the order of blocks and threads
  uint64_t hardware = 0;     // of the errors of approximate instructions; these do not depend on the order
};

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;        // of a block
constexpr unsigned kMostBlocks = 65535;  // along y and along z

inline int warp_of(int thread) { return thread / kWarp; }
inline int lane_of(int thread) { return thread % kWarp; }

// The place in the kernel where threads meet.
struct Meeting {
  const char* operation;  // a string literal
  unsigned mask;          // of the lanes that come; 0 is the whole block
  int line;               // of the text
  bool orders_memory;     // what the threads did before it is seen by all of them after it

  bool operator==(const Meeting& other) const {
    return operation == other.operation && mask == other.mask && line == other.line;
  }
  std::string describe() const;
};

struct Thread {
  enum State { ready, waiting, returned } state;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Meeting meeting;
  const void* offered;            // what it gives to the others at the meeting
  std::function<void()> receive;  // takes what the others give
  uint32_t known[kWarp];          // up to which clock it has seen each lane's past; its own entry is its clock
};

inline std::string Meeting::describe() const {
  char text[32] = "";
  if (mask) std::snprintf(text, sizeof text, ", mask 0x%08x", mask);
  return std::string(operation) + " (line " + std::to_string(line) + text + ")";
}

inline std::string name_of(const dim3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

inline std::string block_name() { return "block " + name_of(blockIdx); }

inline std::string thread_name(int thread) {
  return "thread " + std::to_string(thread) + " (warp " + std::to_string(warp_of(thread)) + ")";
}

}  // namespace emulator
