#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "../als.hpp"
#include "../device.hpp"
#include "als_resident.cuh"
#include "als_streamed.cuh"
#include "memory.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

// The device's memory that is free, but for what others and kernels may still need.
std::int64_t available_bytes() {
  const std::int64_t free = free_memory();
  return free - free / 8;
}

class CudaAlsSolver final : public AlsSolver {
 public:
  explicit CudaAlsSolver(const AlsProblem& problem) : problem_(problem) {
    check_ids(problem.scores, stream_);
  }

  bool in_host_memory(std::int64_t n_factors) const override {
    const OnFirstDevice device;
    const std::lock_guard<std::mutex> lock(mutex_);
    prepare(n_factors, nullptr, nullptr);
    return streamed_ != nullptr;
  }

  void step(MatrixView<float> row_factors, MatrixView<float> col_factors) const override {
    check_shapes(problem_, {row_factors.data, row_factors.rows, row_factors.cols},
                 {col_factors.data, col_factors.rows, col_factors.cols});
    const OnFirstDevice device;
    const std::lock_guard<std::mutex> lock(mutex_);
    prepare(row_factors.cols, row_factors.data, col_factors.data);
    streamed_ ? streamed_->step(row_factors, col_factors)
              : resident_->step(row_factors, col_factors);
  }

  double objective(MatrixView<const float> row_factors,
                   MatrixView<const float> col_factors) const override {
    check_shapes(problem_, row_factors, col_factors);
    const OnFirstDevice device;
    const std::lock_guard<std::mutex> lock(mutex_);
    prepare(row_factors.cols, row_factors.data, col_factors.data);
    return streamed_ ? streamed_->objective(row_factors, col_factors)
                     : resident_->objective(row_factors, col_factors);
  }

 private:
  // Makes what computes with d factors; those given, if any, must lie where it takes them.
  void prepare(std::int64_t d, const float* rows, const float* cols) const {
    const bool on_host = !on_device(rows) && !on_device(cols);
    if (d != d_) {
      resident_.reset();
      streamed_.reset();
      d_ = -1;
      make(d, rows, cols);
      d_ = d;
    }
    if (streamed_ && !on_host)
      throw std::invalid_argument(
          "factors: expected in the host's memory, as they do not fit on the device with the "
          "scores");
  }

  void make(std::int64_t d, const float* rows, const float* cols) const {
    const CsrView& scores = problem_.scores;
    HostScores host(scores, stream_);
    Transposed transposed(host.view());
    RidgePlan row_plan(scores.indptr, scores.rows, d, problem_.cg_steps);
    RidgePlan col_plan(transposed.view().indptr, scores.cols, d, problem_.cg_steps);
    std::int64_t needed = resident_bytes(problem_, d, row_plan, col_plan);
    if (on_device(rows)) needed -= scores.rows * d * static_cast<std::int64_t>(sizeof(float));
    if (on_device(cols)) needed -= scores.cols * d * static_cast<std::int64_t>(sizeof(float));
    if (const std::int64_t bytes = available_bytes(); needed > bytes) {
      streamed_ = std::make_unique<StreamedAls>(problem_, std::move(host), std::move(transposed), d,
                                                bytes, stream_);
    } else {
      resident_ = std::make_unique<ResidentAls>(problem_, std::move(transposed),
                                                std::move(row_plan), std::move(col_plan), stream_);
    }
  }

  AlsProblem problem_;
  Stream stream_;
  mutable std::mutex mutex_;  // one call at a time
  mutable std::int64_t d_ = -1;
  mutable std::unique_ptr<ResidentAls> resident_;  // for d_ factors: this
  mutable std::unique_ptr<StreamedAls> streamed_;  // or that
};

}  // namespace

void ridge(const RidgeProblem& problem, MatrixView<float> out) {
  check_shapes(problem, out);
  const OnFirstDevice device;
  const Stream stream;
  check_ids(problem.scores, stream);
  const DeviceCsr scores(problem.scores, stream);
  DeviceBuffer<float> factors, prior, storage;
  const std::int64_t d = out.cols, n = out.rows * d;
  float* found = output_on_device(out.data, n, storage);
  if (problem.cg_steps > 0) deliver<float>(out.data, found, n, stream);
  const DevicePlan plan(RidgePlan(scores.indptr, out.rows, d, problem.cg_steps), stream);
  RidgeSolver solver(stream);
  solver.start(device_problem(scores.view, to_device(problem.factors, factors, stream).data,
                              prior_on_device(problem.prior, prior, stream), found, d,
                              problem.regularization),
               out.rows, plan.plan, plan.lists);
  solver.finish(scores.indptr);
  deliver<float>(found, out.data, n, stream);
  stream.wait();
}

std::unique_ptr<AlsSolver> make_als_solver(const AlsProblem& problem) {
  const OnFirstDevice device;
  return std::make_unique<CudaAlsSolver>(problem);
}

}  // namespace cexnn::cuda
