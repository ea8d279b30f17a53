#include <stdexcept>

#include "../known.hpp"
#include "launch.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    append_kernel(ScoredItems known, ScoredItems told, MatrixView<std::int32_t> ids,
                  MatrixView<float> scores) {
  const std::int64_t e = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (e >= ids.rows * ids.cols) return;
  const std::int64_t row = e / ids.cols, col = e % ids.cols;
  const bool old = col < known.ids.cols;
  const ScoredItems& from = old ? known : told;
  const std::int64_t at = row * from.ids.cols + (old ? col : col - known.ids.cols);
  ids.data[e] = from.ids.data[at];
  scores.data[e] = from.scores.data[at];
}

}  // namespace

void append(const ScoredItems& known, const ScoredItems& told, MatrixView<std::int32_t> ids_out,
            MatrixView<float> scores_out) {
  const std::int64_t n = ids_out.rows, cols = known.ids.cols + told.ids.cols;
  for (const ScoredItems& items : {known, told})
    if (items.ids.rows != n || items.scores.rows != n || items.ids.cols != items.scores.cols)
      throw std::invalid_argument("scores: expected one for each id");
  if (ids_out.cols != cols || scores_out.rows != n || scores_out.cols != cols)
    throw std::invalid_argument("ids_out: expected (n, a + b)");
  const OnFirstDevice device;
  thread_local const Stream stream;
  launch(append_kernel, blocks_for(n * cols, kThreads), dim3(kThreads), 0, stream, known, told,
         ids_out, scores_out);
  stream.wait();
}

}  // namespace cexnn::cuda
