// The launches that update queries on the device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "growth.cuh"
#include "item_store.cuh"
#include "launch.cuh"
#include "memory.cuh"
#include "query_update.cuh"
#include "runtime.cuh"
#include "search_state.cuh"
#include "workspace.cuh"

namespace cexnn::cuda {

constexpr double kRidgeFloor = 1e-6;  // times the largest K_ii: the least noise
constexpr int kPanelsStep = 4;        // panels come in so many, for shapes to come again

// Known scores of some queries, in host or device memory but for the indptr, and the rows of the
// state that are theirs.
struct KnownScores {
  CsrView scores;
  MatrixView<const float> priors;
  CudaSearchState* state = nullptr;
  std::int64_t first = 0;  // query of the state
};

// The launches of one update, and what they take; the same for every round of a shape, but for
// what goes up.
struct Update {
  UpdateArguments u;
  std::int64_t n_queries = 0;
  int n_prepare = 0;   // blocks a query
  int n_turns = 0;     // of kSpan new panels
  bool grows = false;  // whether a query has panels that are finished before the first turn
};

inline std::int64_t rounded(std::int64_t n, std::int64_t step) {
  return (n + step - 1) / step * step;
}

class Updater {
 public:
  Updater(const Rows<float>& items, const float* offsets, std::int64_t d, float largest_factor)
      : items_(items), offsets_(offsets), d_(d), largest_factor_(largest_factor) {}

  // Device bytes that a query with n scores takes for its system.
  static std::int64_t bytes(std::int64_t n) {
    const std::int64_t n_panels = rounded((n + kTile - 1) / kTile, kPanelsStep);
    return (KnownRows::size(n_panels) + 2 * kSpan * n_panels * kTile * kTile) *
           static_cast<std::int64_t>(sizeof(double));
  }

  // Gathers what an update takes, and finds the noise: all that the host has to do for it, and all
  // that allocates. *failed is to be set if a system is not solvable. The state must be told by
  // done() once it is known to have worked.
  Update plan(Workspace& ws, const KnownScores& known, const QueryModel& model, int* failed) const {
    Update plan;
    plan.n_queries = known.priors.rows;
    std::int64_t max_known = 0;
    start_rows(ws, known.scores);
    for (std::int64_t q = 0; q < plan.n_queries; ++q) {
      KnownRows& row = ws.rows[static_cast<std::size_t>(q)];
      row.noise = model.noise_variance;
      max_known = std::max<std::int64_t>(max_known, row.n);
      if (known.state != nullptr && known.state->n_done(known.first + q) > row.n)
        throw std::invalid_argument("known: scores were taken away");
    }
    plan.u.model = model;
    plan.u.panels = static_cast<int>(rounded((max_known + kTile - 1) / kTile, kPanelsStep));
    plan.u.failed = failed;
    const std::int64_t known_at_once = kUpdateThreads / 32;
    plan.n_prepare =
        1 + static_cast<int>((plan.u.panels * kTile + known_at_once - 1) / known_at_once);
    gather(ws, known, plan.u);
    if (!noise_is_certain(model, known, ws.stream)) {
      ws.upload.send(ws.stream);
      begin(ws, plan, 0);
      find_noise(ws, plan.u, model);
    }
    place(ws, known);
    ws.upload.replace(plan.u.queries, ws.rows.data(), plan.n_queries);
    int max_new = 0;
    for (const KnownRows& row : ws.rows) {
      const int first = row.first / kTile;
      max_new = std::max(max_new, row.n_panels() - first);
      plan.grows = plan.grows || (first > 0 && first < row.n_panels());
    }
    plan.n_turns = (max_new + kSpan - 1) / kSpan;
    return plan;
  }

  // Of a round that begins with this update and is decided by `parts` beside it.
  template <typename... Parts>
  static RoundShape shape(const Workspace& ws, const Update& plan, const Parts&... parts) {
    const UpdateArguments& u = plan.u;
    const QueryModel& model = u.model;
    return ws.shape(parts..., plan.n_queries, plan.n_prepare, plan.n_turns, plan.grows, u.panels,
                    u.room, u.ids, u.scores, u.priors, u.offsets, model.factor_variance,
                    model.prior_scale_variance, model.shift_variance, model.noise_variance,
                    model.offset, model.centred, model.mix, model.item_offsets);
  }

  // Puts on the stream what brings W up to date, and fills the masks with what is known.
  static void grow(Workspace& ws, const Update& plan) {
    ws.upload.send(ws.stream);
    begin(ws, plan, plan.n_turns * kSpan);
    const dim3 block(kTileThreads);
    const auto panels = unsigned(plan.u.panels), queries = unsigned(plan.n_queries);
    for (int turn = 0; turn < plan.n_turns; ++turn) {
      const dim3 earlier(turn > 0 || plan.grows ? panels : 0, kSpan, queries);
      launch_early(project_kernel, earlier, block, 0, ws.stream, plan.u, turn);
      launch_early(schur_kernel, dim3(kSpan + earlier.x, kSpan, queries), block, 0, ws.stream,
                   plan.u, turn);
      launch_early(invert_kernel, earlier, block, 0, ws.stream, plan.u, turn);
    }
  }

  static void solve(Workspace& ws, const Update& plan, float* factors, std::int64_t stride) {
    launch_early(solve_kernel, dim3(unsigned(plan.n_queries)), dim3(kSolveThreads), 0, ws.stream,
                 plan.u, factors, stride);
  }

  // What goes up for so many queries, whatever is known of them.
  static std::int64_t upload_bytes(std::int64_t n_queries) {
    return n_queries * static_cast<std::int64_t>(sizeof(KnownRows) + sizeof(Mask)) + 32;
  }

