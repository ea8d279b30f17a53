// One query's posterior: its factors, and the mean and variance of scores not yet known.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../searcher.hpp"
#include "query_state.hpp"
#include "ridge.hpp"

namespace cexnn::cpu {

// Updates one query; see QueryModel and Searcher::posterior for the formulas.
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

  // The n-th score costs 2 n d + n^2 flops, a call 4 n^2; in the primal form d^2 and d^3 / 3.
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

  // See Searcher::posterior. An item costs 2 n d + n^2 flops or, in the primal form, d^2. Several
  // share the reads of the known rows.
  void posterior(QueryState& state, VectorView<const std::int32_t> items, VectorView<float> means,
                 VectorView<float> variances) {
    append(state);
    std::vector<double> whitened;  // L^-1 of what the scores say, in either form
    if (state.primal) {
      whitened = factorise_primal(state);
    } else {
      whitened = residuals(state);
      solve_lower(k_, dual_row(state), ids_.size, whitened.data());
    }
    const auto n = static_cast<std::int64_t>(whitened.size());
    const double noise = ids_.empty() ? model_.noise_variance : state.noise;
    std::vector<double> with_scores(static_cast<std::size_t>(kRowsAtOnce * n));
    for (std::int64_t c = 0; c < items.size;) {
      AskedItems asked;
      for (; c < items.size && asked.n < kRowsAtOnce; ++c) {
        means[c] = variances[c] = std::numeric_limits<float>::quiet_NaN();
        if (items[c] < 0) continue;
        asked.rows[asked.n] = with_scores.data() + asked.n * n;
        asked.add(items[c], c, k_.dot_wide(items_.row(items[c]), prior_, d_));
      }
      if (state.primal) {
        spread_primal(state, asked);
      } else {
        spread_dual(state, asked);
      }
      for (int r = 0; r < asked.n; ++r) {
        const double offset = offsets_.empty() ? 0.0 : offsets_[asked.items[r]];
        const double moved = k_.dot_f64(asked.rows[r], whitened.data(), n);
        means[asked.places[r]] = static_cast<float>(model_.offset + offset + asked.fit[r] + moved);
        variances[asked.places[r]] = static_cast<float>(std::max(0.0, asked.unknown[r]) + noise);
      }
    }
  }

