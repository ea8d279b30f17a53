// The factorisation with both sides' factors and scores on the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../als.hpp"
#include "../transposed.hpp"
#include "ids.cuh"
#include "launch.cuh"
#include "memory.cuh"
#include "objective.cuh"
#include "ridge_solver.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

// Throws for ids out of range.
void check_ids(const CsrView& matrix, const Stream& stream) {
  if (!on_device(matrix.indices)) {
    checked_ids(matrix);
    return;
  }
  DeviceBuffer<int> bad;
  if (!all_within(matrix.indices, matrix.indptr[matrix.rows], 0, matrix.cols, bad, stream))
    throw std::invalid_argument(kIdOutOfRange);
}

// The matrix in the host's memory. Borrows what lies there.
class HostScores {
 public:
  HostScores(const CsrView& matrix, const Stream& stream) : view_(matrix) {
    const std::int64_t n = matrix.indptr[matrix.rows];
    view_.indices = on_host(matrix.indices, n, indices_, stream);
    view_.values = on_host(matrix.values, n, values_, stream);
  }
  const CsrView& view() const { return view_; }

 private:
  std::vector<std::int32_t> indices_;
  std::vector<float> values_;
  CsrView view_;
};

// A sparse matrix on the device, its starts on the host as well. Borrows what lies on the device
// and, all along, matrix.indptr. Wait for the stream before the matrix goes.
struct DeviceCsr {
  DeviceBuffer<std::int64_t> indptr_storage;
  DeviceBuffer<std::int32_t> indices_storage;
  DeviceBuffer<float> values_storage;
  CsrView view;  // on the device
  const std::int64_t* indptr = nullptr;

  DeviceCsr(const CsrView& matrix, const Stream& stream) : view(matrix), indptr(matrix.indptr) {
    const std::int64_t n = matrix.indptr[matrix.rows];
    view.indptr = to_device(matrix.indptr, matrix.rows + 1, indptr_storage, stream);
    view.indices = to_device(matrix.indices, n, indices_storage, stream);
    view.values = to_device(matrix.values, n, values_storage, stream);
  }
};

// A plan whose lists are on the device; those on the host are gone.
struct DevicePlan {
  RidgePlan plan;
  std::deque<DeviceBuffer<unsigned char>> storage;
  PlanLists lists;

  DevicePlan(RidgePlan planned, const Stream& stream) : plan(std::move(planned)) {
    lists = plan.place([&](const auto* data, std::int64_t n) {
      using T = std::decay_t<decltype(*data)>;
      storage.emplace_back(n * static_cast<std::int64_t>(sizeof(T)));
      T* place = reinterpret_cast<T*>(storage.back().data());
      copy(data, place, n, stream);
      return static_cast<const T*>(place);
    });
    stream.wait();
    plan.forget_lists();
  }
};

DeviceRidge device_problem(const CsrView& scores, const float* factors, const float* prior,
                           float* out, std::int64_t d, double regularization) {
  DeviceRidge problem;
  problem.indptr = scores.indptr;
  problem.indices = scores.indices;
  problem.values = scores.values;
  problem.factors = factors;
  problem.prior = prior;
  problem.out = out;
  problem.d = d;
  problem.regularization = regularization;
  return problem;
}

// A matrix that may be none.
const float* prior_on_device(MatrixView<const float> prior, DeviceBuffer<float>& storage,
                             const Stream& stream) {
  return prior.data == nullptr ? nullptr : to_device(prior, storage, stream).data;
}

// One side of the factorisation.
struct Side {
  DeviceCsr scores;
  double regularization;
  DeviceBuffer<float> prior_storage;
  const float* prior;
  DevicePlan plan;
  DeviceBuffer<float> factors;  // where the caller's are on the host

  Side(const CsrView& matrix, MatrixView<const float> from, double lambda, RidgePlan planned,
       const Stream& stream)
      : scores(matrix, stream),
        regularization(lambda),
        prior(prior_on_device(from, prior_storage, stream)),
        plan(std::move(planned), stream) {}
};