  // Says which known items are whose.
  static void start_rows(Workspace& ws, const CsrView& known) {
    ws.rows.assign(static_cast<std::size_t>(known.rows), {});
    for (std::int64_t q = 0; q < known.rows; ++q) {
      ws.rows[static_cast<std::size_t>(q)].begin = known.indptr[q] - known.indptr[0];
      ws.rows[static_cast<std::size_t>(q)].n = static_cast<int>(known.row_size(q));
    }
  }

  // Tables for the rows' ids, to be filled by begin_kernel, with room for `room` ids in all; the
  // masks go up with the rest.
  static const Mask* add_masks(Workspace& ws, const CsrView& rows, std::int64_t n_queries,
                               std::int64_t room) {
    std::vector<Mask> masks(static_cast<std::size_t>(n_queries));
    for (std::int64_t q = 0; q < n_queries; ++q) {
      std::uint32_t& mine = masks[static_cast<std::size_t>(q)].size;
      for (const std::int64_t n = rows.row_size(q); mine < 2 * n;) mine = mine == 0 ? 2 : 2 * mine;
    }
    ws.tables.reserve(4 * room);  // a power of two is less than twice what it is to hold
    ws.arrived.reserve(kMostAnswers * n_queries);
    const std::int32_t* table = ws.tables.data();
    for (Mask& mask : masks) {
      mask.table = table;
      table += mask.size;
    }
    return ws.upload.add(masks.data(), n_queries);
  }

 private:
  // Whether the floor cannot be above the model's own noise, whatever is known.
  bool noise_is_certain(const QueryModel& model, const KnownScores& known,
                        const Stream& stream) const {
    const double norm = double(d_) * double(largest_factor_) * double(largest_factor_);
    double prior_norm = 0.0;
    if (model.prior_scale_variance > 0.0) {
      if (!on_device(known.priors.data)) {
        prior_norm = largest_norm(known.priors);
      } else if (known.state == nullptr) {
        return false;
      } else {
        prior_norm = known.state->largest_prior_norm(known.priors, known.first, stream);
      }
    }
    const double largest = model.factor_variance * norm +
                           model.prior_scale_variance * norm * prior_norm + model.shift_variance;
    return model.noise_variance > 0.0 && model.noise_variance >= 1.01 * kRidgeFloor * largest;
  }

  static void place(Workspace& ws, const KnownScores& known) {
    if (known.state != nullptr) {
      known.state->prepare(ws.rows, known.first, ws.stream);
      return;
    }
    std::int64_t size = 0;
    for (const KnownRows& row : ws.rows) size += KnownRows::size(row.n_panels());
    ws.inverses.reserve(size);
    size = 0;
    for (KnownRows& row : ws.rows) {
      row.inverse = ws.inverses.data() + size;
      size += KnownRows::size(row.n_panels());
    }
  }

  // Puts together what goes up, each array with room for as many known items as panels have: at the
  // same place in every round that has as many.
  void gather(Workspace& ws, const KnownScores& known, UpdateArguments& u) const {
    const std::int64_t n_queries = known.priors.rows, begin = known.scores.indptr[0],
                       n_known = known.scores.indptr[n_queries] - begin;
    u.room = rounded(n_known, kPanelsStep * kTile * n_queries);
    ws.upload.start(upload_bytes(n_queries) + 8 * u.room + 4 * n_queries * d_ + 48);
    u.queries = ws.upload.add(ws.rows.data(), n_queries);
    u.masks = add_masks(ws, known.scores, n_queries, u.room);
    u.ids = ws.settle(known.scores.indices + begin, n_known, u.room, ws.own_ids);
    u.scores = ws.settle(known.scores.values + begin, n_known, u.room, ws.own_scores);
    u.priors = ws.settle(known.priors.data, n_queries * d_, n_queries * d_, ws.own_factors);
    ws.numbers.reserve((4 + kPhases) * u.room + n_queries * kPhases * d_);
    ws.projected.reserve(n_queries * u.projected_size());
    u.items = items_;
    u.offsets = offsets_;
    u.arrived = ws.arrived.data();
    u.d = static_cast<int>(d_);
    u.fits = ws.numbers.data();
    u.diagonal = u.fits + u.room;
    u.residuals = u.diagonal + u.room;
    u.whitened = u.residuals + u.room;
    u.weights = u.whitened + u.room;
    u.steps = u.weights + kPhases * u.room;
    u.projected = ws.projected.data();
  }

  static void begin(Workspace& ws, const Update& plan, int new_panels) {
    launch(begin_kernel,
           dim3(unsigned(plan.n_prepare + new_panels * plan.u.panels), unsigned(plan.n_queries)),
           dim3(kUpdateThreads), 0, ws.stream, plan.u, plan.n_prepare);
  }

  static void find_noise(Workspace& ws, const UpdateArguments& u, const QueryModel& model) {
    const std::int64_t n_known = ws.rows.back().begin + ws.rows.back().n;
    std::vector<double> diagonal(static_cast<std::size_t>(n_known));
    copy<double>(u.diagonal, diagonal.data(), n_known, ws.stream);
    ws.stream.wait();
    for (KnownRows& row : ws.rows) {
      double largest = 0.0;
      for (std::int64_t e = row.begin; e < row.begin + row.n; ++e)
        largest = std::max(largest, diagonal[static_cast<std::size_t>(e)]);
      row.noise = std::max(model.noise_variance, kRidgeFloor * largest);
      if (row.noise == 0.0 && row.n > 0) row.noise = 1.0;  // all K_ii zero: any will do
    }
  }

  Rows<float> items_;
  const float* offsets_;
  std::int64_t d_;
  float largest_factor_;
};

}  // namespace cexnn::cuda
