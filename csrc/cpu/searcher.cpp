#include "../searcher.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "parallel.hpp"
#include "ridge.hpp"
#include "topk.hpp"

namespace cexnn::cpu {
namespace {

// One query's system, grown by rows. While a query has at most d + 2 scores it is the dual one: the
// Cholesky factor of K + noise I, packed (n (n + 1) / 2 doubles), and L^-1 residual. Beyond, the
// primal one of the features [sqrt(factor_variance) v, sqrt(prior_scale_variance) p,
// sqrt(shift_variance)]: their Gram matrix, (d + 2)^2 doubles however many the scores.
struct QueryState {
  std::int64_t n_done = 0;
  double noise = 0.0;
  double largest = 0.0;          // largest K_ii so far
  std::vector<double> fit;       // p of the scores done
  std::vector<double> cholesky;  // dual: rows of L, packed
  std::vector<double> gram;      // primal: lower triangle, (d + 2, d + 2)
  bool primal = false;
};

class CpuSearchState final : public SearchState {
 public:
  explicit CpuSearchState(std::int64_t n_queries) : queries(static_cast<std::size_t>(n_queries)) {}
  std::vector<QueryState> queries;
};

const double* packed_row(const std::vector<double>& packed, std::int64_t i) {
  return packed.data() + i * (i + 1) / 2;
}

// Updates one query; see QueryModel for the formulas.
class QueryUpdate {
 public:
  QueryUpdate(MatrixView<const float> items, VectorView<const float> offsets,
              const QueryModel& model, VectorView<const std::int32_t> ids,
              VectorView<const float> y, const float* prior)
      : k_(kernels()),
        items_(items),
        offsets_(offsets),
        model_(model),
        ids_(ids),
        y_(y),
        prior_(prior),
        d_(items.cols) {}

  // Scores appended cost n d flops each (dual: and n^2), a call n^2 or, in the primal form, d^3
  // / 3.
  void run(QueryState& state, float* out) {
    if (ids_.empty()) {
      std::copy_n(prior_, d_, out);
      return;
    }
    append(state);
    std::vector<double> step(static_cast<std::size_t>(d_), 0.0);
    const double along_prior = state.primal ? solve_primal(state, step) : solve_dual(state, step);
    const double prior_weight = model_.centred ? 1.0 + along_prior : model_.mix;
    const double step_weight = model_.centred ? 1.0 : 1.0 - model_.mix;
    for (std::int64_t j = 0; j < d_; ++j)
      out[j] = static_cast<float>(prior_weight * prior_[j] + step_weight * step[j]);
  }

 private:
  void append(QueryState& state) {
    const std::int64_t n = ids_.size;
    if (state.n_done > n) throw std::invalid_argument("known: scores were taken away");
    for (std::int64_t i = state.n_done; i < n; ++i) {
      const float* v = items_.row(ids_[i]);
      const double p = k_.dot_wide(v, prior_, d_);
      state.fit.push_back(p);
      state.largest = std::max(state.largest, kernel(v, v, p, p));
    }
    const double floor = state.largest > 0.0 ? kRidgeFloor * state.largest : 1.0;
    const double noise = std::max(model_.noise_variance, floor);
    const bool primal = n > d_ + 2;
    if (primal != state.primal) {  // from the first score on: the other form
      state.primal = primal;
      state.n_done = 0;
      state.cholesky = {};
      state.gram.assign(static_cast<std::size_t>((d_ + 2) * (d_ + 2)), 0.0);
    } else if (!primal && noise != state.noise) {  // the floor rose
      state.n_done = 0;
      state.cholesky.clear();
    }
    state.noise = noise;
    if (primal) {
      for (std::int64_t i = state.n_done; i < n; ++i) append_primal(state, i);
    } else {
      for (std::int64_t i = state.n_done; i < n; ++i) append_dual(state, i);
    }
    state.n_done = n;
  }

