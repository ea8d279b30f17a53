// One of the two places on the device that pieces of the factorisation go through.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "als_pieces.cuh"
#include "launch.cuh"
#include "memory.cuh"
#include "objective.cuh"
#include "ridge_solver.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

// One side of the factorisation, in the host's memory.
struct HostSide {
  CsrView scores;
  MatrixView<const float> prior;  // or data == nullptr: zero
  double regularization = 0.0;
  std::vector<Piece> pieces;
};

// Takes a piece at a time, on a stream of its own. A call that starts something expects that what
// was started before has been waited for.
class Slot {
 public:
  Slot(std::int64_t n_cols, std::int64_t wide_doubles)
      : columns_(n_cols), solver_(stream_, wide_doubles) {}

  // Puts a piece of the side on its way to the device, with the factors of its columns, and `out`,
  // what its rows have. All of it has been read when this returns.
  void load(const HostSide& side, const Piece& piece, MatrixView<const float> factors,
            MatrixView<const float> out, const RidgePlan& plan) {
    const std::int64_t d = factors.cols, n = piece.n_entries, n_rows = piece.n_rows;
    renumber(side.scores.indices + piece.first_entry, n);
    const auto n_cols = static_cast<std::int64_t>(columns_.ids().size());
    indptr_.assign(1, 0);
    for (std::int64_t r = piece.first_row; piece.n_splits == 0 && r < piece.first_row + n_rows; ++r)
      indptr_.push_back(side.scores.indptr[r + 1] - piece.first_entry);
    if (piece.n_splits > 0) indptr_.push_back(n);
    piece_ = piece;

    constexpr std::size_t kFloat = sizeof(float);
    std::int64_t bytes = Staging::bytes_of(n_cols * d, kFloat) + 2 * Staging::bytes_of(n, kFloat) +
                         Staging::bytes_of(n_rows + 1, sizeof(std::int64_t)) +
                         2 * Staging::bytes_of(n_rows * d, kFloat);
    plan.place([&](const auto* data, std::int64_t size) {
      bytes += Staging::bytes_of(size, sizeof(*data));
      return data;
    });
    staging_.start(bytes);
    const auto rows = staging_.take<float>(n_cols * d);
    for (std::int64_t i = 0; i < n_cols; ++i)
      std::memcpy(rows.host + i * d, factors.row(columns_.ids()[i]), kFloat * d);
    problem_ = {};
    problem_.factors = rows.device;
    problem_.indptr = staging_.take(indptr_.data(), n_rows + 1).device;
    problem_.indices = staging_.take(renumbered_.data(), n).device;
    problem_.values = staging_.take(side.scores.values + piece.first_entry, n).device;
    if (side.prior.data != nullptr)
      problem_.prior = staging_.take(side.prior.row(piece.first_row), n_rows * d).device;
    out_ = staging_.take(out.row(piece.first_row), n_rows * d);
    problem_.out = out_.device;
    problem_.d = d;
    problem_.regularization = side.regularization;
    lists_ = plan.place([&](const auto* data, std::int64_t size) {
      using T = std::remove_const_t<std::remove_reference_t<decltype(*data)>>;
      return static_cast<const T*>(staging_.take(data, size).device);
    });
    staging_.send(stream_);
  }

  // -- whole rows --

  void start(const RidgePlan& plan) {
    solver_.start(problem_, piece_.n_rows, plan, lists_);
    fetch_out();
    solving_ = true;
  }
  // Waits; what was started goes to its rows of `out`.
  void finish(MatrixView<float> out) {
    if (!solving_) return;
    solving_ = false;
    if (solver_.finish(indptr_.data())) fetch_out();
    deliver_out(out);
  }

  // -- a row whose splits come in pieces: `batch` is its system, `workspace` theirs in common --

  void build(const SystemBatch& batch, float* workspace) {
    solver_.begin(problem_, 1);
    const std::int64_t n_tasks = batch.n_tasks / batch.n_parts;
    SystemBatch part = batch;
    part.first_part += piece_.first_split;
    part.first_task += piece_.first_split * n_tasks;
    part.n_parts = piece_.n_splits;
    part.n_tasks = piece_.n_splits * n_tasks;
    solver_.build(lists_, part, workspace);
  }
  // Once all are built. Waits; false if the factorisation breaks down.
  bool solve_built(const SystemBatch& batch, float* workspace) {
    solver_.solve(lists_, batch, workspace);
    return solver_.failed_rows().empty();
  }
  // The same in double precision. Waits; false if that breaks down as well.
  bool add_wide(bool adds, bool solves, double* workspace) {
    solver_.begin(problem_, 1);
    WideRow row{};
    row.size = static_cast<std::int32_t>(problem_.d);
    row.adds = adds;
    row.solves = solves;
    solver_.solve_wide_rows({row}, workspace);
    return solver_.failed_rows().empty();
  }
  void deliver_built(MatrixView<float> out) {
    fetch_out();
    deliver_out(out);
  }

  // -- the objective --

  void start_errors() {
    const unsigned blocks = n_blocks(piece_.n_entries, kSumEntries);
    sums_.reserve(std::int64_t(blocks) + 1);
    found_.reserve(1);
    CsrView scores;
    scores.rows = piece_.n_rows;
    scores.indptr = problem_.indptr;
    scores.indices = problem_.indices;
    scores.values = problem_.values;
    launch(sum_squared_errors, blocks, kSumThreads, 0, stream_, scores, out_.device,
           problem_.factors, problem_.d, sums_.data() + 1);
    launch(add_up, 1, kSumThreads, 0, stream_, static_cast<const double*>(sums_.data() + 1),
           std::int64_t(blocks), sums_.data());
    copy<double>(sums_.data(), found_.data(), 1, stream_);
    summing_ = true;
  }
  // Waits; the sum of the squared errors started, or zero.
  double errors() {
    if (!summing_) return 0.0;
    summing_ = false;
    stream_.wait();
    return found_.data()[0];
  }

  // Whatever was started, after an exception: the buffers may be used again.
  void forget() noexcept {
    cudaStreamSynchronize(stream_.get());
    solving_ = summing_ = false;
  }
  void wait() const { stream_.wait(); }

 private:
  void renumber(const std::int32_t* ids, std::int64_t n) {
    columns_.clear();
    renumbered_.resize(static_cast<std::size_t>(n));
    for (std::int64_t e = 0; e < n; ++e) renumbered_[e] = columns_.add(ids[e]);
  }
  void fetch_out() { copy<float>(out_.device, out_.host, piece_.n_rows * problem_.d, stream_); }
  void deliver_out(MatrixView<float> out) {
    stream_.wait();
    std::memcpy(out.row(piece_.first_row), out_.host,
                sizeof(float) * static_cast<std::size_t>(piece_.n_rows * problem_.d));
  }

  Renumbering columns_;
  std::vector<std::int32_t> renumbered_;
  std::vector<std::int64_t> indptr_;
  Staging staging_;
  Stream stream_;
  RidgeSolver solver_;
  Piece piece_;
  DeviceRidge problem_;
  PlanLists lists_;
  Staging::Place<float> out_{};
  DeviceBuffer<double> sums_;
  PinnedBuffer<double> found_;
  bool solving_ = false, summing_ = false;
};

}  // namespace
}  // namespace cexnn::cuda
