#include "copies.hpp"

#include <cstddef>
#include <cstring>
#include <map>
#include <vector>

#include "fibers.hpp"
#include "memory.hpp"

namespace cuda_emulation {
namespace {

struct Copy {
  void* to;
  unsigned char bytes[16];
  unsigned n_bytes;
  unsigned group;
};

struct ThreadCopies {
  std::vector<Copy> copies;  // that have not arrived
  unsigned n_groups = 0;     // so far
};

struct Barrier {
  int n_arrivals;            // of a phase
  int n_missing;             // of this one
  std::int64_t n_bytes = 0;  // that are still to come in it
  unsigned phase = 0;
};

struct BulkCopy {
  void* to;
  const void* from;
  std::uint32_t n_bytes;
  const void* barrier;
};

std::vector<ThreadCopies> of_threads;
std::map<const void*, Barrier> barriers;
std::vector<BulkCopy> bulk_copies;  // under way

Barrier& barrier_at(const void* address) {
  const auto found = barriers.find(address);
  if (found == barriers.end()) fail("a barrier that was not started");
  return found->second;
}

// Begins the next phase where this one's end has come.
void end_phase(const void* address) {
  Barrier& barrier = barrier_at(address);
  if (barrier.n_missing > 0) return;
  if (barrier.n_bytes < 0) fail("more bytes came than a barrier's phase expected");
  if (barrier.n_bytes > 0) return;
  ++barrier.phase;
  barrier.n_missing = barrier.n_arrivals;
  wake(address);
}

bool is_aligned(const void* data, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

}  // namespace

void begin_copies(unsigned n_threads) {
  of_threads.assign(n_threads, {});
  barriers.clear();
  bulk_copies.clear();
}

void copy_later(void* to, const void* from, unsigned bytes) {
  ThreadCopies& mine = of_threads[current_thread()];
  Copy copy{to, {}, bytes, mine.n_groups};
  if (bytes > sizeof copy.bytes) fail("an asynchronous copy of more than 16 bytes");
  std::memcpy(copy.bytes, from, bytes);
  mine.copies.push_back(copy);
}

void commit_copies() { ++of_threads[current_thread()].n_groups; }

void wait_copies(unsigned n_pending) {
  ThreadCopies& mine = of_threads[current_thread()];
  std::size_t n = 0;
  while (n < mine.copies.size() && mine.copies[n].group + n_pending < mine.n_groups) ++n;
  for (std::size_t i = 0; i < n; ++i)
    std::memcpy(mine.copies[i].to, mine.copies[i].bytes, mine.copies[i].n_bytes);
  mine.copies.erase(mine.copies.begin(), mine.copies.begin() + static_cast<std::ptrdiff_t>(n));
}

void start_barrier(const void* address, int n_arrivals) {
  if (!is_aligned(address, 8)) fail("a barrier that is not aligned");
  if (n_arrivals <= 0) fail("a barrier for nobody");
  if (barriers.count(address) > 0) fail("a barrier that is started again");
  barriers[address] = {n_arrivals, n_arrivals};
}

void arrive(const void* address, std::uint32_t expected_bytes) {
  constexpr std::int64_t kMostBytes = (1 << 20) - 1;
  Barrier& barrier = barrier_at(address);
  barrier.n_bytes += expected_bytes;
  if (barrier.n_bytes > kMostBytes) fail("a barrier's phase that expects too many bytes");
  --barrier.n_missing;
  end_phase(address);
}

void wait_for_phase(const void* address, int parity) {
  if (parity != 0 && parity != 1) fail("a parity that is neither 0 nor 1");
  while (static_cast<int>(barrier_at(address).phase % 2) == parity) sleep_at(address);
}

void copy_bulk(void* to, const void* from, std::uint32_t bytes, const void* barrier) {
  if (!is_aligned(to, 16) || !is_aligned(from, 16) || bytes % 16 != 0 || bytes == 0)
    fail("a bulk copy that is not of whole, aligned 16 bytes");
  if (memory().bytes_from(from) < bytes) fail("a bulk copy from outside an array");
  if (memory().in_arena(to)) fail("a bulk copy to what is not shared memory");
  barrier_at(barrier);
  std::memset(to, 0xff, bytes);
  bulk_copies.push_back({to, from, bytes, barrier});
}

bool copies_are_left() { return !bulk_copies.empty(); }

bool finish_a_copy(std::uint64_t& random) {
  if (bulk_copies.empty()) return false;
  const std::size_t at = draw(random, static_cast<unsigned>(bulk_copies.size()));
  const BulkCopy copy = bulk_copies[at];
  bulk_copies.erase(bulk_copies.begin() + static_cast<std::ptrdiff_t>(at));
  std::memcpy(copy.to, copy.from, copy.n_bytes);
  barrier_at(copy.barrier).n_bytes -= copy.n_bytes;
  end_phase(copy.barrier);
  return true;
}

}  // namespace cuda_emulation
