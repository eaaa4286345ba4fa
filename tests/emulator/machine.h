// Execution: one block at a time, a fiber per thread, which runs until a barrier or a warp collective stops it. Blocks,
// and the threads that can go on, are taken in an order drawn from the seed.
//
// Stricter than the hardware in three points, so that what passes here is safe on any card: every thread of the block,
// also one that has returned, must come to __syncthreads; every lane that a mask names must exist and come; and all
// must come to the same place in the text. Threads that never meet are reported once nothing else can run. A thread
// that waits by reading memory again and again would wait here for ever.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "thread.h"

namespace emulator {

// What the rest of the emulator does at certain moments; each may throw.
struct Hooks {
  void (*before_stop)();  // on the running thread, before it waits for others or returns
  void (*after_block)();
};

class Machine {
 public:
  // Runs every block. Throws what a thread threw, or what kept the threads of a block from returning.
  void run(const Launch& launch, std::function<void()> kernel, const Hooks& hooks);

  int current() const { return current_; }
  const Thread& thread(int index) const { return threads_[index]; }
  uint32_t epoch() const { return epoch_; }  // grows with every block and every barrier of a block
  uint64_t block() const { return block_; }  // grows with every block
  uint64_t hardware() const { return hardware_; }
  std::string where() const;  // the running thread, for messages

  // Waits until every thread of the block is here.
  void barrier(int line) {
    meet({"__syncthreads", 0, line, true}, nullptr, [] {});
  }

  // Waits until every lane of the mask is here, offering them a value; then calls `receive`, which may look at what
  // they offer, before any of them goes on.
  template <typename Receive>
  void collective(const Meeting& meeting, const void* offer, const Receive& receive) {
    if (!(meeting.mask >> lane_of(current_) & 1))
      throw Error(where() + meeting.describe() + " does not name the lane that calls it");
    meet(meeting, offer, [&receive] { receive(); });
  }

  // What a lane offers to the thread that is receiving.
  template <typename T>
  const T& offered(int lane) const {
    return *static_cast<const T*>(threads_[current_ - lane_of(current_) + lane].offered);
  }

  // Ends the running thread from wherever it is: for a signal handler.
  [[noreturn]] void abandon(const std::string& message);

 private:
  static constexpr size_t kStack = 256 * 1024;

  void prepare(const Launch& launch);
  void run_block();
  void start(int thread);
  void resume(int thread);
  void body();
  void meet(const Meeting& meeting, const void* offer, std::function<void()> receive);
  template <typename Predicate>
  bool every_named(const Meeting& meeting, Predicate predicate);
  void release(const Meeting& meeting);
  void order_lanes(const Meeting& meeting);
  std::string standstill() const;

  std::vector<Thread> threads_ = std::vector<Thread>(kMostThreads);
  std::vector<int> ready_;
  std::function<void()> kernel_;
  Hooks hooks_;
  std::mt19937_64 random_;
  ucontext_t scheduler_;
  std::exception_ptr failure_;
  int count_ = 0, current_ = 0, returned_ = 0;
  uint32_t epoch_ = 0;
  uint64_t block_ = 0, hardware_ = 0;
};

inline Machine machine;

inline std::string Machine::where() const { return block_name() + ", " + thread_name(current_) + ": "; }

inline void Machine::prepare(const Launch& launch) {
  const uint64_t count = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
  if (count < 1 || count > kMostThreads)
    throw Error("a block has 1 to 1024 threads, got " + std::to_string(count));
  const dim3 grid = launch.grid;
  if (!grid.x || !grid.y || !grid.z || grid.y > kMostBlocks || grid.z > kMostBlocks)
    throw Error("a grid has 1 to 65535 blocks along y and z, and at least 1 along x, got " + name_of(grid));
  count_ = int(count);
  random_.seed(launch.seed);
  hardware_ = launch.hardware;
  gridDim = grid;
  blockDim = launch.block;
}

inline void Machine::run(const Launch& launch, std::function<void()> kernel, const Hooks& hooks) {
  prepare(launch);
  hooks_ = hooks;
  kernel_ = std::move(kernel);
  std::vector<dim3> blocks;
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; ++x) blocks.emplace_back(x, y, z);
  std::shuffle(blocks.begin(), blocks.end(), random_);
  for (const dim3& block : blocks) {
    blockIdx = block;
    run_block();
    hooks_.after_block();
  }
}

