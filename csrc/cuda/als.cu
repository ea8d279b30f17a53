#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "../als.hpp"
#include "als_resident.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

class CudaAlsSolver final : public AlsSolver {
 public:
  explicit CudaAlsSolver(const AlsProblem& problem) : problem_(problem) {
    check_ids(problem.scores, stream_);
  }

  void step(MatrixView<float> row_factors, MatrixView<float> col_factors) const override {
    check_shapes(problem_, {row_factors.data, row_factors.rows, row_factors.cols},
                 {col_factors.data, col_factors.rows, col_factors.cols});
    const OnFirstDevice device;
    const std::lock_guard<std::mutex> lock(mutex_);
    prepare(row_factors.cols);
    resident_->step(row_factors, col_factors);
  }

  double objective(MatrixView<const float> row_factors,
                   MatrixView<const float> col_factors) const override {
    check_shapes(problem_, row_factors, col_factors);
    const OnFirstDevice device;
    const std::lock_guard<std::mutex> lock(mutex_);
    prepare(row_factors.cols);
    return resident_->objective(row_factors, col_factors);
  }

 private:
  void prepare(std::int64_t d) const {
    if (d == d_) return;
    resident_.reset();
    d_ = -1;
    Transposed transposed(HostScores(problem_.scores, stream_).view());
    const CsrView& scores = problem_.scores;
    RidgePlan rows(scores.indptr, scores.rows, d, problem_.cg_steps);
    RidgePlan cols(transposed.view().indptr, scores.cols, d, problem_.cg_steps);
    resident_ = std::make_unique<ResidentAls>(problem_, std::move(transposed), std::move(rows),
                                              std::move(cols), stream_);
    d_ = d;
  }

  AlsProblem problem_;
  Stream stream_;
  mutable std::mutex mutex_;  // one call at a time
  mutable std::int64_t d_ = -1;
  mutable std::unique_ptr<ResidentAls> resident_;  // for d_ factors
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