// What ResidentAls takes of the device for d factors, those of the caller's that lie on the host
// included.
std::int64_t resident_bytes(const AlsProblem& problem, std::int64_t d, const RidgePlan& rows,
                            const RidgePlan& cols) {
  const std::int64_t n_rows = problem.scores.rows, n_cols = problem.scores.cols;
  const std::int64_t n = problem.scores.indptr[n_rows];
  const auto add = [](std::int64_t& bytes, std::int64_t count, std::size_t size) {
    bytes += count * static_cast<std::int64_t>(size);
  };
  std::int64_t bytes = 0;
  for (const RidgePlan* plan : {&rows, &cols})
    plan->place([&](const auto* data, std::int64_t size) {
      add(bytes, size, sizeof(*data));
      return data;
    });
  add(bytes, n_rows + n_cols + 2, sizeof(std::int64_t));
  const std::int64_t n_ids = on_device(problem.scores.indices) ? n : 2 * n;
  add(bytes, n_ids + (on_device(problem.scores.values) ? n : 2 * n), sizeof(float));
  for (const MatrixView<const float> prior : {problem.row_prior, problem.col_prior})
    if (!on_device(prior.data)) add(bytes, prior.rows * prior.cols, sizeof(float));
  add(bytes, (n_rows + n_cols) * d, sizeof(float));
  add(bytes, std::max(rows.workspace(), cols.workspace()), sizeof(float));
  add(bytes, std::max(n_rows, n_cols) + 1, sizeof(std::int32_t));  // rows that are solved again
  return bytes;
}

// For one number of factors. `stream` outlives it.
class ResidentAls {
 public:
  ResidentAls(const AlsProblem& problem, Transposed transposed, RidgePlan rows, RidgePlan cols,
              const Stream& stream)
      : stream_(stream),
        solver_(stream),
        rows_(problem.scores, problem.row_prior, problem.row_regularization, std::move(rows),
              stream),
        transposed_(std::move(transposed)),
        cols_(transposed_.view(), problem.col_prior, problem.col_regularization, std::move(cols),
              stream),
        gradients_(problem.cg_steps > 0) {
    stream.wait();
    transposed_.forget_entries();  // they are on the device
  }

  void step(MatrixView<float> row_factors, MatrixView<float> col_factors) {
    const std::int64_t d = col_factors.cols;
    const std::int64_t n_rows = row_factors.rows * d, n_cols = col_factors.rows * d;
    float* row_out = output_on_device(row_factors.data, n_rows, rows_.factors);
    float* col_out = output_on_device(col_factors.data, n_cols, cols_.factors);
    deliver<float>(col_factors.data, col_out, n_cols, stream_);
    if (gradients_) deliver<float>(row_factors.data, row_out, n_rows, stream_);
    solve(rows_, col_out, d, row_out);
    deliver<float>(row_out, row_factors.data, n_rows, stream_);
    solve(cols_, row_out, d, col_out);
    deliver<float>(col_out, col_factors.data, n_cols, stream_);
    stream_.wait();
  }

  double objective(MatrixView<const float> row_factors, MatrixView<const float> col_factors) {
    const float* rows = to_device(row_factors, rows_.factors, stream_).data;
    const float* cols = to_device(col_factors, cols_.factors, stream_).data;
    const std::int64_t d = row_factors.cols, n_entries = rows_.scores.indptr[row_factors.rows];
    const std::int64_t n_rows = row_factors.rows * d, n_cols = col_factors.rows * d;
    const unsigned blocks[] = {n_blocks(n_entries, kSumEntries), n_blocks(n_rows, kSumFloats),
                               n_blocks(n_cols, kSumFloats)};
    sums_.reserve(3 + std::int64_t(blocks[0]) + blocks[1] + blocks[2]);
    double* parts[] = {sums_.data() + 3, sums_.data() + 3 + blocks[0],
                       sums_.data() + 3 + blocks[0] + blocks[1]};
    launch(sum_squared_errors, blocks[0], kSumThreads, 0, stream_, rows_.scores.view, rows, cols, d,
           parts[0]);
    launch(sum_squared_distances, blocks[1], kSumThreads, 0, stream_, rows, rows_.prior, n_rows,
           parts[1]);
    launch(sum_squared_distances, blocks[2], kSumThreads, 0, stream_, cols, cols_.prior, n_cols,
           parts[2]);
    for (int i = 0; i < 3; ++i)
      launch(add_up, 1, kSumThreads, 0, stream_, static_cast<const double*>(parts[i]),
             std::int64_t(blocks[i]), sums_.data() + i);
    double found[3] = {};
    copy<double>(sums_.data(), found, 3, stream_);
    stream_.wait();
    return found[0] + rows_.regularization * found[1] + cols_.regularization * found[2];
  }

 private:
  void solve(const Side& side, const float* factors, std::int64_t d, float* out) {
    const DeviceRidge problem =
        device_problem(side.scores.view, factors, side.prior, out, d, side.regularization);
    solver_.start(problem, side.scores.view.rows, side.plan.plan, side.plan.lists);
    solver_.finish(side.scores.indptr);
  }

  const Stream& stream_;
  RidgeSolver solver_;
  Side rows_;
  Transposed transposed_;
  Side cols_;
  bool gradients_;
  DeviceBuffer<double> sums_;
};

}  // namespace
}  // namespace cexnn::cuda
