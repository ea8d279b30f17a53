#include "fibers.hpp"

#include <sys/mman.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "copies.hpp"
#include "switch_stack.hpp"

namespace cuda_emulation {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kLanes = 32, kWarps = kMaxThreads / kLanes;
constexpr unsigned kStay = 64;  // threads of one warp in a row, on average
constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::uint64_t kCanary = 0x5afe5afe5afe5afe;

enum class State { ready, at_block_barrier, at_warp_barrier, asleep, ended };

struct Fiber {
  void* stack_pointer = nullptr;
  State state = State::ended;
  std::uint32_t mask = 0;           // of the warp barrier that it waits at
  const char* operation = nullptr;  // there
  const void* asleep_at = nullptr;
};

struct Warp {
  std::uint32_t ready = 0;    // lanes that can go on
  std::uint32_t waiting = 0;  // lanes at a warp barrier
  void* brought[kLanes] = {};
};

// One block at a time: all of its state.
struct Block {
  unsigned n_threads = 0;
  unsigned n_ended = 0;
  unsigned n_at_block_barrier = 0;
  unsigned current = 0;
  void* caller = nullptr;  // stack of run_block
  Fiber fibers[kMaxThreads];
  Warp warps[kWarps];
  std::uint32_t ready_warps = 0;   // with a lane that can go on
  uint3 places[kMaxThreads] = {};  // threadIdx of each
  std::uint64_t* random = nullptr;
  const std::function<void()>* body = nullptr;
  std::string error;
};

Block block;

char* stacks() {
  static char* const memory = [] {
    void* mapped = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(mapped);
  }();
  return memory;
}

// One of the set bits, by a number below kLanes.
unsigned a_bit_of(std::uint32_t bits, unsigned by) {
  const std::uint32_t turned = bits >> by | bits << (kLanes - by) % kLanes;
  return (static_cast<unsigned>(__builtin_ctz(turned)) + by) % kLanes;
}

// Takes a thread that can go on, the current one from then on.
void take_ready() {
  const unsigned drawn = draw(*block.random, kStay * kLanes), by = drawn % kLanes;
  unsigned at = block.current / kLanes;
  if (block.warps[at].ready == 0 || drawn < kLanes) at = a_bit_of(block.ready_warps, by);
  Warp& warp = block.warps[at];
  const unsigned lane = a_bit_of(warp.ready, by);
  warp.ready &= ~(1U << lane);
  if (warp.ready == 0) block.ready_warps &= ~(1U << at);
  block.current = at * kLanes + lane;
  threadIdx = block.places[block.current];
}

// Goes on with another thread that can, or with run_block where there is none.
void go_on() {
  const unsigned before = block.current;
  void** mine = &block.fibers[before].stack_pointer;
  while (block.ready_warps == 0 && block.n_ended < block.n_threads &&
         finish_a_copy(*block.random)) {
  }
  if (block.ready_warps == 0) {
    switch_stack(mine, block.caller);
    return;
  }
  take_ready();
  if (block.current != before) switch_stack(mine, block.fibers[block.current].stack_pointer);
}

void make_ready(unsigned thread) {
  block.fibers[thread].state = State::ready;
  block.warps[thread / kLanes].ready |= 1U << thread % kLanes;
  block.ready_warps |= 1U << thread / kLanes;
}

// A fiber's outermost function: it never returns.
void fiber_main() {
  (*block.body)();
  block.fibers[block.current].state = State::ended;
  ++block.n_ended;
  go_on();
  std::abort();  // an ended fiber went on
}

void start(unsigned thread) {
  char* bottom = stacks() + thread * kStackBytes;
  std::memcpy(bottom, &kCanary, sizeof kCanary);
  // Staggered, so that the stacks do not all fall into the same sets of the cache.
  char* top = bottom + kStackBytes - 4096 + (thread * 320) % 4096 / 16 * 16;
  block.fibers[thread] = {};
  block.fibers[thread].stack_pointer = new_stack(top, fiber_main);
  make_ready(thread);
}

std::string where_they_are() {
  unsigned counts[5] = {};
  const char* operation = nullptr;
  for (unsigned t = 0; t < block.n_threads; ++t) {
    ++counts[static_cast<int>(block.fibers[t].state)];
    if (block.fibers[t].state == State::at_warp_barrier) operation = block.fibers[t].operation;
  }
  std::string text = "deadlock: of " + std::to_string(block.n_threads) + " threads " +
                     std::to_string(counts[1]) + " wait at __syncthreads, " +
                     std::to_string(counts[2]) + " at a warp's barrier";
  if (operation != nullptr) text += std::string(" (") + operation + ")";
  if (counts[3] > 0) text += ", " + std::to_string(counts[3]) + " for a phase of a barrier";
  return text + ", " + std::to_string(counts[4]) + " have ended";
}

bool all_here(const Warp& warp, unsigned first, std::uint32_t mask, const char* operation) {
  if ((warp.waiting & mask) != mask) return false;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const Fiber& fiber = block.fibers[first + lane];
    if ((mask >> lane & 1) == 0) continue;
    if (fiber.mask != mask) return false;
    if (fiber.operation != operation && std::strcmp(fiber.operation, operation) != 0)
      fail("the lanes of a warp meet in different operations");
  }
  return true;
}

}  // namespace

