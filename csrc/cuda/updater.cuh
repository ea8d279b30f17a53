// The launches that update queries on the device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "growth.cuh"
#include "item_store.cuh"
#include "query_update.cuh"
#include "search_state.cuh"
#include "workspace.cuh"

namespace cexnn::cuda {

constexpr double kRidgeFloor = 1e-6;  // times the largest K_ii: the least noise

// Known scores of some queries, in host or device memory but for the indptr, and the rows of the
// state that are theirs.
struct KnownScores {
  CsrView scores;
  MatrixView<const float> priors;
  CudaSearchState* state = nullptr;
  std::int64_t first = 0;  // query of the state
};

class Updater {
 public:
  Updater(const Rows<float>& items, const float* offsets, std::int64_t d, float largest_factor)
      : items_(items), offsets_(offsets), d_(d), largest_factor_(largest_factor) {}

  // Device bytes that a query with n scores takes for its system.
  static std::int64_t bytes(std::int64_t n) {
    const std::int64_t n_panels = (n + kTile - 1) / kTile;
    return (KnownRows::size(n_panels) + 2 * n_panels * kTile * kTile) *
           static_cast<std::int64_t>(sizeof(double));
  }

  // Brings W up to date, and fills the masks with what is known; *failed is set if a system is not
  // solvable. The state must be told by done() once it is known to have worked.
  UpdateArguments grow(Workspace& ws, const KnownScores& known, const QueryModel& model,
                       int* failed) const {
    const std::int64_t n_queries = known.priors.rows,
                       n_known = known.scores.indptr[n_queries] - known.scores.indptr[0];
    std::int64_t max_known = 0;
    ws.rows.assign(static_cast<std::size_t>(n_queries), {});
    for (std::int64_t q = 0; q < n_queries; ++q) {
      KnownRows& row = ws.rows[static_cast<std::size_t>(q)];
      row.begin = known.scores.indptr[q] - known.scores.indptr[0];
      row.n = static_cast<int>(known.scores.row_size(q));
      max_known = std::max<std::int64_t>(max_known, row.n);
      if (known.state != nullptr && known.state->n_done(known.first + q) > row.n)
        throw std::invalid_argument("known: scores were taken away");
    }
    const bool certain = noise_is_certain(model, known, ws.stream);
    if (certain) {
      for (KnownRows& row : ws.rows) row.noise = model.noise_variance;
      place(ws, known);
    }
    UpdateArguments u = upload(ws, known, model, n_known, failed);
    constexpr int kWarps = kUpdateThreads / 32;
    launch(prepare_kernel,
           dim3(unsigned(1 + (max_known + kWarps - 1) / kWarps), unsigned(n_queries)),
           dim3(kUpdateThreads), 0, ws.stream, u);
    if (!certain) {
      find_noise(ws, u, model);
      place(ws, known);
      copy<KnownRows>(ws.rows.data(), const_cast<KnownRows*>(u.queries), n_queries, ws.stream);
    }
    launch_panels(ws, u, n_queries);
    return u;
  }

  void solve(Workspace& ws, const UpdateArguments& u, std::int64_t n_queries, float* factors,
             std::int64_t stride) const {
    launch(solve_kernel, dim3(unsigned(n_queries)), dim3(kSolveThreads), 0, ws.stream, u, factors,
           stride);
  }

  // What goes up for so many queries, whatever is known of them.
  static std::int64_t upload_bytes(std::int64_t n_queries) {
    return n_queries * static_cast<std::int64_t>(sizeof(KnownRows) + sizeof(Mask)) + 32;
  }

  // Tables for the rows' ids, to be filled by prepare_kernel; the masks go up with the rest.
  static const Mask* add_masks(Workspace& ws, const CsrView& rows, std::int64_t n_queries) {
    std::vector<Mask> masks(static_cast<std::size_t>(n_queries));
    std::int64_t size = 0;
    for (std::int64_t q = 0; q < n_queries; ++q) {
      std::uint32_t room = 0;
      for (const std::int64_t n = rows.row_size(q); room < 2 * n;) room = room == 0 ? 2 : 2 * room;
      masks[static_cast<std::size_t>(q)].size = room;
      size += room;
    }
    ws.tables.reserve(size);
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

  UpdateArguments upload(Workspace& ws, const KnownScores& known, const QueryModel& model,
                         std::int64_t n_known, int* failed) const {
    const std::int64_t n_queries = known.priors.rows, begin = known.scores.indptr[0];
    ws.upload.start(upload_bytes(n_queries) + 8 * n_known + 4 * n_queries * d_ + 48);
    UpdateArguments u;
    u.queries = ws.upload.add(ws.rows.data(), n_queries);
    u.masks = add_masks(ws, known.scores, n_queries);
    u.ids = ws.upload.add(known.scores.indices + begin, n_known);
    u.scores = ws.upload.add(known.scores.values + begin, n_known);
    u.priors = ws.upload.add(known.priors.data, n_queries * d_);
    ws.upload.send(ws.stream);
    ws.numbers.reserve((4 + kPhases) * n_known + n_queries * kPhases * d_);
    u.model = model;
    u.items = items_;
    u.offsets = offsets_;
    u.d = static_cast<int>(d_);
    u.fits = ws.numbers.data();
    u.diagonal = u.fits + n_known;
    u.residuals = u.diagonal + n_known;
    u.whitened = u.residuals + n_known;
    u.weights = u.whitened + n_known;
    u.steps = u.weights + kPhases * n_known;
    u.n_known = n_known;
    u.failed = failed;
    return u;
  }

  static void find_noise(Workspace& ws, const UpdateArguments& u, const QueryModel& model) {
    std::vector<double> diagonal(static_cast<std::size_t>(u.n_known));
    copy<double>(u.diagonal, diagonal.data(), u.n_known, ws.stream);
    ws.stream.wait();
    for (KnownRows& row : ws.rows) {
      double largest = 0.0;
      for (std::int64_t e = row.begin; e < row.begin + row.n; ++e)
        largest = std::max(largest, diagonal[static_cast<std::size_t>(e)]);
      row.noise = std::max(model.noise_variance, kRidgeFloor * largest);
      if (row.noise == 0.0 && row.n > 0) row.noise = 1.0;  // all K_ii zero: any will do
    }
  }

  static void launch_panels(Workspace& ws, UpdateArguments& u, std::int64_t n_queries) {
    int max_panels = 0, max_turns = 0;
    for (const KnownRows& row : ws.rows) {
      max_panels = std::max(max_panels, row.n_panels());
      max_turns = std::max(max_turns, row.n_panels() - row.first / kTile);
    }
    u.projected_stride = std::int64_t{2} * max_panels * kTile * kTile;
    ws.projected.reserve(n_queries * u.projected_stride);
    u.projected = ws.projected.data();
    const dim3 block(kTileThreads);
    const auto queries = static_cast<unsigned>(n_queries), panels = unsigned(max_panels);
    launch(fill_kernel, dim3(panels, unsigned(max_turns), queries), block, 0, ws.stream, u);
    for (int turn = 0; turn < max_turns; ++turn) {
      const dim3 earlier(panels - 1, queries);  // none for a first panel
      launch(project_kernel, earlier, block, 0, ws.stream, u, turn);
      launch(eliminate_kernel, dim3(queries), block, 0, ws.stream, u, turn);
      launch(invert_kernel, earlier, block, 0, ws.stream, u, turn);
    }
  }

  Rows<float> items_;
  const float* offsets_;
  std::int64_t d_;
  float largest_factor_;
};

}  // namespace cexnn::cuda