 private:
  void append(QueryState& state) {
    const std::int64_t n = ids_.size;
    if (state.n_done > n) throw std::invalid_argument("known: scores were taken away");
    state.fit.resize(static_cast<std::size_t>(state.n_done));  // more if the last call threw
    for (std::int64_t i = state.n_done; i < n; ++i) {
      const float* v = items_.row(ids_[i]);
      const double p = k_.dot_wide(v, prior_, d_);
      state.fit.push_back(p);
      state.largest = std::max(state.largest, kernel(v, v, p, p));
    }
    double noise = std::max(model_.noise_variance, kRidgeFloor * state.largest);
    if (noise == 0.0) noise = 1.0;  // all K_ii are zero: any positive number will do
    // From about here on a round of 50 scores costs less in the primal form.
    const bool primal = n > d_ + 2 + d_ * d_ / 768;
    if (primal != state.primal) {  // from the first score on: the other form
      std::vector<double> gram;
      if (primal) gram.assign(static_cast<std::size_t>((d_ + 2) * (d_ + 2)), 0.0);
      state.primal = primal;  // nothing throws from here on
      state.n_done = 0;
      state.cholesky = {};
      state.gram = std::move(gram);
    } else if (!primal && noise != state.noise) {  // the floor rose
      state.n_done = 0;
      state.cholesky.clear();
    }
    state.noise = noise;
    if (primal) {
      for (std::int64_t i = state.n_done; i < n; ++i) append_primal(state, i);
    } else {
      state.cholesky.resize(static_cast<std::size_t>(n * (n + 1) / 2));
      for (std::int64_t i = state.n_done; i < n; i += kRowsAtOnce)
        append_dual(state, i, static_cast<int>(std::min<std::int64_t>(kRowsAtOnce, n - i)));
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

  // Rows first, first + 1, ... of the Cholesky factor, n_rows of them. Each product of two rows is
  // summed in the same order whatever rows are appended with it: up to a column that is a multiple
  // of 4 by blocks of rows, the rest one by one.
  void append_dual(QueryState& state, std::int64_t first, int n_rows) {
    double* rows[kRowsAtOnce];
    for (int r = 0; r < n_rows; ++r)
      rows[r] = state.cholesky.data() + (first + r) * (first + r + 1) / 2;
    fill_kernel(state, &ids_[first], &state.fit[static_cast<std::size_t>(first)], n_rows, first + 1,
                1, rows);
    for (int r = 0; r < n_rows; ++r) rows[r][first + r] += state.noise;
    const std::int64_t together = first / kRowsAtOnce * kRowsAtOnce;
    for (std::int64_t j = 0; j < together; j += kRowsAtOnce)
      eliminate(state, rows, n_rows, j, kRowsAtOnce);
    for (int r = 0; r < n_rows; ++r) {
      const std::int64_t i = first + r;
      for (std::int64_t j = together; j < i; j += kRowsAtOnce)
        eliminate(state, rows + r, 1, j, static_cast<int>(std::min<std::int64_t>(4, i - j)));
      const double diagonal = rows[r][i];
      const double pivot = diagonal - k_.dot_f64(rows[r], rows[r], i);
      if (!(pivot > kPivotFloor<double> * diagonal))
        throw std::runtime_error("the system of a query is not solvable: factors not finite?");
      rows[r][i] = std::sqrt(pivot);
    }
  }

  // Rows of K, those of these items and the first n_columns known ones, `more` in each row than in
  // the one before. `fit`: the items' p.
  void fill_kernel(const QueryState& state, const std::int32_t* ids, const double* fit, int n_rows,
                   std::int64_t n_columns, std::int64_t more, double** rows) {
    const double* mine[kRowsAtOnce];
    features_.resize(static_cast<std::size_t>(kRowsAtOnce * d_));
    for (int r = 0; r < n_rows; ++r) {
      mine[r] = features_.data() + r * d_;
      std::copy_n(items_.row(ids[r]), d_, features_.data() + r * d_);
    }
    double products[kRowsAtOnce * kRowsAtOnce];
    const std::int64_t end = n_columns + more * (n_rows - 1);
    for (std::int64_t j = 0; j < end; j += kRowsAtOnce) {
      const int n = static_cast<int>(std::min<std::int64_t>(kRowsAtOnce, end - j));
      const float* others[kRowsAtOnce];
      for (int c = 0; c < n; ++c) others[c] = items_.row(ids_[j + c]);
      k_.dots_wide(mine, n_rows, others, n, d_, products);
      for (int r = 0; r < n_rows; ++r)
        for (int c = 0; c < n && j + c < n_columns + more * r; ++c)
          rows[r][j + c] = model_.factor_variance * products[kRowsAtOnce * r + c] +
                           model_.shift_variance +
                           model_.prior_scale_variance * fit[r] * state.fit[j + c];
    }
  }

  // Columns j .. j + n_columns of rows whose columns before are done.
  void eliminate(const QueryState& state, double** rows, int n_rows, std::int64_t j,
                 int n_columns) const {
    const double* done[kRowsAtOnce];
    for (int c = 0; c < n_columns; ++c) done[c] = dual_row(state)(j + c);
    double products[kRowsAtOnce * kRowsAtOnce];
    k_.dots_f64(rows, n_rows, done, n_columns, j, products);
    for (int c = 0; c < n_columns; ++c) {
      for (int r = 0; r < n_rows; ++r) {
        double value = rows[r][j + c] - products[kRowsAtOnce * r + c];
        for (int t = 0; t < c; ++t) value -= rows[r][j + t] * done[c][j + t];
        rows[r][j + c] = value / done[c][j + c];
      }
    }
  }

  // Each row is L^-1 K_Si, as if the item were scored next.
  void spread_dual(const QueryState& state, AskedItems& asked) {
    const std::int64_t n = ids_.size;
    fill_kernel(state, asked.items, asked.fit, asked.n, n, 0, asked.rows);
    for (std::int64_t j = 0; j < n; j += kRowsAtOnce)
      eliminate(state, asked.rows, asked.n, j, static_cast<int>(std::min<std::int64_t>(4, n - j)));
    for (int r = 0; r < asked.n; ++r) {
      const float* v = items_.row(asked.items[r]);
      asked.unknown[r] =
          kernel(v, v, asked.fit[r], asked.fit[r]) - k_.dot_f64(asked.rows[r], asked.rows[r], n);
    }
  }

  // Fills step with factor_variance V^T a and returns prior_scale_variance p.a.
  double solve_dual(const QueryState& state, std::vector<double>& step) const {
    std::vector<double> a = residuals(state);
    solve_lower(k_, dual_row(state), ids_.size, a.data());
    solve_upper(k_, dual_row(state), ids_.size, a.data());
    double along_prior = 0.0;
    for (std::int64_t i = 0; i < ids_.size; ++i) {
      k_.axpy_wide(model_.factor_variance * a[i], items_.row(ids_[i]), step.data(), d_);
      along_prior += model_.prior_scale_variance * state.fit[i] * a[i];
    }
    return along_prior;
  }

  void append_primal(QueryState& state, std::int64_t i) {
    fill_features(ids_[i], state.fit[i]);
    for (std::int64_t j = 0; j < d_ + 2; ++j)
      k_.axpy_f64(features_[j], features_.data(), state.gram.data() + j * (d_ + 2), j + 1);
  }

  void fill_features(std::int64_t item, double p) {
    features_.resize(static_cast<std::size_t>(d_ + 2));
    const double scale = std::sqrt(model_.factor_variance);
    const float* v = items_.row(item);
    for (std::int64_t j = 0; j < d_; ++j) features_[j] = scale * v[j];
    features_[d_] = std::sqrt(model_.prior_scale_variance) * p;
    features_[d_ + 1] = std::sqrt(model_.shift_variance);
  }

  const double* primal_row(std::int64_t i) const { return system_.data() + i * (d_ + 2); }

  // Leaves the Cholesky factor L of the primal system in system_; returns L^-1 F^T residual.
  std::vector<double> factorise_primal(const QueryState& state) {
    const std::int64_t n_features = d_ + 2;
    system_ = state.gram;
    std::vector<double> x(static_cast<std::size_t>(n_features), 0.0);
    const std::vector<double> residual = residuals(state);
    for (std::int64_t i = 0; i < ids_.size; ++i) {
      fill_features(ids_[i], state.fit[i]);
      k_.axpy_f64(residual[i], features_.data(), x.data(), n_features);
    }
    const auto row = [this](std::int64_t i) { return primal_row(i); };
    for (std::int64_t i = 0; i < n_features; ++i) {
      double* mine = system_.data() + i * n_features;
      mine[i] += state.noise;
      if (!cholesky_row(k_, row, i, mine))
        throw std::runtime_error("the system of a query is not solvable: factors not finite?");
    }
    solve_lower(k_, row, n_features, x.data());
    return x;
  }

  double solve_primal(const QueryState& state, std::vector<double>& step) {
    std::vector<double> x = factorise_primal(state);
    solve_upper(k_, [this](std::int64_t i) { return primal_row(i); }, d_ + 2, x.data());
    const double scale = std::sqrt(model_.factor_variance);
    for (std::int64_t j = 0; j < d_; ++j) step[j] = scale * x[j];
    return std::sqrt(model_.prior_scale_variance) * x[d_];
  }

  // The same as spread_dual of L^-1 f, f the features of an item: noise |L^-1 f|^2.
  void spread_primal(const QueryState& state, AskedItems& asked) {
    for (int r = 0; r < asked.n; ++r) {
      fill_features(asked.items[r], asked.fit[r]);
      std::copy_n(features_.data(), d_ + 2, asked.rows[r]);
      solve_lower(k_, [this](std::int64_t j) { return primal_row(j); }, d_ + 2, asked.rows[r]);
      asked.unknown[r] = state.noise * k_.dot_f64(asked.rows[r], asked.rows[r], d_ + 2);
    }
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
  std::vector<double> system_;
};

}  // namespace cexnn::cpu