inline void Machine::run_block() {
  ++block_;
  ++epoch_;
  returned_ = 0;
  failure_ = nullptr;
  ready_.clear();
  for (int i = 0; i < count_; ++i) start(i);
  while (!ready_.empty() && !failure_) {
    std::swap(ready_[random_() % ready_.size()], ready_.back());
    const int next = ready_.back();
    ready_.pop_back();
    resume(next);
  }
  if (failure_) std::rethrow_exception(failure_);
  if (returned_ < count_) throw Error(standstill());
}

inline void Machine::start(int index) {
  Thread& thread = threads_[index];
  if (!thread.stack) thread.stack.reset(new char[kStack]);
  thread.state = Thread::ready;
  std::fill_n(thread.known, kWarp, 0);
  thread.known[lane_of(index)] = 1;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStack;
  thread.context.uc_link = &scheduler_;
  makecontext(&thread.context, [] { machine.body(); }, 0);
  ready_.push_back(index);
}

inline void Machine::resume(int index) {
  current_ = index;
  threadIdx = dim3(index % blockDim.x, index / blockDim.x % blockDim.y, index / (blockDim.x * blockDim.y));
  swapcontext(&scheduler_, &threads_[index].context);
}

// Exceptions must not leave a fiber: run_block throws them on.
inline void Machine::body() {
  try {
    kernel_();
    hooks_.before_stop();
  } catch (...) {
    failure_ = std::current_exception();
  }
  threads_[current_].state = Thread::returned;
  ++returned_;
}

inline void Machine::abandon(const std::string& message) {
  failure_ = std::make_exception_ptr(Error(where() + message));
  setcontext(&scheduler_);
  std::terminate();
}

inline void Machine::meet(const Meeting& meeting, const void* offer, std::function<void()> receive) {
  hooks_.before_stop();
  Thread& me = threads_[current_];
  me.meeting = meeting;
  me.offered = offer;
  me.receive = std::move(receive);
  me.state = Thread::waiting;
  const bool all_here = every_named(meeting, [&](int i) {
    return i < count_ && threads_[i].state == Thread::waiting && threads_[i].meeting == meeting;
  });
  if (all_here) release(meeting);
  swapcontext(&me.context, &scheduler_);
}

// Whether predicate(index) holds for every thread that has to come to a meeting of the running one.
template <typename Predicate>
bool Machine::every_named(const Meeting& meeting, Predicate predicate) {
  const int first = meeting.mask ? current_ - lane_of(current_) : 0;
  const int end = meeting.mask ? first + kWarp : count_;
  for (int i = first; i < end; ++i)
    if ((!meeting.mask || meeting.mask >> lane_of(i) & 1) && !predicate(i)) return false;
  return true;
}

inline void Machine::release(const Meeting& meeting) {
  const int last = current_;
  every_named(meeting, [&](int i) {
    current_ = i;
    threads_[i].receive();
    threads_[i].state = Thread::ready;
    ready_.push_back(i);
    return true;
  });
  current_ = last;
  if (!meeting.orders_memory) return;
  if (meeting.mask) order_lanes(meeting);
  else ++epoch_;
}

// Afterwards the past of each named lane lies before the present of all of them.
inline void Machine::order_lanes(const Meeting& meeting) {
  uint32_t joined[kWarp] = {};
  every_named(meeting, [&](int i) {
    for (int lane = 0; lane < kWarp; ++lane) joined[lane] = std::max(joined[lane], threads_[i].known[lane]);
    return true;
  });
  every_named(meeting, [&](int i) {
    std::copy_n(joined, kWarp, threads_[i].known);
    ++threads_[i].known[lane_of(i)];
    return true;
  });
}

inline std::string Machine::standstill() const {
  std::vector<std::pair<const Thread*, int>> groups;  // the first of those who wait at the same place, and how many
  for (int i = 0; i < count_; ++i) {
    if (threads_[i].state != Thread::waiting) continue;
    const auto same = [&](const auto& group) { return group.first->meeting == threads_[i].meeting; };
    const auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end()) groups.emplace_back(&threads_[i], 1);
    else ++group->second;
  }
  std::string message = block_name() + ": threads never meet: ";
  for (const auto& [first, size] : groups)
    message += std::to_string(size) + " wait at " + first->meeting.describe() + ", the first of them " +
               thread_name(int(first - threads_.data())) + "; ";
  return message + std::to_string(returned_) + " of " + std::to_string(count_) + " have returned";
}

}  // namespace emulator
