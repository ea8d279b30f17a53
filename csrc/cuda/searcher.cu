#include <algorithm>
#include <stdexcept>
#include <vector>

#include "../searcher.hpp"
#include "../searcher_checks.hpp"
#include "items_there.cuh"
#include "launch.cuh"
#include "memory.cuh"
#include "runtime.cuh"
#include "transfers.cuh"
#include "updater.cuh"

namespace cexnn::cuda {
namespace {

constexpr std::int64_t kQueriesAtOnce = 1024;
constexpr std::int64_t kSeenStep = 128;  // ids of a query come in so many, for shapes to come again
constexpr std::int64_t kBytesAtOnce = std::int64_t{1} << 30;  // for the systems of queries

// num_threads is of no use here.
class CudaSearcher final : public Searcher {
 public:
  CudaSearcher(MatrixView<const float> items, VectorView<const float> offsets,
               const CompactItems& compact)
      : d_(items.cols), items_(items, offsets, compact) {}

  std::unique_ptr<SearchState> make_state(std::int64_t n_queries) const override {
    return std::make_unique<CudaSearchState>(n_queries);
  }

  void update(const CsrView& known, MatrixView<const float> priors, const QueryModel& model,
              SearchState* state, int, MatrixView<float> factors_out) const override {
    if (factors_out.cols != d_ || factors_out.rows != priors.rows)
      throw std::invalid_argument("priors: expected (n_queries, n_factors)");
    for_each_part(known, priors, state, [&](Workspace& ws, const KnownScores& part) {
      const std::int64_t n = part.priors.rows;
      const Results results(ws, n * d_);
      const Update plan = updater(model).plan(ws, part, model, results.failed());
      Updater::grow(ws, plan);
      Updater::solve(ws, plan, results.device<float>(0), d_);
      results.send(on_device(factors_out.data) ? 0 : n * d_);
      finish(ws, results, part);
      results.deliver(0, factors_out.row(part.first), n * d_);
    });
  }

  void posterior(const CsrView& known, MatrixView<const float> priors, const QueryModel& model,
                 MatrixView<const std::int32_t> items, SearchState* state, int,
                 MatrixView<float> means_out, MatrixView<float> variances_out) const override {
    if (!model.centred) throw std::invalid_argument("model: expected a centred one");
    if (items.rows != priors.rows) throw std::invalid_argument("items: expected (n_queries, c)");
    for_each_part(known, priors, state, [&](Workspace& ws, const KnownScores& part) {
      const std::int64_t n = part.priors.rows, c = items.cols;
      const std::int32_t* asked = items.row(part.first);
      if (!within(asked, n * c, -1, items_.n(), ws))
        throw std::invalid_argument("items: item id out of range");
      const Results results(ws, 2 * n * c);
      const Update plan = updater(model).plan(ws, part, model, results.failed());
      ws.queries.reserve(n * d_);
      Updater::grow(ws, plan);
      Updater::solve(ws, plan, ws.queries.data(), d_);
      ws.columns.reserve(c * plan.u.room);
      const std::int32_t* there = to_device(asked, n * c, ws.asked, ws.stream);
      launch(posterior_kernel, dim3(unsigned(c), unsigned(n)), dim3(kUpdateThreads), 0, ws.stream,
             plan.u, there, ws.columns.data(), results.device<float>(0),
             results.device<float>(n * c));
      results.send(2 * n * c);
      finish(ws, results, part);
      results.deliver(0, means_out.row(part.first), n * c);
      results.deliver(n * c, variances_out.row(part.first), n * c);
    });
  }

  void top_items(MatrixView<const float> queries, const CsrView& seen, Ranking ranking, int,
                 MatrixView<std::int32_t> ids_out, MatrixView<float> approx_out) const override {
    const OnFirstDevice device;
    const Workspaces::Loan loan = workspaces_.lend();
    Workspace& ws = *loan;
    check_known(seen, queries.rows, ws);
    if (queries.cols != d_)
      throw std::invalid_argument("query_factors: expected (n_queries, n_factors)");
    check_answer(answers_of(ranking) * queries.rows, ids_out, approx_out);
    if (ids_out.cols == 0) return;
    for (std::int64_t q = 0; q < queries.rows; q += kQueriesAtOnce) {
      const std::int64_t n = std::min(kQueriesAtOnce, queries.rows - q);
      const CsrView part = rows_of(seen, q, n);
      const std::int64_t begin = part.indptr[0], n_seen = part.indptr[n] - begin;
      Updater::start_rows(ws, part);
      const std::int64_t room = rounded(n_seen, kSeenStep * n);
      ws.upload.start(Updater::upload_bytes(n) + 4 * (room + n * d_) + 32);
      const Results results(ws, answers_of(ranking) * n * (2 * ids_out.cols + 1));
      UpdateArguments u;
      u.queries = ws.upload.add(ws.rows.data(), n);
      u.masks = Updater::add_masks(ws, part, n, room);
      u.arrived = ws.arrived.data();
      u.ids = ws.settle(part.indices + begin, n_seen, room, ws.own_ids);
      const float* factors = ws.settle(queries.row(q), n * d_, n * d_, ws.own_factors);
      u.failed = results.failed();
      const bool padded = stride() == d_;
      if (!padded) ws.queries.reserve(n * stride());
      const Asked asked(padded ? factors : ws.queries.data(), stride(), u.masks, ranking, n,
                        ids_out, approx_out);
      const auto shape = [&] {
        return ws.shape(n, asked.k, room, asked.n_fetched, int(ranking), u.ids, factors);
      };
      in_one_go(ws, asked.k, shape, [&] {
        ws.upload.send(ws.stream);
        launch(begin_kernel, dim3(1, unsigned(n)), dim3(kUpdateThreads), 0, ws.stream, u, 1);
        if (!padded)
          launch(pad_rows_kernel<float>, blocks_for(n * stride(), kStoreThreads),
                 dim3(kStoreThreads), 0, ws.stream, factors, n, d_, stride(), ws.queries.data());
        items_.find(ws, results, asked);
        results.send(asked.n_fetched);
      });
      ws.stream.wait();
      items_.answer(ws, results, asked, q, ids_out, approx_out);
    }
  }

