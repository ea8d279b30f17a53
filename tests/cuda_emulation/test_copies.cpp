// Bulk copies to shared memory: they come late, and to what nobody reads.
#include "test_emulation.hpp"

namespace {

// Every block reads its part of `values` through two stages, a step's 128 numbers at a time.
// kWait false waits for what is copied too late; kRelease false does not wait for what is read.
template <bool kWait, bool kRelease>
__global__ void stages_kernel(const float* values, int n_steps, float* sums) {
  constexpr int kNumbers = 128;
  alignas(16) __shared__ float stages[2][kNumbers];
  __shared__ CopyBarrier full[2];
  __shared__ CopyBarrier empty[2];
  const unsigned t = threadIdx.x;
  const float* mine = values + std::int64_t{blockIdx.x} * n_steps * kNumbers;
  const auto fetch = [&](int step) {
    arrive_expecting(&full[step % 2], sizeof stages[0]);
    copy_bulk(stages[step % 2], mine + step * kNumbers, sizeof stages[0], &full[step % 2]);
  };
  if (t == 0) {
    for (int s = 0; s < 2; ++s) {
      start_barrier(&full[s], 1);
      start_barrier(&empty[s], kNumbers);
    }
    show_barriers();
  }
  __syncthreads();
  if (t == 0) fetch(0);
  float sum = 0.0F;
  for (int step = 0; step < n_steps; ++step) {
    if (t == 0 && step + 1 < n_steps) {
      if (kRelease && step > 0) wait_for_phase(&empty[(step + 1) % 2], (step - 1) / 2 % 2);
      fetch(step + 1);
    }
    if (kWait) wait_for_phase(&full[step % 2], step / 2 % 2);
    sum += stages[step % 2][t];
    if (!kWait) wait_for_phase(&full[step % 2], step / 2 % 2);
    arrive(&empty[step % 2]);
  }
  sums[blockIdx.x * kNumbers + t] = sum;
}

// One copy of n_bytes, of which `expected` are waited for.
__global__ void bulk_kernel(const float* values, unsigned n_bytes, unsigned expected) {
  alignas(16) __shared__ float stage[64];
  __shared__ CopyBarrier barrier;
  if (threadIdx.x == 0) {
    start_barrier(&barrier, 1);
    arrive_expecting(&barrier, expected);
    copy_bulk(stage, values, n_bytes, &barrier);
  }
  __syncthreads();
  wait_for_phase(&barrier, 0);
}

__global__ void unstarted_kernel() {
  __shared__ CopyBarrier barrier;
  arrive(&barrier);
}

template <bool kWait, bool kRelease>
bool stages_are_right() {
  const Stream stream;
  constexpr std::size_t kSteps = 7, kBlocks = 3, kNumbers = 128;
  std::vector<float> values;
  for (const int number : numbers(kSteps * kBlocks * kNumbers)) values.push_back(float(number));
  const DeviceBuffer<float> in = uploaded(values, stream);
  const DeviceBuffer<float> out(kBlocks * kNumbers);
  launch(stages_kernel<kWait, kRelease>, kBlocks, kNumbers, 0, stream, in.data(), int(kSteps),
         out.data());
  const std::vector<float> sums = downloaded(out, stream);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    float sum = 0.0F;
    for (std::size_t step = 0; step < kSteps; ++step)
      sum += values[(i / kNumbers * kSteps + step) * kNumbers + i % kNumbers];
    if (sum != sums[i]) return false;
  }
  return true;
}

}  // namespace

void test_bulk_copies() {
  expect(stages_are_right<true, true>(), "stages that are filled while others are read");
  expect(!stages_are_right<false, true>(), "a missing wait for a copy shows");
  expect(!stages_are_right<true, false>(), "a copy to what is still read shows");
  const Stream stream;
  const DeviceBuffer<float> values(64);
  const auto copy_of = [&](const float* from, unsigned n_bytes, unsigned expected) {
    return message_of([&] {
      launch(bulk_kernel, 1, 32, 0, stream, from, n_bytes, expected);
      stream.wait();
    });
  };
  expect(copy_of(values.data(), 256, 256).empty(), "a bulk copy");
  expect(contains(copy_of(values.data() + 1, 64, 64), "aligned 16 bytes"), "one from an odd place");
  expect(contains(copy_of(values.data(), 24, 24), "aligned 16 bytes"), "one of an odd size");
  expect(contains(copy_of(values.data() + 32, 256, 256), "outside an array"), "one too long");
  expect(contains(copy_of(values.data(), 64, 128), "for a phase of a barrier"), "too few bytes");
  expect(contains(copy_of(values.data(), 128, 64), "more bytes came"), "too many bytes");
  expect(contains(message_of([&] {
                    launch(unstarted_kernel, 1, 32, 0, stream);
                    stream.wait();
                  }),
                  "not started"),
         "a barrier that was not started");
}
