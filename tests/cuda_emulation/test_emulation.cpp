// The emulation itself: what is right gives the right numbers, what is wrong shows.
#include "test_emulation.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdlib>

#include "../../csrc/device.hpp"

namespace {

// Sums over warps by shuffles, over the block by shared memory, over blocks by an atomic.
__global__ void sum_kernel(const int* values, int n, int* total) {
  __shared__ int of_warps[8];
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  int sum = i < n ? values[i] : 0;
  for (int by = 16; by > 0; by /= 2) sum += __shfl_down_sync(~0U, sum, static_cast<unsigned>(by));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < 8; ++w) sum += of_warps[w];
  atomicAdd(total, sum);
}

// Running sums of one block; kBarrier false leaves out what keeps readers from writers.
template <bool kBarrier>
__global__ void scan_kernel(const int* values, int* sums) {
  int* shared = dynamic_shared<int>();
  const unsigned t = threadIdx.x;
  shared[t] = values[t];
  __syncthreads();
  for (unsigned by = 1; by < blockDim.x; by *= 2) {
    const int before = t >= by ? shared[t - by] : 0;
    if (kBarrier) __syncthreads();
    shared[t] += before;
    __syncthreads();
  }
  sums[t] = shared[t];
}

__global__ void half_waits_kernel() {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void lost_lane_kernel(int* out) {
  if (threadIdx.x != 5) out[threadIdx.x] = __shfl_xor_sync(~0U, 1, 1);
}
__global__ void write_at_kernel(float* values, int at) { values[at] = 1.0F; }
__global__ void copy_shared_kernel(float* out) {
  __shared__ float rubbish[32];
  out[threadIdx.x] = rubbish[threadIdx.x];
  rubbish[threadIdx.x] = 0.0F;
}
__global__ void ballots_kernel(unsigned* out) {
  const unsigned lane = threadIdx.x, mask = lane < 12 ? 0xfffU : ~0xfffU;
  out[lane] = __ballot_sync(mask, lane % 2 == 0);
  __syncwarp();
  out[32 + lane] = __shfl_sync(~0U, lane, 3, 8);
  out[64 + lane] = static_cast<unsigned>(__any_sync(~0U, lane == 7) + __all_sync(~0U, lane < 31));
  out[96 + lane] = __shfl_up_sync(~0U, lane, 1);
  out[128 + lane] = static_cast<unsigned>(__syncthreads_count(lane < 5));
}

void test_sum() {
  const Stream stream;
  const std::vector<int> values = numbers(1000);
  const DeviceBuffer<int> in = uploaded(values, stream), out = uploaded<int>({0}, stream);
  launch(sum_kernel, 4, 256, 0, stream, in.data(), 1000, out.data());
  int expected = 0;
  for (const int value : values) expected += value;
  expect(downloaded(out, stream)[0] == expected, "a sum over blocks");
}

template <bool kBarrier>
bool scan_is_right() {
  const Stream stream;
  const std::vector<int> values = numbers(512);
  const DeviceBuffer<int> in = uploaded(values, stream);
  const DeviceBuffer<int> out(512);
  launch(scan_kernel<kBarrier>, 1, 512, 512 * sizeof(int), stream, in.data(), out.data());
  const std::vector<int> sums = downloaded(out, stream);
  int sum = 0;
  for (std::size_t i = 0; i < 512; ++i)
    if (sums[i] != (sum += values[i])) return false;
  return true;
}

void test_barriers() {
  expect(scan_is_right<true>(), "running sums");
  expect(!scan_is_right<false>(), "a missing barrier shows");
  const Stream stream;
  const DeviceBuffer<int> out(64);
  std::string message = message_of([&] {
    launch(half_waits_kernel, 1, 64, 0, stream);
    stream.wait();
  });
  expect(contains(message, "deadlock: of 64 threads 32 wait at __syncthreads"), message.c_str());
  message = message_of([&] {
    launch(lost_lane_kernel, 2, 32, 0, stream, out.data());
    stream.wait();
  });
  expect(contains(message, "31 wait") || contains(message, "31 at a warp's barrier"),
         message.c_str());
}

void test_memory() {
  const Stream stream;
  const DeviceBuffer<float> values(33);
  for (const float value : downloaded(values, stream))
    expect(std::isnan(value), "device memory starts as NaN");
  for (const int at : {-1, 33}) {
    const std::string message = message_of([&] {
      launch(write_at_kernel, 1, 1, 0, stream, values.data(), at);
      stream.wait();
    });
    expect(contains(message, "a write outside an array of 132 bytes"), message.c_str());
  }
  launch(copy_shared_kernel, 3, 32, 0, stream, values.data());
  const std::vector<float> shared = downloaded(values, stream);
  for (int i = 0; i < 32; ++i)
    expect(std::isnan(shared[static_cast<std::size_t>(i)]), "shared memory starts as NaN");
  expect(on_device(values.data() + 32) && !on_device(&stream), "device pointers are known");
  expect(contains(message_of([] { DeviceBuffer<char> all(std::int64_t{1} << 40); }),
                  "cudaMalloc: no room for 1099511627776 bytes"),
         "too much memory is refused");
}

void test_streams() {
  const Stream stream;
  const DeviceBuffer<float> values = uploaded<float>(std::vector<float>(32, 1.0F), stream);
  float seen = 0.0F;
  launch(add_kernel, 1, 32, 0, stream, values.data(), 2.0F);
  copy(static_cast<const float*>(values.data()), &seen, 1, stream);
  expect(seen == 0.0F, "nothing is done before somebody waits");
  stream.wait();
  expect(seen == 3.0F, "then all is done in turn");

  const float one = 1.0F;
  cudaMemcpy(values.data(), &one, sizeof one, cudaMemcpyDefault);
  expect(downloaded(values, stream)[0] == 3.0F, "cudaMemcpy does not wait for the device");
  cudaStreamSynchronize(nullptr);
  expect(downloaded(values, stream)[0] == 1.0F, "the default stream does");

  Graph graph;
  graph.record(stream, [&] {
    launch(add_kernel, 1, 32, 0, stream, values.data(), 10.0F);
    launch(add_kernel, 1, 32, 0, stream, values.data(), 100.0F);
  });
  expect(downloaded(values, stream)[1] == 3.0F, "recording runs nothing");
  graph.replay(stream);
  graph.replay(stream);
  expect(downloaded(values, stream)[31] == 223.0F, "a graph runs as often as it is replayed");
  const std::string message =
      message_of([&] { graph.record(stream, [] { const DeviceBuffer<float> more(1); }); });
  expect(contains(message, "capturing"), "no allocation while recording");
}

void test_warps() {
  const Stream stream;
  const DeviceBuffer<unsigned> out(160);
  launch(ballots_kernel, 1, 32, 0, stream, out.data());
  const std::vector<unsigned> found = downloaded(out, stream);
  expect(found[0] == 0x555U && found[31] == 0x55555000U, "ballots of part of a warp");
  expect(found[32 + 6] == 3 && found[32 + 30] == 27, "shuffles within eight lanes");
  expect(found[64] == 1, "any and all");
  expect(found[96] == 0 && found[96 + 31] == 30, "shuffles up");
  expect(found[128] == 5, "counts over a block");
}

void test_launches() {
  const Stream stream;
  const DeviceBuffer<float> values(1);
  const auto launch_with = [&](dim3 grid, dim3 block, std::size_t shared_bytes) {
    return message_of([&] {
      launch(write_at_kernel, grid, block, shared_bytes, stream, values.data(), 0);
      stream.wait();
    });
  };
  expect(launch_with(0, 1, 0).empty(), "an empty grid is no work");
  expect(launch_with(1, 1, 200 * 1024).empty(), "much shared memory");
  expect(contains(launch_with(1, 1, 228 * 1024), "cudaLaunchKernelEx"), "too much of it");
  expect(launch_with(1, 1, 50 * 1024).empty(), "less of it");
  cudaFuncAttributes attributes;
  cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(write_at_kernel));
  expect(attributes.maxDynamicSharedSizeBytes >= 200 * 1024, "a launch takes none from others");
  expect(contains(launch_with(1, 1025, 0), "invalid configuration"), "too many threads");
  expect(contains(launch_with(dim3(1, 65536), 1, 0), "invalid configuration"), "too many blocks");
}

