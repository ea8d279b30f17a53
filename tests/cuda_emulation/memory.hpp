// The device's memory: one range of addresses, closed to the host but for copies and kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

namespace cuda_emulation {

// A number from the environment.
std::uint64_t number_from(const char* variable, std::uint64_t otherwise);

// The calling thread's device, CUDA_EMULATION_DEVICE at first. Only the first has memory, streams
// and kernels; 1 is there to be in the way.
int& current_device();

constexpr std::size_t kGuardBytes = 256;
constexpr std::uint32_t kGuard = 0xfffdc0de;  // NaN as a float and as two of double's words
inline char guard_byte(std::size_t at) { return static_cast<char>(kGuard >> 8 * (at % 4)); }

class Memory {
 public:
  Memory();

  void* allocate(std::size_t bytes);  // as NaN bytes; null: there is no room
  bool release(void* data);           // false: it is not the start of an array
  std::size_t total() const { return total_; }
  std::size_t left() const { return total_ - used_; }

  // Throws if somebody wrote around an array; the memory must be open.
  void check_guards() const;

  // How much of the array that holds the address lies from there on; 0: none does.
  std::size_t bytes_from(const void* data) const;
  bool in_arena(const void* data) const;

  void open();
  void close();

 private:
  void protect(int how) const;
  void guard(std::size_t at, std::size_t n) const;

  char* arena_ = nullptr;
  std::size_t high_water_ = 0;
  std::size_t used_ = 0;
  std::size_t total_;
  std::map<std::size_t, std::size_t> sizes_;  // offset of each array: its bytes
  int n_open_ = 0;
  char pattern_[2 * kGuardBytes + 4];  // of guards, from an offset that 4 divides
};

Memory& memory();

// While one exists, device memory is open to this process.
struct Open {
  Open() { memory().open(); }
  Open(const Open&) = delete;
  ~Open() { memory().close(); }
};

}  // namespace cuda_emulation
