#include <cstdint>
#include <stdexcept>

#include "../score_units.hpp"
#include "launch.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr double kNormalDeviation = 1.4826;  // over the median distance from the median

// -- a row, by a warp, each of whose lanes has every 32nd of its scores -----------------------

template <typename T>
__device__ T warp_sum(T x) {
  for (int bit = kWarp / 2; bit > 0; bit /= 2) x += __shfl_xor_sync(~0U, x, bit);
  return x;
}

// The sum of f(j) for j < n.
template <typename F>
__device__ auto row_sum(std::int64_t n, const F& f) {
  decltype(f(0)) sum{};
  for (std::int64_t j = threadIdx.x % kWarp; j < n; j += kWarp) sum += f(j);
  return warp_sum(sum);
}

template <typename F>
__device__ double root_mean_square(std::int64_t n, const F& f) {
  const double squares = row_sum(n, [&](std::int64_t j) { return f(j) * f(j); });
  const double size = sqrt(squares / static_cast<double>(n));
  return size > 0.0 ? size : 1.0;
}

// The bits of a number, so that those of a larger one are larger.
__device__ std::uint64_t ordered_bits(double x) {
  const auto bits = static_cast<std::uint64_t>(__double_as_longlong(x));
  return (bits >> 63) != 0 ? ~bits : bits | std::uint64_t{1} << 63;
}
__device__ double of_ordered_bits(std::uint64_t bits) {
  return __longlong_as_double(
      static_cast<long long>((bits >> 63) != 0 ? bits & ~(std::uint64_t{1} << 63) : ~bits));
}

// The upper median of f(j), bit after bit: it has a 1 where those with a 0, of all that begin as it
// does, are too few to reach it.
template <typename F>
__device__ double median(std::int64_t n, const F& f) {
  std::uint64_t found = 0;
  auto left = static_cast<int>(n / 2);  // are smaller, of those that begin so
  for (int bit = 63; bit >= 0; --bit) {
    const int zeros =
        row_sum(n, [&](std::int64_t j) { return int{ordered_bits(f(j)) >> bit == found >> bit}; });
    if (left < zeros) continue;
    left -= zeros;
    found |= std::uint64_t{1} << bit;
  }
  return of_ordered_bits(found);
}

template <typename F>
__device__ void write_standardised(std::int64_t n, const F& f, float* out) {
  const double mean = row_sum(n, f) / static_cast<double>(n);
  const auto centred = [&](std::int64_t j) { return f(j) - mean; };
  const double size = root_mean_square(n, centred);
  for (std::int64_t j = threadIdx.x % kWarp; j < n; j += kWarp)
    out[j] = static_cast<float>(centred(j) / size);
}

struct Standardise {
  __device__ void operator()(std::int64_t n, const float* scores, float* out) const {
    write_standardised(n, [&](std::int64_t j) { return static_cast<double>(scores[j]); }, out);
  }
};

struct DrawIn {
  __device__ void operator()(std::int64_t n, const float* scores, float* out) const {
    const auto score = [&](std::int64_t j) { return static_cast<double>(scores[j]); };
    const double middle = median(n, score);
    const auto centred = [&](std::int64_t j) { return score(j) - middle; };
    double size = kNormalDeviation * median(n, [&](std::int64_t j) { return fabs(centred(j)); });
    if (size == 0.0) size = root_mean_square(n, centred);
    write_standardised(n, [&](std::int64_t j) { return asinh(centred(j) / size); }, out);
  }
};

template <typename Work>
__global__ void __launch_bounds__(kThreads)
    row_kernel(MatrixView<const float> scores, float* out, Work work) {
  const std::int64_t row = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
  const std::int64_t n = scores.cols, begin = row * n;
  if (row < scores.rows) work(n, scores.data + begin, out + begin);
}

// -- one by one -------------------------------------------------------------------------------

// As cpu::bend does.
__device__ double bent(const ScoreMap& map, double y) {
  const double *knots = map.knots.data, *values = map.values.data;
  const std::int64_t last = map.knots.size - 1;
  std::int64_t j = 0, end = last;  // of the slope: between knots j and j + 1
  while (j + 1 < end) {
    const std::int64_t middle = (j + end) / 2;
    (y < knots[middle] ? end : j) = middle;
  }
  const double slope = (values[j + 1] - values[j]) / (knots[j + 1] - knots[j]);
  const bool below = y < knots[0], above = !(y < knots[last]);  // no number is above
  if (map.straight || !(below || above)) return values[j] + slope * (y - knots[j]);
  return below ? values[0] - log1p(slope * (knots[0] - y))
               : values[last] + log1p(slope * (y - knots[last]));
}

__global__ void __launch_bounds__(kThreads)
    bend_kernel(MatrixView<const float> scores, float* out, ScoreMap map) {
  const std::int64_t e = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (e < scores.rows * scores.cols) out[e] = static_cast<float>(bent(map, scores.data[e]));
}

// Runs a kernel of so many threads over what is to be brought to units.
template <typename How>
void bring(void (*kernel)(MatrixView<const float>, float*, How), std::int64_t n_threads,
           MatrixView<const float> scores, MatrixView<float> out, const How& how) {
  if (out.rows != scores.rows || out.cols != scores.cols)
    throw std::invalid_argument("out: expected the shape of scores");
  const OnFirstDevice device;
  thread_local const Stream stream;
  launch(kernel, blocks_for(n_threads, kThreads), dim3(kThreads), 0, stream, scores, out.data, how);
  stream.wait();
}

}  // namespace

void standardise(MatrixView<const float> scores, MatrixView<float> out) {
  bring(row_kernel<Standardise>, scores.rows * kWarp, scores, out, Standardise{});
}

void draw_in(MatrixView<const float> scores, MatrixView<float> out) {
  bring(row_kernel<DrawIn>, scores.rows * kWarp, scores, out, DrawIn{});
}

void bend(const ScoreMap& map, MatrixView<const float> scores, MatrixView<float> out) {
  if (map.knots.size < 2 || map.values.size != map.knots.size)
    throw std::invalid_argument("knots: expected two at least, and as many values");
  bring(bend_kernel, scores.rows * scores.cols, scores, out, map);
}

}  // namespace cexnn::cuda
