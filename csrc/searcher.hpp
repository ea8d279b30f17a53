// One search round: update every query's factors from its scores, then find its best unseen items.
#pragma once

#include <cstdint>
#include <memory>

#include "views.hpp"

namespace cexnn {

// How scores y of the items S become a query's factors u. With p = V_S u0, w = `centred`:
//
//   K = factor_variance V_S V_S^T + prior_scale_variance p p^T + shift_variance 1 1^T
//   a = (K + max(noise_variance, 1e-6 max_i K_ii) I)^-1 (y - offset - o_S - w p)
//   u = (w + prior_scale_variance p.a) u0 + factor_variance V_S^T a               centred
//   u = (1 - mix) factor_variance V_S^T a + mix u0                                not centred
//
// Centred, it is the posterior mean of  y = offset + o + g p + V_S x + shift + noise  with
// g ~ N(1, prior_scale_variance), x ~ N(0, factor_variance I); not centred and with all variances
// but the first at zero, the minimum-norm least squares of the scores, mixed with the prior.
// Without scores, u = u0. Without `item_offsets`, o is zero.
struct QueryModel {
  double factor_variance = 1.0;
  double prior_scale_variance = 0.0;
  double shift_variance = 0.0;
  double noise_variance = 0.0;
  double offset = 0.0;
  bool centred = true;
  double mix = 0.0;
  bool item_offsets = true;
};

// By what a query's items rank: u.v + o, u.v alone, or by both, each for an answer of its own.
enum class Ranking { with_offsets, without_offsets, both };

inline Ranking ranking_of(const QueryModel& model) {
  return model.item_offsets ? Ranking::with_offsets : Ranking::without_offsets;
}

inline std::int64_t answers_of(Ranking ranking) { return ranking == Ranking::both ? 2 : 1; }

// Whether a query's answer, the first or the second, ranks by u.v + o. Of both it is the second.
inline bool counts_offsets(Ranking ranking, std::int64_t answer) {
  return ranking == Ranking::with_offsets || (ranking == Ranking::both && answer == 1);
}

// What a search has already computed for its queries: Cholesky factors that grow by rows. A cache
// of the ids in `known`, of `priors` and `model`, which must not change under it but for ids
// appended to rows. The scores themselves may change. Not for two threads at a time.
class SearchState {
 public:
  virtual ~SearchState() = default;

  // Forgets all queries but these, ascending, which are numbered anew from 0.
  virtual void keep(VectorView<const std::int32_t> queries) = 0;
};

// The same item factors in fewer bytes: those of item i are scales[i] times its row of `halves`, in
// IEEE half precision, or of `bytes`, -127 to 127. One of the two, or neither. They say where to
// look; what is found is ranked, and its scores are computed, by the factors themselves.
struct CompactItems {
  MatrixView<const std::uint16_t> halves;  // (n_items, d)
  MatrixView<const std::int8_t> bytes;     // (n_items, d)
  VectorView<const float> scales;          // (n_items,)

  bool empty() const { return halves.data == nullptr && bytes.data == nullptr; }
};

// Items and their offsets, ready to be searched. Borrows its arrays, never changes what it answers,
// may be used from several threads.
class Searcher {
 public:
  virtual ~Searcher() = default;

  virtual std::unique_ptr<SearchState> make_state(std::int64_t n_queries) const = 0;

  // known: (n, n_items), each row in the order of scoring, no item twice; priors: (n, d) u0;
  // factors_out: (n, d). `state` may be null: nothing is reused.
  virtual void update(const CsrView& known, MatrixView<const float> priors, const QueryModel& model,
                      SearchState* state, int num_threads, MatrixView<float> factors_out) const = 0;

  // For each query the k items that rank first, largest first, the smaller id first among equals,
  // skipping the items stored in its row of `seen` (values unused, may be null) and, in any
  // ranking, those whose offset is minus infinity. ids_out and approx_out (n, k); of both rankings
  // (2 n, k), rows 2 q without the offsets and 2 q + 1 with them, found in one pass over the items.
  // -1 and NaN where fewer than k are left.
  virtual void top_items(MatrixView<const float> query_factors, const CsrView& seen,
                         Ranking ranking, int num_threads, MatrixView<std::int32_t> ids_out,
                         MatrixView<float> approx_out) const = 0;

  // What the centred model says of scores not yet known: for each query the mean and the variance
  // of the score of each of `items` (n, c), with K over all items and S those known:
  //
  //   mean      offset + o_i + p_i + K_iS a
  //   variance  K_ii - K_iS (K_SS + noise I)^-1 K_Si + noise
  //
  // NaN where an id is -1. A model that is not centred has neither: std::invalid_argument.
  virtual void posterior(const CsrView& known, MatrixView<const float> priors,
                         const QueryModel& model, MatrixView<const std::int32_t> items,
                         SearchState* state, int num_threads, MatrixView<float> means_out,
                         MatrixView<float> variances_out) const = 0;

  // update, then top_items with `known` as the mask, ranked as the model counts offsets.
  virtual void next_items(const CsrView& known, MatrixView<const float> priors,
                          const QueryModel& model, SearchState* state, int num_threads,
                          MatrixView<std::int32_t> ids_out, MatrixView<float> approx_out) const = 0;
};

namespace cpu {
// item_factors (n_items, d); item_offsets (n_items,) or empty: zero; compact or empty.
std::unique_ptr<Searcher> make_searcher(MatrixView<const float> item_factors,
                                        VectorView<const float> item_offsets,
                                        const CompactItems& compact);
}  // namespace cpu

// The same on the CUDA device, where the items are kept. Arrays lie in the host's memory or, a
// CsrView's indptr apart, on the device; those on the device are used where they are.
namespace cuda {
std::unique_ptr<Searcher> make_searcher(MatrixView<const float> item_factors,
                                        VectorView<const float> item_offsets,
                                        const CompactItems& compact);
}  // namespace cuda

}  // namespace cexnn
