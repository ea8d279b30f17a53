// Where the numerical work runs, and the device's memory for those who are not CUDA code.
#pragma once

#include <cstdint>
#include <memory>

namespace cexnn {

enum class Device { cpu, cuda };

namespace cuda {
// Whether this build has CUDA code and a device to run it on: CUDA's first, if its compute
// capability is 7.5 or above. Never throws.
bool available() noexcept;

// Uninitialised device memory, freed with its last owner. Throws std::bad_alloc, and
// std::runtime_error where available() is false.
std::shared_ptr<void> allocate(std::int64_t bytes);

// Bytes of the device's memory that nobody has. Throws std::runtime_error where available() is
// false.
std::int64_t free_memory();

// Between host and device, or within one; done when it returns.
void copy_bytes(const void* from, void* to, std::int64_t bytes);

// Until what others put on the device's default stream is done.
void wait_for_default_stream();
}  // namespace cuda

}  // namespace cexnn