  double kernel(const float* a, const float* b, double p_a, double p_b) const {
    return model_.factor_variance * k_.dot_wide(a, b, d_) +
           model_.prior_scale_variance * p_a * p_b + model_.shift_variance;
  }

  std::vector<double> residuals(const QueryState& state) const {
    std::vector<double> residual(static_cast<std::size_t>(ids_.size));
    for (std::int64_t i = 0; i < ids_.size; ++i) {
      const double offset = offsets_.empty() ? 0.0 : offsets_[ids_[i]];
      residual[i] = y_[i] - model_.offset - offset - (model_.centred ? state.fit[i] : 0.0);
    }
    return residual;
  }

  void append_dual(QueryState& state, std::int64_t i) const {
    const float* v = items_.row(ids_[i]);
    state.cholesky.resize(static_cast<std::size_t>((i + 1) * (i + 2) / 2));
    double* row = state.cholesky.data() + i * (i + 1) / 2;
    for (std::int64_t j = 0; j <= i; ++j)
      row[j] = kernel(v, items_.row(ids_[j]), state.fit[i], state.fit[j]);
    row[i] += state.noise;
    const auto previous = [&state](std::int64_t j) { return packed_row(state.cholesky, j); };
    if (!cholesky_row(k_, previous, i, row))
      throw std::runtime_error("the system of a query is not solvable: factors not finite?");
  }

  // Fills step with factor_variance V^T a and returns prior_scale_variance p.a.
  double solve_dual(const QueryState& state, std::vector<double>& step) const {
    std::vector<double> a = residuals(state);
    const auto row = [&state](std::int64_t i) { return packed_row(state.cholesky, i); };
    solve_lower(k_, row, ids_.size, a.data());
    solve_upper(k_, row, ids_.size, a.data());
    double along_prior = 0.0;
    for (std::int64_t i = 0; i < ids_.size; ++i) {
      k_.axpy_wide(model_.factor_variance * a[i], items_.row(ids_[i]), step.data(), d_);
      along_prior += model_.prior_scale_variance * state.fit[i] * a[i];
    }
    return along_prior;
  }

  void append_primal(QueryState& state, std::int64_t i) {
    fill_features(state, i);
    for (std::int64_t j = 0; j < d_ + 2; ++j)
      k_.axpy_f64(features_[j], features_.data(), state.gram.data() + j * (d_ + 2), j + 1);
  }

  void fill_features(const QueryState& state, std::int64_t i) {
    features_.resize(static_cast<std::size_t>(d_ + 2));
    const double scale = std::sqrt(model_.factor_variance);
    const float* v = items_.row(ids_[i]);
    for (std::int64_t j = 0; j < d_; ++j) features_[j] = scale * v[j];
    features_[d_] = std::sqrt(model_.prior_scale_variance) * state.fit[i];
    features_[d_ + 1] = std::sqrt(model_.shift_variance);
  }

  double solve_primal(const QueryState& state, std::vector<double>& step) {
    const std::int64_t n_features = d_ + 2;
    std::vector<double> system = state.gram;
    std::vector<double> x(static_cast<std::size_t>(n_features), 0.0);
    const std::vector<double> residual = residuals(state);
    for (std::int64_t i = 0; i < ids_.size; ++i) {
      fill_features(state, i);
      k_.axpy_f64(residual[i], features_.data(), x.data(), n_features);
    }
    const auto row = [&](std::int64_t i) { return system.data() + i * n_features; };
    for (std::int64_t i = 0; i < n_features; ++i) {
      row(i)[i] += state.noise;
      if (!cholesky_row(k_, row, i, row(i)))
        throw std::runtime_error("the system of a query is not solvable: factors not finite?");
    }
    solve_lower(k_, row, n_features, x.data());
    solve_upper(k_, row, n_features, x.data());
    const double scale = std::sqrt(model_.factor_variance);
    for (std::int64_t j = 0; j < d_; ++j) step[j] = scale * x[j];
    return std::sqrt(model_.prior_scale_variance) * x[d_];
  }