  void next_items(const CsrView& known, MatrixView<const float> priors, const QueryModel& model,
                  SearchState* state, int, MatrixView<std::int32_t> ids_out,
                  MatrixView<float> approx_out) const override {
    check_answer(priors.rows, ids_out, approx_out);
    for_each_part(known, priors, state, [&](Workspace& ws, const KnownScores& part) {
      const std::int64_t n = part.priors.rows;
      const Results results(ws, n * (2 * ids_out.cols + 1));
      const Update plan = updater(model).plan(ws, part, model, results.failed());
      ws.queries.reserve(n * stride());
      const Asked asked(ws.queries.data(), stride(), plan.u.masks, ranking_of(model), n, ids_out,
                        approx_out);
      const auto shape = [&] { return Updater::shape(ws, plan, asked.k, asked.n_fetched); };
      in_one_go(ws, asked.k, shape, [&] {
        Updater::grow(ws, plan);
        Updater::solve(ws, plan, ws.queries.data(), stride());
        if (asked.k > 0) items_.find(ws, results, asked);
        results.send(asked.n_fetched);
      });
      finish(ws, results, part);
      if (asked.k > 0) items_.answer(ws, results, asked, part.first, ids_out, approx_out);
    });
  }

 private:
  // `work` as one graph; as it comes where all scores may be sorted, which takes launches by the
  // thousand.
  template <typename Shape, typename Work>
  static void in_one_go(Workspace& ws, std::int64_t k, const Shape& shape, const Work& work) {
    if (k > kMostKept / 2) {
      work();
    } else {
      ws.graphs.run(ws.stream, shape, work);
    }
  }

  Updater updater(const QueryModel& model) const {
    return Updater(items_.rows(), model.item_offsets ? items_.offsets() : nullptr, d_,
                   items_.largest_factor());
  }

  // Of queries on the device: whole chunks of any type.
  std::int64_t stride() const { return (d_ + 15) / 16 * 16; }

  // work(workspace, some of the queries), so many at a time that their systems fit the memory.
  template <typename Work>
  void for_each_part(const CsrView& known, MatrixView<const float> priors, SearchState* state,
                     const Work& work) const {
    const OnFirstDevice device;
    const Workspaces::Loan loan = workspaces_.lend();
    Workspace& ws = *loan;
    check_known(known, priors.rows, ws);
    if (priors.cols != d_) throw std::invalid_argument("priors: expected (n_queries, n_factors)");
    auto* cached = dynamic_cast<CudaSearchState*>(state);
    if (cached != nullptr && cached->n_queries() != priors.rows)
      throw std::invalid_argument("state: made for another number of queries");
    std::int64_t max_known = 0;
    for (std::int64_t q = 0; q < priors.rows; ++q)
      max_known = std::max(max_known, known.row_size(q));
    const std::int64_t step = std::clamp<std::int64_t>(
        kBytesAtOnce / std::max<std::int64_t>(1, Updater::bytes(max_known)), 1, kQueriesAtOnce);
    for (std::int64_t q = 0; q < priors.rows; q += step) {
      const std::int64_t n = std::min(step, priors.rows - q);
      work(ws, KnownScores{rows_of(known, q, n), {priors.row(q), n, d_}, cached, q});
    }
  }

  void finish(Workspace& ws, const Results& results, const KnownScores& part) const {
    ws.stream.wait();
    results.check_solved();
    if (part.state != nullptr) part.state->done(ws.rows, part.first);
  }

  void check_known(const CsrView& rows, std::int64_t n_queries, Workspace& ws) const {
    if (rows.rows != n_queries || rows.cols != items_.n())
      throw std::invalid_argument("known: expected (n_queries, n_items)");
    if (!within(rows.indices, rows.indptr[rows.rows], 0, items_.n(), ws))
      throw std::invalid_argument("known: item id out of range");
  }

  std::int64_t d_;
  ItemsThere items_;
  mutable Workspaces workspaces_;
};

}  // namespace

std::unique_ptr<Searcher> make_searcher(MatrixView<const float> item_factors,
                                        VectorView<const float> item_offsets,
                                        const CompactItems& compact) {
  check_items(item_factors, item_offsets, compact);
  const OnFirstDevice device;
  return std::make_unique<CudaSearcher>(item_factors, item_offsets, compact);
}

}  // namespace cexnn::cuda