__global__ void waiting_kernel(unsigned n_waiting, int* out) {
  if (threadIdx.x < n_waiting) wait_for_grid_before();
  out[threadIdx.x] = 1;
}

void test_early_launches() {
  const Stream stream;
  const DeviceBuffer<int> out(32);
  const auto launched = [&](unsigned n_waiting) {
    return message_of([&] {
      launch_early(waiting_kernel, 3, 32, 0, stream, n_waiting, out.data());
      stream.wait();
    });
  };
  expect(launched(32).empty(), "a kernel that waits for the grid before");
  expect(contains(launched(31), "launched early"), "one of which a thread does not");
}

void test_devices() {
  cudaSetDevice(1);
  expect(contains(message_of([] { DeviceBuffer<char> none(1); }), "invalid resource handle"),
         "nothing lies on another device");
  expect(message_of([] {
           const OnFirstDevice device;
           const Stream stream;
           const DeviceBuffer<float> values = uploaded<float>({1.0F}, stream);
           launch(add_kernel, 1, 1, 0, stream, values.data(), 2.0F);
           expect(downloaded(values, stream)[0] == 3.0F, "kernels run on the first device");
         }).empty(),
         "whatever device the thread had");
  int device = 0;
  cudaGetDevice(&device);
  expect(device == 1, "the thread has its device again");
  cudaSetDevice(0);
  for (const char* capability : {"70", "75"}) {
    setenv("CUDA_EMULATION_CAPABILITY", capability, 1);
    expect(available() == (capability == std::string("75")), "what no kernel is for is of no use");
  }
  unsetenv("CUDA_EMULATION_CAPABILITY");
}

