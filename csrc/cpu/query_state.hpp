// What is kept of a query's system between its updates, and what is asked of it.
#pragma once

#include <cstdint>
#include <vector>

namespace cexnn::cpu {

// One query's system, grown by rows. While a query has not many more scores than factors it is the
// dual one: the Cholesky factor of K + noise I, packed (n (n + 1) / 2 doubles). Beyond, the primal
// one of the features [sqrt(factor_variance) v, sqrt(prior_scale_variance) p,
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

// The rows of the dual form's Cholesky factor.
inline auto dual_row(const QueryState& state) {
  return [&state](std::int64_t i) { return state.cholesky.data() + i * (i + 1) / 2; };
}

constexpr int kRowsAtOnce = 4;

// Items that share a pass over what is known: the variances of their scores are asked for.
struct AskedItems {
  void add(std::int32_t item, std::int64_t place, double p) {
    items[n] = item;
    places[n] = place;
    fit[n++] = p;
  }

  int n = 0;
  std::int32_t items[kRowsAtOnce];
  std::int64_t places[kRowsAtOnce];
  double fit[kRowsAtOnce];
  double* rows[kRowsAtOnce];    // L^-1 of what ties them to the scores
  double unknown[kRowsAtOnce];  // the variances that the scores leave
};

}  // namespace cexnn::cpu
