// The factorisation where both sides' factors and scores do not fit on the device together: rows
// are solved piece by piece, from factors and scores that stay in the host's memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "../squared_distance.hpp"
#include "../transposed.hpp"
#include "als_resident.cuh"
#include "als_slot.cuh"
#include "memory.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

// For one number of factors. A piece takes those factors of the other side that it has scores for,
// each once; while one is computed the next is gathered and copied. Every row gets what it gets
// with all of it on the device, bit by bit, but for a row by conjugate gradients that alone does
// not fit: it is solved exactly, its scores' products summed up piece by piece.
class StreamedAls {
 public:
  // Takes about so many bytes of the device.
  StreamedAls(const AlsProblem& problem, HostScores scores, Transposed transposed, std::int64_t d,
              std::int64_t bytes, const Stream& stream)
      : cg_steps_(problem.cg_steps),
        host_(std::move(scores)),
        transposed_(std::move(transposed)),
        workspace_floats_(std::min(kWorkspaceFloats, bytes / 8 / std::int64_t(sizeof(float)))),
        slots_{make_slot(), make_slot()},
        rows_(make_side(host_.view(), problem.row_prior, problem.row_regularization, d, bytes,
                        row_prior_, stream)),
        cols_(make_side(transposed_.view(), problem.col_prior, problem.col_regularization, d, bytes,
                        col_prior_, stream)) {}

  void step(MatrixView<float> row_factors, MatrixView<float> col_factors) {
    sweep(rows_, as_const(col_factors), row_factors);
    sweep(cols_, as_const(row_factors), col_factors);
  }

  double objective(MatrixView<const float> row_factors, MatrixView<const float> col_factors) {
    const Forgetting guard{*this};
    double total = 0.0;
    const RidgePlan nothing;
    for (std::size_t i = 0; i < rows_.pieces.size(); ++i) {
      Slot& slot = slots_[i % 2];
      total += slot.errors();
      slot.load(rows_, rows_.pieces[i], col_factors, row_factors, nothing);
      slot.start_errors();
    }
    for (std::size_t i = 0; i < 2; ++i) total += slots_[(rows_.pieces.size() + i) % 2].errors();
    return total + rows_.regularization * squared_distance(row_factors, rows_.prior) +
           cols_.regularization * squared_distance(col_factors, cols_.prior);
  }

 private:
  static constexpr std::int64_t kMostPieceBytes = std::int64_t(1) << 30;

  // What an exception leaves under way ends before anything of it is used again.
  struct Forgetting {
    StreamedAls& als;
    ~Forgetting() {
      for (Slot& slot : als.slots_) slot.forget();
    }
  };

  static MatrixView<const float> as_const(MatrixView<float> m) { return {m.data, m.rows, m.cols}; }

  Slot make_slot() const {
    const CsrView& scores = host_.view();
    return {std::max(scores.rows, scores.cols), std::min(kWideDoubles, workspace_floats_ / 2)};
  }

  static HostSide make_side(const CsrView& scores, MatrixView<const float> prior, double lambda,
                            std::int64_t d, std::int64_t bytes, std::vector<float>& storage,
                            const Stream& stream) {
    HostSide side;
    side.scores = scores;
    side.prior = prior;
    side.prior.data = on_host(prior.data, prior.rows * prior.cols, storage, stream);
    side.regularization = lambda;
    side.pieces = PieceCutter(scores, d, std::min(kMostPieceBytes, bytes / 4)).cut();
    return side;
  }

  void sweep(const HostSide& side, MatrixView<const float> factors, MatrixView<float> out) {
    const Forgetting guard{*this};
    std::size_t turn = 0;
    for (std::size_t i = 0; i < side.pieces.size();) {
      const Piece& piece = side.pieces[i];
      if (piece.n_splits > 0) {
        for (Slot& slot : slots_) slot.finish(out);
        std::size_t end = i + 1;
        while (end < side.pieces.size() && side.pieces[end].first_row == piece.first_row) ++end;
        solve_long(side, {side.pieces.begin() + i, side.pieces.begin() + end}, factors, out);
        i = end;
        continue;
      }
      Slot& slot = slots_[turn++ % 2];
      slot.finish(out);
      std::vector<std::int64_t> indptr(side.scores.indptr + piece.first_row,
                                       side.scores.indptr + piece.first_row + piece.n_rows + 1);
      for (std::int64_t& start : indptr) start -= piece.first_entry;
      const RidgePlan plan(indptr.data(), piece.n_rows, factors.cols, cg_steps_, workspace_floats_);
      slot.load(side, piece, factors, as_const(out), plan);
      slot.start(plan);
      ++i;
    }
    for (Slot& slot : slots_) slot.finish(out);
  }

  // A row of which only so much fits: its splits' systems are built from piece after piece, and
  // solved together as they always are.
  void solve_long(const HostSide& side, const std::vector<Piece>& pieces,
                  MatrixView<const float> factors, MatrixView<float> out) {
    const std::int64_t first = side.scores.indptr[pieces.front().first_row];
    const std::int64_t indptr[] = {0, side.scores.row_size(pieces.front().first_row)};
    RidgePlan plan(indptr, 1, factors.cols, 0);
    const SystemBatch batch = plan.batches.front();
    systems_.reserve(batch.workspace);
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      Slot& slot = slots_[i % 2];
      slot.wait();
      plan.systems.front().first = first - pieces[i].first_entry;  // the piece has no more
      slot.load(side, pieces[i], factors, as_const(out), plan);
      slot.build(batch, systems_.data());
    }
    for (const Slot& slot : slots_) slot.wait();
    Slot& last = slots_[(pieces.size() - 1) % 2];
    if (!last.solve_built(batch, systems_.data())) {
      wide_.reserve(wide_doubles(std::max(most_scores(pieces), factors.cols), factors.cols));
      for (std::size_t i = 0; i < pieces.size(); ++i) {
        last.load(side, pieces[i], factors, as_const(out), plan);
        if (!last.add_wide(i > 0, i + 1 == pieces.size(), wide_.data()))
          throw std::runtime_error(kNotSolvable);
      }
    }
    last.deliver_built(out);
  }

  static std::int64_t most_scores(const std::vector<Piece>& pieces) {
    std::int64_t most = 0;
    for (const Piece& piece : pieces) most = std::max(most, piece.n_entries);
    return most;
  }

  int cg_steps_;
  HostScores host_;
  Transposed transposed_;
  std::int64_t workspace_floats_;
  std::vector<float> row_prior_, col_prior_;  // where the caller's are on the device
  std::array<Slot, 2> slots_;
  HostSide rows_, cols_;
  DeviceBuffer<float> systems_;  // of a long row
  DeviceBuffer<double> wide_;
};

}  // namespace
}  // namespace cexnn::cuda