  const Kernels& k_;
  MatrixView<const float> items_;
  VectorView<const float> offsets_;
  const QueryModel& model_;
  VectorView<const std::int32_t> ids_;
  VectorView<const float> y_;
  const float* prior_;
  std::int64_t d_;
  std::vector<double> features_;
};

// One pass over the items for a block of queries: 2 n m d flops on m d floats. A tile of items and
// its block of scores stay in the cache; scores are never written out whole.
constexpr std::int64_t kQueriesPerBlock = 32;
constexpr std::int64_t kItemsPerTile = 256;
constexpr std::int64_t kTilesPerTask = 16;

class CpuSearcher final : public Searcher {
 public:
  CpuSearcher(MatrixView<const float> items, VectorView<const float> offsets)
      : items_(items), offsets_(offsets) {
    if (!offsets.empty() && offsets.size != items.rows)
      throw std::invalid_argument("item_offsets: expected one for each item");
  }

  std::unique_ptr<SearchState> make_state(std::int64_t n_queries) const override {
    return std::make_unique<CpuSearchState>(n_queries);
  }

  void update(const CsrView& known, MatrixView<const float> priors, const QueryModel& model,
              SearchState* state, int num_threads, MatrixView<float> factors_out) const override {
    check_ids(known, priors.rows);
    if (priors.cols != items_.cols || factors_out.cols != items_.cols ||
        factors_out.rows != priors.rows)
      throw std::invalid_argument("priors: expected (n_queries, n_factors)");
    auto* cached = dynamic_cast<CpuSearchState*>(state);
    if (cached != nullptr && static_cast<std::int64_t>(cached->queries.size()) != priors.rows)
      throw std::invalid_argument("state: made for another number of queries");
    parallel_for(priors.rows, num_threads, [&](std::int64_t q, int) {
      QueryState fresh;
      QueryState& mine = cached == nullptr ? fresh : cached->queries[static_cast<std::size_t>(q)];
      QueryUpdate(items_, offsets_, model, known.row_indices(q), known.row_values(q), priors.row(q))
          .run(mine, factors_out.row(q));
    });
  }

  void top_items(MatrixView<const float> queries, const CsrView& seen, int num_threads,
                 MatrixView<std::int32_t> ids_out, MatrixView<float> approx_out) const override {
    check_ids(seen, queries.rows);
    if (queries.cols != items_.cols)
      throw std::invalid_argument("query_factors: expected (n_queries, n_factors)");
    if (ids_out.rows != queries.rows || approx_out.rows != queries.rows ||
        ids_out.cols != approx_out.cols)
      throw std::invalid_argument("ids_out: expected (n_queries, k)");
    if (ids_out.cols == 0) return;
    std::vector<std::vector<std::int32_t>> excluded(static_cast<std::size_t>(queries.rows));
    for (std::int64_t q = 0; q < queries.rows; ++q) {
      const VectorView<const std::int32_t> ids = seen.row_indices(q);
      std::vector<std::int32_t>& sorted = excluded[static_cast<std::size_t>(q)];
      sorted.assign(ids.begin(), ids.end());
      std::sort(sorted.begin(), sorted.end());
    }
    for (std::int64_t q = 0; q < queries.rows; q += kQueriesPerBlock)
      scan(queries, q, std::min(kQueriesPerBlock, queries.rows - q), excluded, num_threads, ids_out,
           approx_out);
  }

  void next_items(const CsrView& known, MatrixView<const float> priors, const QueryModel& model,
                  SearchState* state, int num_threads, MatrixView<std::int32_t> ids_out,
                  MatrixView<float> approx_out) const override {
    std::vector<float> factors(static_cast<std::size_t>(priors.rows * priors.cols));
    update(known, priors, model, state, num_threads, {factors.data(), priors.rows, priors.cols});
    top_items({factors.data(), priors.rows, priors.cols}, known, num_threads, ids_out, approx_out);
  }

