// Copies to shared memory that arrive later, those of one block at a time.
#pragma once

#include <cstdint>

namespace cuda_emulation {

// Up to 16 bytes that arrive when this thread waits for their group, or never.
void copy_later(void* to, const void* from, unsigned bytes);
// Ends a group of this thread's copies.
void commit_copies();
// Until all of this thread's groups but the last n_pending have arrived.
void wait_copies(unsigned n_pending);

// Barriers whose phases end when all have arrived and all expected bytes have come. Their addresses
// name them.
void start_barrier(const void* barrier, int n_arrivals);
void arrive(const void* barrier, std::uint32_t expected_bytes);
void wait_for_phase(const void* barrier, int parity);

// Bytes that come when no thread can go on without them; until then there is rubbish.
void copy_bulk(void* to, const void* from, std::uint32_t bytes, const void* barrier);

// For the fibers: a block begins; a bulk copy of it arrives, false if there is none; whether there
// is one that has not.
void begin_copies(unsigned n_threads);
bool finish_a_copy(std::uint64_t& random);
bool copies_are_left();

}  // namespace cuda_emulation
