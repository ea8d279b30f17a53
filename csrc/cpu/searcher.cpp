#include "../searcher.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../searcher_checks.hpp"
#include "item_scan.hpp"
#include "parallel.hpp"
#include "query_update.hpp"

namespace cexnn::cpu {
namespace {

// By their bytes, the lowest first: std::sort mispredicts every other comparison, and took a
// thirtieth of a batch's time for 300 ids of each query.
void sort_ids(std::vector<std::int32_t>& ids, std::int64_t n_items,
              std::vector<std::int32_t>& spare) {
  spare.resize(ids.size());
  for (int shift = 0; (n_items - 1) >> shift > 0; shift += 8) {
    std::array<std::size_t, 257> ends{};
    for (const std::int32_t id : ids) ++ends[((id >> shift) & 255) + 1];
    std::partial_sum(ends.begin(), ends.end(), ends.begin());
    for (const std::int32_t id : ids) spare[ends[(id >> shift) & 255]++] = id;
    ids.swap(spare);
  }
}

class CpuSearchState final : public SearchState {
 public:
  explicit CpuSearchState(std::int64_t n_queries) : queries(static_cast<std::size_t>(n_queries)) {}

  void keep(VectorView<const std::int32_t> kept) override {
    std::int64_t least = 0;
    for (const std::int32_t q : kept) {  // all of them first: a refusal changes nothing
      if (q < least || q >= static_cast<std::int64_t>(queries.size()))
        throw std::invalid_argument("queries: expected ascending row numbers of the state");
      least = q + std::int64_t{1};
    }
    std::int64_t n = 0;
    for (const std::int32_t q : kept) {
      if (q != n)
        queries[static_cast<std::size_t>(n)] = std::move(queries[static_cast<std::size_t>(q)]);
      ++n;
    }
    queries.resize(static_cast<std::size_t>(n));
  }

  std::vector<QueryState> queries;
};

class CpuSearcher final : public Searcher {
 public:
  CpuSearcher(MatrixView<const float> items, VectorView<const float> offsets,
              const CompactItems& compact)
      : items_(items), offsets_(offsets), scan_(items, offsets, compact) {}

  std::unique_ptr<SearchState> make_state(std::int64_t n_queries) const override {
    return std::make_unique<CpuSearchState>(n_queries);
  }

  void update(const CsrView& known, MatrixView<const float> priors, const QueryModel& model,
              SearchState* state, int num_threads, MatrixView<float> factors_out) const override {
    if (factors_out.cols != items_.cols || factors_out.rows != priors.rows)
      throw std::invalid_argument("priors: expected (n_queries, n_factors)");
    for_each_query(known, priors, model, state, num_threads,
                   [&](QueryUpdate& query, QueryState& mine, std::int64_t q) {
                     query.run(mine, factors_out.row(q));
                   });
  }

  void posterior(const CsrView& known, MatrixView<const float> priors, const QueryModel& model,
                 MatrixView<const std::int32_t> items, SearchState* state, int num_threads,
                 MatrixView<float> means_out, MatrixView<float> variances_out) const override {
    if (!model.centred) throw std::invalid_argument("model: expected a centred one");
    if (items.rows != priors.rows) throw std::invalid_argument("items: expected (n_queries, c)");
    for (std::int64_t e = 0; e < items.rows * items.cols; ++e)
      if (items.data[e] < -1 || items.data[e] >= items_.rows)
        throw std::invalid_argument("items: item id out of range");
    for_each_query(known, priors, model, state, num_threads,
                   [&](QueryUpdate& query, QueryState& mine, std::int64_t q) {
                     query.posterior(mine, items.row_view(q), means_out.row_view(q),
                                     variances_out.row_view(q));
                   });
  }

  void top_items(MatrixView<const float> queries, const CsrView& seen, Ranking ranking,
                 int num_threads, MatrixView<std::int32_t> ids_out,
                 MatrixView<float> approx_out) const override {
    check_ids(seen, queries.rows);
    if (queries.cols != items_.cols)
      throw std::invalid_argument("query_factors: expected (n_queries, n_factors)");
    if (ids_out.rows != answers_of(ranking) * queries.rows || approx_out.rows != ids_out.rows ||
        ids_out.cols != approx_out.cols)
      throw std::invalid_argument("ids_out: expected k for each query and ranking");
    if (ids_out.cols == 0) return;
    std::vector<std::int32_t> spare;
    std::vector<std::vector<std::int32_t>> excluded(static_cast<std::size_t>(queries.rows));
    for (std::int64_t q = 0; q < queries.rows; ++q) {
      const VectorView<const std::int32_t> ids = seen.row_indices(q);
      std::vector<std::int32_t>& sorted = excluded[static_cast<std::size_t>(q)];
      sorted.assign(ids.begin(), ids.end());
      sort_ids(sorted, items_.rows, spare);
    }
    scan_.run(queries, excluded, ranking, num_threads, ids_out, approx_out);
  }

  void next_items(const CsrView& known, MatrixView<const float> priors, const QueryModel& model,
                  SearchState* state, int num_threads, MatrixView<std::int32_t> ids_out,
                  MatrixView<float> approx_out) const override {
    std::vector<float> factors(static_cast<std::size_t>(priors.rows * priors.cols));
    update(known, priors, model, state, num_threads, {factors.data(), priors.rows, priors.cols});
    top_items({factors.data(), priors.rows, priors.cols}, known, ranking_of(model), num_threads,
              ids_out, approx_out);
  }

 private:
  template <typename Work>
  void for_each_query(const CsrView& known, MatrixView<const float> priors, const QueryModel& model,
                      SearchState* state, int num_threads, const Work& work) const {
    check_ids(known, priors.rows);
    if (priors.cols != items_.cols)
      throw std::invalid_argument("priors: expected (n_queries, n_factors)");
    auto* cached = dynamic_cast<CpuSearchState*>(state);
    if (cached != nullptr && static_cast<std::int64_t>(cached->queries.size()) != priors.rows)
      throw std::invalid_argument("state: made for another number of queries");
    parallel_for(priors.rows, num_threads, [&](std::int64_t q, int) {
      QueryState fresh;
      QueryState& mine = cached == nullptr ? fresh : cached->queries[static_cast<std::size_t>(q)];
      QueryUpdate query(items_, model.item_offsets ? offsets_ : VectorView<const float>{}, model,
                        known.row_indices(q), known.row_values(q), priors.row(q));
      work(query, mine, q);
    });
  }

  void check_ids(const CsrView& rows, std::int64_t n_queries) const {
    if (rows.rows != n_queries || rows.cols != items_.rows)
      throw std::invalid_argument("known: expected (n_queries, n_items)");
    for (std::int64_t e = rows.indptr[0]; e < rows.indptr[rows.rows]; ++e)
      if (rows.indices[e] < 0 || rows.indices[e] >= items_.rows)
        throw std::invalid_argument("known: item id out of range");
  }

  MatrixView<const float> items_;
  VectorView<const float> offsets_;
  ItemScan scan_;
};

}  // namespace

std::unique_ptr<Searcher> make_searcher(MatrixView<const float> item_factors,
                                        VectorView<const float> item_offsets,
                                        const CompactItems& compact) {
  check_items(item_factors, item_offsets, compact);
  return std::make_unique<CpuSearcher>(item_factors, item_offsets, compact);
}

}  // namespace cexnn::cpu