 private:
  void check_ids(const CsrView& rows, std::int64_t n_queries) const {
    if (rows.rows != n_queries || rows.cols != items_.rows)
      throw std::invalid_argument("known: expected (n_queries, n_items)");
    for (std::int64_t e = rows.indptr[0]; e < rows.indptr[rows.rows]; ++e)
      if (rows.indices[e] < 0 || rows.indices[e] >= items_.rows)
        throw std::invalid_argument("known: item id out of range");
  }

  void scan(MatrixView<const float> queries, std::int64_t first, std::int64_t n_queries,
            const std::vector<std::vector<std::int32_t>>& excluded, int num_threads,
            MatrixView<std::int32_t> ids_out, MatrixView<float> approx_out) const {
    const Kernels& k = kernels();
    const std::int64_t items_per_task = kItemsPerTile * kTilesPerTask;
    const std::int64_t n_tasks = (items_.rows + items_per_task - 1) / items_per_task;
    const std::size_t n_threads = static_cast<std::size_t>(
        std::max<std::int64_t>(1, std::min<std::int64_t>(num_threads, n_tasks)));
    std::vector<std::vector<TopK>> best(
        n_threads, std::vector<TopK>(static_cast<std::size_t>(n_queries), TopK(ids_out.cols)));
    std::vector<std::vector<float>> tiles(
        n_threads, std::vector<float>(static_cast<std::size_t>(n_queries * kItemsPerTile)));
    parallel_for(n_tasks, static_cast<int>(n_threads), [&](std::int64_t task, int thread) {
      std::vector<TopK>& mine = best[static_cast<std::size_t>(thread)];
      float* tile = tiles[static_cast<std::size_t>(thread)].data();
      const std::int64_t end = std::min(items_.rows, (task + 1) * items_per_task);
      for (std::int64_t i = task * items_per_task; i < end; i += kItemsPerTile) {
        const std::int64_t n = std::min(kItemsPerTile, end - i);
        k.dots(items_.row(i), n, queries.row(first), n_queries, items_.cols, tile, kItemsPerTile);
        for (std::int64_t q = 0; q < n_queries; ++q) {
          const std::vector<std::int32_t>& mask = excluded[static_cast<std::size_t>(first + q)];
          mine[static_cast<std::size_t>(q)].offer(
              tile + q * kItemsPerTile, offsets_.empty() ? nullptr : offsets_.data + i, n, i,
              {mask.data(), static_cast<std::int64_t>(mask.size())});
        }
      }
    });
    for (std::int64_t q = 0; q < n_queries; ++q) {
      TopK& winner = best[0][static_cast<std::size_t>(q)];
      for (std::size_t thread = 1; thread < n_threads; ++thread)
        winner.merge(best[thread][static_cast<std::size_t>(q)]);
      write(winner.finish(), ids_out.row_view(first + q), approx_out.row_view(first + q));
    }
  }

  static void write(const std::vector<Candidate>& best, VectorView<std::int32_t> ids,
                    VectorView<float> approx) {
    const auto n = static_cast<std::int64_t>(best.size());
    for (std::int64_t j = 0; j < ids.size; ++j) {
      ids[j] = j < n ? best[static_cast<std::size_t>(j)].id : -1;
      approx[j] =
          j < n ? best[static_cast<std::size_t>(j)].score : std::numeric_limits<float>::quiet_NaN();
    }
  }

  MatrixView<const float> items_;
  VectorView<const float> offsets_;
};

}  // namespace

std::unique_ptr<Searcher> make_searcher(MatrixView<const float> item_factors,
                                        VectorView<const float> item_offsets) {
  return std::make_unique<CpuSearcher>(item_factors, item_offsets);
}

}  // namespace cexnn::cpu
