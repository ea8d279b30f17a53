#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace cuda_emulation {
namespace {

constexpr std::size_t kArenaBytes = std::size_t{1} << 38;  // of addresses
constexpr std::size_t kDefaultMemory = std::size_t{8} << 30;

std::size_t room(std::size_t bytes) {  // an array and the guard behind it
  return (bytes + 2 * kGuardBytes - 1) / kGuardBytes * kGuardBytes;
}

}  // namespace

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

int& current_device() {
  thread_local int device = static_cast<int>(number_from("CUDA_EMULATION_DEVICE", 0));
  return device;
}

Memory& memory() {
  static Memory* const whole = new Memory;  // outlives every static that frees from it
  return *whole;
}

Memory::Memory() : total_(number_from("CUDA_EMULATION_MEMORY", kDefaultMemory)) {
  for (std::size_t i = 0; i < sizeof pattern_; ++i) pattern_[i] = guard_byte(i);
  void* mapped =
      mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) std::abort();
  arena_ = static_cast<char*>(mapped);
}

void* Memory::allocate(std::size_t bytes) {
  if (bytes > left()) return nullptr;
  std::size_t at = kGuardBytes;
  for (const auto& [offset, size] : sizes_) {
    if (at + room(bytes) + kGuardBytes <= offset) break;
    at = offset + room(size) + kGuardBytes;
  }
  if (at + room(bytes) > kArenaBytes) return nullptr;
  open();
  constexpr std::size_t kPage = 4096;
  high_water_ = std::max(high_water_, (at + room(bytes) + kPage - 1) / kPage * kPage);
  protect(PROT_READ | PROT_WRITE);
  std::memset(arena_ + at, 0xff, bytes);
  guard(at - kGuardBytes, kGuardBytes);
  guard(at + bytes, room(bytes) - bytes);
  close();
  sizes_[at] = bytes;
  used_ += bytes;
  return arena_ + at;
}

bool Memory::release(void* data) {
  if (!in_arena(data)) return false;
  const auto found = sizes_.find(static_cast<std::size_t>(static_cast<char*>(data) - arena_));
  if (found == sizes_.end()) return false;
  used_ -= found->second;
  sizes_.erase(found);
  return true;
}

void Memory::check_guards() const {
  for (const auto& [offset, size] : sizes_) {
    const std::size_t end = offset + size;
    if (std::memcmp(arena_ + offset - kGuardBytes, pattern_, kGuardBytes) == 0 &&
        std::memcmp(arena_ + end, pattern_ + end % 4, room(size) - size) == 0)
      continue;
    guard(offset - kGuardBytes, kGuardBytes);  // reported once
    guard(end, room(size) - size);
    throw std::runtime_error("a write outside an array of " + std::to_string(size) + " bytes");
  }
}

std::size_t Memory::bytes_from(const void* data) const {
  if (!in_arena(data)) return 0;
  const auto offset = static_cast<std::size_t>(static_cast<const char*>(data) - arena_);
  auto next = sizes_.upper_bound(offset);
  if (next == sizes_.begin()) return 0;
  --next;
  return offset < next->first + next->second ? next->first + next->second - offset : 0;
}

bool Memory::in_arena(const void* data) const {
  return data >= arena_ && data < arena_ + kArenaBytes;
}

void Memory::open() {
  if (n_open_++ == 0) protect(PROT_READ | PROT_WRITE);
}

void Memory::close() {
  if (--n_open_ == 0) protect(PROT_NONE);
}

void Memory::protect(int how) const {
  if (high_water_ > 0 && mprotect(arena_, high_water_, how) != 0) std::abort();
}

void Memory::guard(std::size_t at, std::size_t n) const {
  for (std::size_t i = 0; i < n; ++i) arena_[at + i] = guard_byte(at + i);
}

}  // namespace cuda_emulation
