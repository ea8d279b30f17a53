#include <algorithm>
#include <stdexcept>

#include "../embedding_map.hpp"
#include "launch.cuh"
#include "memory.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCols = 32;                   // of a block: a warp's lanes
constexpr int kSlices = 8;                  // of each sum, one a warp
constexpr int kRows = 8;                    // that share what is read of the matrix
constexpr int kDepth = 64;                  // of the sums at a time
constexpr std::int64_t kRowsAtOnce = 4096;  // through a network: bounds its hidden units
static_assert(kCols * kSlices == kThreads && kRows == kSlices);

// What becomes of a sum.
struct Plain {
  __device__ float operator()(float sum, std::int64_t, std::int64_t) const { return sum; }
};

// gelu(b1 + sum)
struct Hidden {
  const float* b1;
  __device__ float operator()(float sum, std::int64_t, std::int64_t col) const {
    const float x = sum + b1[col];
    return x * (0.5F * (1.0F + erff(x * 0.70710678F)));
  }
};

// s (sigmoid(w) (b2 + sum) + (1 - sigmoid(w)) e / r); `end` is where w, 1 / r and s lie.
struct Gated {
  const float* b2;
  const float* end;
  MatrixView<const float> embeddings;
  __device__ float operator()(float sum, std::int64_t row, std::int64_t col) const {
    const float share = 1.0F / (1.0F + expf(-end[0])),
                x = end[1] * embeddings.data[row * embeddings.cols + col];
    return end[2] * (share * (sum + b2[col]) + (1.0F - share) * x);
  }
};

// out = finish(unit left right), left (n, depth), right (depth, out.cols), unit a number or null:
// 1. Tiles of rows by blockIdx.x, of columns by blockIdx.y; n depth out.cols multiplications, of
// which eight share a read of `right`.
template <typename Finish>
__global__ void __launch_bounds__(kThreads)
    product_kernel(MatrixView<const float> left, const float* unit, const float* right,
                   MatrixView<float> out, Finish finish) {
  __shared__ __align__(16) float rows[kDepth][kRows];
  __shared__ float sums[kSlices][kRows][kCols];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kCols, slice = thread / kCols;
  const std::int64_t first = std::int64_t{blockIdx.x} * kRows;
  const std::int64_t col = std::int64_t{blockIdx.y} * kCols + lane;
  const float times = unit == nullptr ? 1.0F : *unit;
  float mine[kRows] = {};
  for (std::int64_t begin = 0; begin < left.cols; begin += kDepth) {
    __syncthreads();  // the last ones are read
    for (int e = thread; e < kDepth * kRows; e += kThreads) {
      const int r = e / kDepth, j = e % kDepth;
      const bool inside = first + r < left.rows && begin + j < left.cols;
      rows[j][r] = inside ? times * left.data[(first + r) * left.cols + begin + j] : 0.0F;
    }
    __syncthreads();
    if (col < out.cols) {
#pragma unroll
      for (int j = slice; j < kDepth; j += kSlices) {
        const float weight = begin + j < left.cols ? right[(begin + j) * out.cols + col] : 0.0F;
#pragma unroll
        for (int r = 0; r < kRows; ++r) mine[r] = fmaf(rows[j][r], weight, mine[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) sums[slice][r][lane] = mine[r];
  __syncthreads();
  const std::int64_t row = first + slice;  // a warp now has a row
  if (row >= out.rows || col >= out.cols) return;
  float sum = 0.0F;
#pragma unroll
  for (int s = 0; s < kSlices; ++s) sum += sums[s][slice][lane];
  out.data[row * out.cols + col] = finish(sum, row, col);
}

__global__ void __launch_bounds__(kThreads)
    scale_kernel(MatrixView<const float> from, float scale, float* out) {
  const std::int64_t e = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (e < from.rows * from.cols) out[e] = scale * from.data[e];
}

template <typename Finish>
void multiply(MatrixView<const float> left, const float* unit, const float* right,
              MatrixView<float> out, const Finish& finish, const Stream& stream) {
  const dim3 grid(blocks_for(out.rows, kRows).x, blocks_for(out.cols, kCols).x);
  launch(product_kernel<Finish>, grid, dim3(kThreads), 0, stream, left, unit, right, out, finish);
}

struct Space {
  Stream stream;
  DeviceBuffer<float> hidden;
};

// The layout of `network` is that of cexnn.gated: W1, b1, W2, b2, w, 1 / r, s.
void apply_network(const float* network, MatrixView<const float> embeddings, MatrixView<float> out,
                   Space& space) {
  const std::int64_t d = embeddings.cols, n_hidden = 2 * d;
  const float* b1 = network + d * n_hidden;
  const float* w2 = b1 + n_hidden;
  const float* b2 = w2 + n_hidden * d;
  const float* end = b2 + d;
  space.hidden.reserve(std::min(kRowsAtOnce, embeddings.rows) * n_hidden);
  for (std::int64_t row = 0; row < embeddings.rows; row += kRowsAtOnce) {
    const std::int64_t n = std::min(kRowsAtOnce, embeddings.rows - row);
    const MatrixView<const float> part{embeddings.row(row), n, d};
    float* hidden = space.hidden.data();
    multiply(part, end + 1, network, {hidden, n, n_hidden}, Hidden{b1}, space.stream);
    multiply({hidden, n, n_hidden}, nullptr, w2, {out.row(row), n, d}, Gated{b2, end, part},
             space.stream);
  }
}

}  // namespace

void map_embeddings(MatrixView<const float> embeddings, const EmbeddingMap& map,
                    MatrixView<float> out) {
  const std::int64_t d = embeddings.cols;
  const bool by_matrix = map.matrix.data != nullptr, by_network = map.network.data != nullptr;
  if (by_matrix && map.matrix.rows != d)
    throw std::invalid_argument("map: expected a row for each dimension of the embeddings");
  if (by_network && map.network.size != 4 * d * d + 3 * d + 3)
    throw std::invalid_argument("map: expected a network of the embeddings' dimensions");
  if (out.rows != embeddings.rows || out.cols != (by_matrix ? map.matrix.cols : d))
    throw std::invalid_argument("out: expected (n, d_out)");
  const OnFirstDevice device;
  thread_local Space space;
  const Stream& stream = space.stream;
  if (by_network) {
    apply_network(map.network.data, embeddings, out, space);
  } else if (by_matrix) {
    multiply(embeddings, nullptr, map.matrix.data, out, Plain{}, stream);
  } else {
    launch(scale_kernel, blocks_for(out.rows * out.cols, kThreads), dim3(kThreads), 0, stream,
           embeddings, map.scale, out.data);
  }
  stream.wait();
}

}  // namespace cexnn::cuda