unsigned draw(std::uint64_t& random, unsigned n) {
  random ^= random << 13;
  random ^= random >> 7;
  random ^= random << 17;
  return static_cast<unsigned>((random >> 32) * n >> 32);
}

void run_block(const dim3& shape, std::uint64_t& random, const std::function<void()>& body) {
  const unsigned n_threads = shape.x * shape.y * shape.z;
  block.n_threads = n_threads;
  block.n_ended = block.n_at_block_barrier = 0;
  block.random = &random;
  block.body = &body;
  block.error.clear();
  begin_copies(n_threads);
  for (Warp& warp : block.warps) warp.ready = warp.waiting = 0;
  block.ready_warps = block.current = 0;
  unsigned t = 0;
  for (unsigned z = 0; z < shape.z; ++z)
    for (unsigned y = 0; y < shape.y; ++y)
      for (unsigned x = 0; x < shape.x; ++x) {
        block.places[t] = {x, y, z};
        start(t++);
      }
  take_ready();
  switch_stack(&block.caller, block.fibers[block.current].stack_pointer);
  for (t = 0; t < n_threads; ++t)
    if (std::memcmp(stacks() + t * kStackBytes, &kCanary, sizeof kCanary) != 0)
      block.error = "a thread's stack overflowed";
  if (block.error.empty() && block.n_ended != n_threads) block.error = where_they_are();
  if (block.error.empty() && copies_are_left())
    block.error = "a block ended before its bulk copies";
  if (!block.error.empty()) throw std::runtime_error(block.error);
}

void sync_block() {
  block.fibers[block.current].state = State::at_block_barrier;
  if (++block.n_at_block_barrier == block.n_threads) {
    block.n_at_block_barrier = 0;
    for (unsigned t = 0; t < block.n_threads; ++t) make_ready(t);
  }
  go_on();
}

void sync_warp(std::uint32_t mask, const char* operation, void* brought, Together together) {
  const unsigned first = block.current / kLanes * kLanes, lane = block.current % kLanes;
  if ((mask >> lane & 1) == 0) fail("a lane is not in the mask that it gives");
  Warp& warp = block.warps[first / kLanes];
  Fiber& mine = block.fibers[block.current];
  mine.state = State::at_warp_barrier;
  mine.mask = mask;
  mine.operation = operation;
  warp.brought[lane] = brought;
  warp.waiting |= 1U << lane;
  if (all_here(warp, first, mask, operation)) {
    together(mask, warp.brought);
    for (std::uint32_t left = mask; left != 0; left &= left - 1)
      make_ready(first + static_cast<unsigned>(__builtin_ctz(left)));
    warp.waiting &= ~mask;
  }
  go_on();
}

void sleep_at(const void* address) {
  Fiber& mine = block.fibers[block.current];
  mine.state = State::asleep;
  mine.asleep_at = address;
  go_on();
}

void wake(const void* address) {
  for (unsigned t = 0; t < block.n_threads; ++t)
    if (block.fibers[t].state == State::asleep && block.fibers[t].asleep_at == address)
      make_ready(t);
}

void fail(const char* message) {
  block.error = message;
  void* abandoned = nullptr;
  switch_stack(&abandoned, block.caller);
  std::abort();  // it was gone on with
}

unsigned current_thread() { return block.current; }

}  // namespace cuda_emulation
