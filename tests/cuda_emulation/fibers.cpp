#include "fibers.hpp"

#include <sys/mman.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "copies.hpp"

// switch_stack(&save, load): pushes what a call must preserve, leaves the stack at *save, goes on
// with the one at load.
extern "C" void cuda_emulation_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.globl cuda_emulation_switch
.hidden cuda_emulation_switch
.type cuda_emulation_switch,@function
cuda_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulation_switch,.-cuda_emulation_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl cuda_emulation_switch
.hidden cuda_emulation_switch
.type cuda_emulation_switch,@function
cuda_emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size cuda_emulation_switch,.-cuda_emulation_switch
)");
#else
#error "the emulation knows how to switch stacks on x86-64 and on aarch64 only"
#endif

namespace cuda_emulation {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kLanes = 32;
constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::uint64_t kCanary = 0x5afe5afe5afe5afe;

enum class State { ready, at_block_barrier, at_warp_barrier, asleep, ended };

struct Fiber {
  void* stack_pointer = nullptr;
  State state = State::ended;
  std::uint32_t mask = 0;           // of the warp barrier that it waits at
  const char* operation = nullptr;  // there
  Exchange* exchange = nullptr;     // there
  const void* asleep_at = nullptr;
};

struct Warp {
  std::uint32_t waiting = 0;  // lanes at a warp barrier
  const void* pointers[kLanes] = {};
};

// One block at a time: all of its state.
struct Block {
  unsigned n_threads = 0;
  unsigned n_ended = 0;
  unsigned n_at_block_barrier = 0;
  unsigned current = 0;
  void* caller = nullptr;  // stack of run_block
  Fiber fibers[kMaxThreads];
  Warp warps[kMaxThreads / kLanes];
  std::vector<unsigned> ready;
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

// Goes on with another thread that can, or with run_block where there is none.
void go_on() {
  void** mine = &block.fibers[block.current].stack_pointer;
  while (block.ready.empty() && block.n_ended < block.n_threads && finish_a_copy(*block.random)) {
  }
  if (block.ready.empty()) {
    cuda_emulation_switch(mine, block.caller);
    return;
  }
  const unsigned at = draw(*block.random, static_cast<unsigned>(block.ready.size()));
  const unsigned next = block.ready[at];
  block.ready[at] = block.ready.back();
  block.ready.pop_back();
  const bool same = next == block.current;
  block.current = next;
  threadIdx = block.places[next];
  if (!same) cuda_emulation_switch(mine, block.fibers[next].stack_pointer);
}

void make_ready(unsigned thread) {
  block.fibers[thread].state = State::ready;
  block.ready.push_back(thread);
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
  auto** top =
      reinterpret_cast<void**>(bottom + kStackBytes - 4096 + (thread * 320) % 4096 / 16 * 16);
#if defined(__x86_64__)
  *--top = nullptr;  // as if fiber_main had been called from nowhere
  *--top = reinterpret_cast<void*>(&fiber_main);
  top -= 6;
#else
  top -= 20;
  top[11] = reinterpret_cast<void*>(&fiber_main);  // x30
#endif
  block.fibers[thread] = {};
  block.fibers[thread].stack_pointer = top;
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
  block.ready.clear();
  begin_copies(n_threads);
  for (Warp& warp : block.warps) warp.waiting = 0;
  unsigned t = 0;
  for (unsigned z = 0; z < shape.z; ++z)
    for (unsigned y = 0; y < shape.y; ++y)
      for (unsigned x = 0; x < shape.x; ++x) {
        block.places[t] = {x, y, z};
        start(t++);
      }
  block.current = block.ready.back();
  block.ready.pop_back();
  threadIdx = block.places[block.current];
  cuda_emulation_switch(&block.caller, block.fibers[block.current].stack_pointer);
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

void sync_warp(std::uint32_t mask, const char* operation, Exchange& exchange) {
  const unsigned first = block.current / kLanes * kLanes, lane = block.current % kLanes;
  if ((mask >> lane & 1) == 0) fail("a lane is not in the mask that it gives");
  Warp& warp = block.warps[first / kLanes];
  Fiber& mine = block.fibers[block.current];
  mine.state = State::at_warp_barrier;
  mine.mask = mask;
  mine.operation = operation;
  mine.exchange = &exchange;
  warp.waiting |= 1U << lane;
  if (all_here(warp, first, mask, operation)) {
    std::uint64_t given[kLanes] = {};
    std::uint32_t nonzero = 0;
    for (unsigned other = 0; other < kLanes; ++other) {
      if ((mask >> other & 1) == 0) continue;
      given[other] = block.fibers[first + other].exchange->value;
      nonzero |= static_cast<std::uint32_t>(given[other] != 0) << other;
    }
    for (unsigned other = 0; other < kLanes; ++other) {
      if ((mask >> other & 1) == 0) continue;
      Exchange& theirs = *block.fibers[first + other].exchange;
      if ((mask >> theirs.source & 1) == 0) fail("a lane reads one that is not in the mask");
      theirs.value = given[theirs.source];
      theirs.nonzero = nonzero;
      make_ready(first + other);
    }
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
  cuda_emulation_switch(&abandoned, block.caller);
  std::abort();  // it was gone on with
}

unsigned current_thread() { return block.current; }

const void** warp_pointers() { return block.warps[block.current / kLanes].pointers; }

}  // namespace cuda_emulation