void test_rounding() {
  bool exact = true;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const auto half = __ushort_as_half(static_cast<std::uint16_t>(bits));
    const auto brain = __ushort_as_bfloat16(static_cast<std::uint16_t>(bits));
    if (!std::isnan(__half2float(half)))
      exact = exact && __float2half(__half2float(half)).bits == bits;
    if (!std::isnan(__bfloat162float(brain)))
      exact = exact && __float2bfloat16(__bfloat162float(brain)).bits == bits;
  }
  expect(exact, "every half and bfloat16 survives the way to float and back");
  expect(__half2float(__ushort_as_half(0x3555)) == 0.333251953125F, "a half's number");
  expect(__half_as_ushort(__float2half(2049.0F)) == 0x6800, "a tie goes to the even half");
  expect(__half_as_ushort(__float2half(2051.0F)) == 0x6802, "up, too");
  expect(__half_as_ushort(__float2half(65519.0F)) == 0x7bff, "the largest half");
  expect(__half_as_ushort(__float2half(-65520.0F)) == 0xfc00, "beyond it is infinite");
  expect(__bfloat16_as_ushort(__float2bfloat16(1.00390625F)) == 0x3f80, "a tie, even bfloat16");
}

}  // namespace

int main() {
  test_sum();
  test_barriers();
  test_early_launches();
  test_memory();
  test_streams();
  test_recording();
  test_recordings_of_others();
  test_bulk_copies();
  test_warps();
  test_launches();
  test_devices();
  test_rounding();
  if (n_failed == 0) std::puts("the CUDA emulation works");
  return n_failed == 0 ? 0 : 1;
}
