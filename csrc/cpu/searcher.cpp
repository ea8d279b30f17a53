#include "../searcher.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "parallel.hpp"
#include "query_update.hpp"
#include "topk.hpp"

namespace cexnn::cpu {
namespace {

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
      QueryUpdate query(items_, offsets_, model, known.row_indices(q), known.row_values(q),
                        priors.row(q));
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
