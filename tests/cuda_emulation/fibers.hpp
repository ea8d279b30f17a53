// The threads of one block as fibers of one thread of the CPU.
#pragma once

#include <cstdint>
#include <functional>

#include "vector_types.h"

extern uint3 threadIdx;

namespace cuda_emulation {

// Runs `body` once for each thread of a block of that shape, threadIdx set, each up to its next
// barrier at a time, in an order drawn anew from `random` whenever several could go on: mostly one
// of the same warp, whose stacks are in the cache. Throws std::runtime_error if they stop at
// barriers that not all of them reach.
void run_block(const dim3& shape, std::uint64_t& random, const std::function<void()>& body);

// The following are for the body.

// Until all threads of the block are here; a thread that has ended never comes.
void sync_block();

// What a warp does together: of_lanes[l] is what lane l of the mask brought.
using Together = void (*)(std::uint32_t mask, void* const* of_lanes);

// Until all lanes of the mask, this one among them, are here with the same mask and operation; the
// last to come does what they do together.
void sync_warp(std::uint32_t mask, const char* operation, void* brought, Together together);

// Until another thread wakes those that sleep at the address.
void sleep_at(const void* address);
void wake(const void* address);

// Ends the kernel with std::runtime_error(message).
[[noreturn]] void fail(const char* message);

unsigned current_thread();

// A number from 0 to n - 1; xorshift.
unsigned draw(std::uint64_t& random, unsigned n);

}  // namespace cuda_emulation
