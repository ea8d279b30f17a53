// What the tests of the emulation share.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/memory.cuh"
#include "../../csrc/cuda/runtime.cuh"

using namespace cexnn::cuda;

inline int n_failed = 0;

inline void expect(bool truth, const char* what) {
  if (truth) return;
  std::printf("FAILED: %s\n", what);
  ++n_failed;
}

// What `work` throws; empty: nothing.
template <typename Work>
std::string message_of(const Work& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

template <typename T>
DeviceBuffer<T> uploaded(const std::vector<T>& values, const Stream& stream) {
  DeviceBuffer<T> buffer(static_cast<std::int64_t>(values.size()));
  copy(values.data(), buffer.data(), buffer.size(), stream);
  return buffer;
}

template <typename T>
std::vector<T> downloaded(const DeviceBuffer<T>& buffer, const Stream& stream) {
  std::vector<T> values(static_cast<std::size_t>(buffer.size()));
  copy(static_cast<const T*>(buffer.data()), values.data(), buffer.size(), stream);
  stream.wait();
  return values;
}

inline std::vector<int> numbers(int n) {
  std::vector<int> values;
  for (int i = 0; i < n; ++i) values.push_back(i % 7);
  return values;
}

__global__ inline void add_kernel(float* values, float by) { values[threadIdx.x] += by; }

void test_bulk_copies();
void test_recording();
void test_recordings_of_others();
