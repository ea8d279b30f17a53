#include "grid.hpp"

#include <link.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "memory.hpp"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulation {
namespace {

// -- the module's thread-local storage is the kernels' shared memory ------------------------------

thread_local char anchor = 0;  // finds this module's thread-local storage, and has it allocated

struct Range {
  char* begin = nullptr;
  std::size_t size = 0;
};

// This thread's copy of the module's thread-local storage.
Range thread_storage() {
  Range found;
  const volatile char* touched = &anchor;
  const auto look = [](dl_phdr_info* info, std::size_t, void* out) {
    char* begin = static_cast<char*>(info->dlpi_tls_data);
    for (int i = 0; begin != nullptr && i < info->dlpi_phnum; ++i) {
      const std::size_t size = info->dlpi_phdr[i].p_memsz;
      if (info->dlpi_phdr[i].p_type == PT_TLS && &anchor >= begin && &anchor < begin + size)
        *static_cast<Range*>(out) = {begin, size};
    }
    return 0;
  };
  dl_iterate_phdr(look, &found);
  if (found.begin == nullptr || *touched != anchor) std::abort();
  return found;
}

// What this thread holds there is put back when the kernel is done.
class KeptStorage {
 public:
  KeptStorage() : range_(thread_storage()), kept_(range_.begin, range_.begin + range_.size) {}
  KeptStorage(const KeptStorage&) = delete;
  ~KeptStorage() { std::memcpy(range_.begin, kept_.data(), range_.size); }

  void poison() const { std::memset(range_.begin, 0xff, range_.size); }

 private:
  Range range_;
  std::vector<char> kept_;
};

std::vector<char> dynamic_shared;
char* dynamic_begin = nullptr;
std::uint64_t random_state = 0x9e3779b97f4a7c15 + number_from("CUDA_EMULATION_SEED", 0);

void poison_shared(const KeptStorage& storage, std::size_t bytes) {
  storage.poison();
  dynamic_shared.assign(bytes + 2 * kGuardBytes, static_cast<char>(0xff));
  const auto address = reinterpret_cast<std::uintptr_t>(dynamic_shared.data());
  dynamic_begin = dynamic_shared.data() + (128 - address % 128) % 128;
  for (std::size_t i = 0; i < 64; ++i) dynamic_begin[bytes + i] = guard_byte(i);
}

uint3 place(unsigned at, const dim3& shape) {
  return {at % shape.x, at / shape.x % shape.y, at / shape.x / shape.y};
}

}  // namespace

void* dynamic_shared_bytes() { return dynamic_begin; }

void run_grid(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const std::size_t n_blocks =
      std::size_t{1} * config.gridDim.x * config.gridDim.y * config.gridDim.z;
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  std::vector<unsigned> order(n_blocks);
  std::iota(order.begin(), order.end(), 0U);
  for (std::size_t i = n_blocks; i > 1; --i)
    std::swap(order[i - 1], order[draw(random_state, static_cast<unsigned>(i))]);
  const KeptStorage storage;
  for (const unsigned at : order) {
    poison_shared(storage, config.dynamicSmemBytes);
    blockIdx = place(at, config.gridDim);
    run_block(config.blockDim, random_state, thread);
    for (std::size_t i = 0; i < 64; ++i)
      if (dynamic_begin[config.dynamicSmemBytes + i] != guard_byte(i))
        throw std::runtime_error("a write behind the dynamic shared memory");
  }
}

}  // namespace cuda_emulation
