#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "../searcher.hpp"
#include "finder.cuh"
#include "transfers.cuh"
#include "updater.cuh"

namespace cexnn::cuda {
namespace {

constexpr std::int64_t kQueriesAtOnce = 1024;
constexpr std::int64_t kBytesAtOnce = std::int64_t{1} << 30;  // for the systems of queries

// num_threads is of no use here.
class CudaSearcher final : public Searcher {
 public:
  CudaSearcher(MatrixView<const float> items, VectorView<const float> offsets,
               const CompactItems& compact)
      : d_(items.cols),
        items_(items, stream_),
        halves_(compact.halves, stream_),
        bytes_(compact.bytes, stream_) {
    if (!offsets.empty() && offsets.size != items.rows)
      throw std::invalid_argument("item_offsets: expected one for each item");
    const bool halves = compact.halves.data != nullptr, bytes = compact.bytes.data != nullptr;
    if ((halves || bytes) && (compact.scales.size != items.rows ||
                              (halves ? compact.halves.rows : compact.bytes.rows) != items.rows ||
                              (halves ? compact.halves.cols : compact.bytes.cols) != items.cols))
      throw std::invalid_argument("compact: expected the shape of item_factors and a scale a row");
    const float* offsets_there = to_device(offsets.data, offsets.size, offset_storage_, stream_);
    if (offsets.empty()) offsets_there = nullptr;
    const float* scales =
        to_device(compact.scales.data, compact.scales.size, scale_storage_, stream_);
    adjust_ = {halves || bytes ? scales : nullptr, offsets_there};
    measure(scales);
    exact_ = {items_.rows(), offsets_there, adjust_.scales == nullptr ? sizes_.data() : scales,
              largest_.data() + (adjust_.scales == nullptr ? 0 : 1)};
  }

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
      const UpdateArguments u = updater().grow(ws, part, model, results.failed());
      updater().solve(ws, u, n, results.device<float>(0), d_);
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
      if (!within(asked, n * c, -1, items_.rows().n, ws))
        throw std::invalid_argument("items: item id out of range");
      const Results results(ws, 2 * n * c);
      const UpdateArguments u = updater().grow(ws, part, model, results.failed());
      ws.queries.reserve(n * d_);
      updater().solve(ws, u, n, ws.queries.data(), d_);
      ws.columns.reserve(c * u.n_known);
      const std::int32_t* there = to_device(asked, n * c, ws.asked, ws.stream);
      launch(posterior_kernel, dim3(unsigned(c), unsigned(n)), dim3(kUpdateThreads), 0, ws.stream,
             u, there, ws.columns.data(), results.device<float>(0), results.device<float>(n * c));
      finish(ws, results, part);
      results.deliver(0, means_out.row(part.first), n * c);
      results.deliver(n * c, variances_out.row(part.first), n * c);
    });
  }

  void top_items(MatrixView<const float> queries, const CsrView& seen, int,
                 MatrixView<std::int32_t> ids_out, MatrixView<float> approx_out) const override {
    const OnFirstDevice device;
    const Workspaces::Loan loan = workspaces_.lend();
    Workspace& ws = *loan;
    check_known(seen, queries.rows, ws);
    if (queries.cols != d_)
      throw std::invalid_argument("query_factors: expected (n_queries, n_factors)");
    check_answer(queries.rows, ids_out, approx_out);
    if (ids_out.cols == 0) return;
    for (std::int64_t q = 0; q < queries.rows; q += kQueriesAtOnce) {
      const std::int64_t n = std::min(kQueriesAtOnce, queries.rows - q);
      const CsrView part = rows_of(seen, q, n);
      const std::int64_t begin = part.indptr[0], n_seen = part.indptr[n] - begin;
      ws.rows.assign(static_cast<std::size_t>(n), {});
      for (std::int64_t r = 0; r < n; ++r) {
        ws.rows[static_cast<std::size_t>(r)].begin = part.indptr[r] - begin;
        ws.rows[static_cast<std::size_t>(r)].n = static_cast<int>(part.row_size(r));
      }
      ws.upload.start(Updater::upload_bytes(n) + 4 * (n_seen + n * d_) + 32);
      const Results results(ws, n * (2 * ids_out.cols + 1));
      UpdateArguments u;
      u.queries = ws.upload.add(ws.rows.data(), n);
      u.masks = Updater::add_masks(ws, part, n);
      u.ids = ws.upload.add(part.indices + begin, n_seen);
      const float* factors = ws.upload.add(queries.row(q), n * d_);
      u.failed = results.failed();
      ws.upload.send(ws.stream);
      launch(prepare_kernel, dim3(1, unsigned(n)), dim3(kUpdateThreads), 0, ws.stream, u);
      ws.queries.reserve(n * stride());
      launch(pad_rows_kernel<float>, blocks_for(n * stride(), kStoreThreads), dim3(kStoreThreads),
             0, ws.stream, factors, n, d_, stride(), ws.queries.data());
      find(ws, results, u.masks, n, ids_out.cols);
      results.fetch();
      answer(ws, results, u.masks, q, n, ids_out, approx_out);
    }
  }

  void next_items(const CsrView& known, MatrixView<const float> priors, const QueryModel& model,
                  SearchState* state, int, MatrixView<std::int32_t> ids_out,
                  MatrixView<float> approx_out) const override {
    check_answer(priors.rows, ids_out, approx_out);
    for_each_part(known, priors, state, [&](Workspace& ws, const KnownScores& part) {
      const std::int64_t n = part.priors.rows;
      const Results results(ws, n * (2 * ids_out.cols + 1));
      const UpdateArguments u = updater().grow(ws, part, model, results.failed());
      ws.queries.reserve(n * stride());
      updater().solve(ws, u, n, ws.queries.data(), stride());
      if (ids_out.cols > 0) find(ws, results, u.masks, n, ids_out.cols);
      finish(ws, results, part);
      if (ids_out.cols > 0) answer(ws, results, u.masks, part.first, n, ids_out, approx_out);
    });
  }

 private:
  // Item sizes, for the errors of rounding, and the largest of them and of the scales.
  void measure(const float* scales) {
    const std::int64_t n = items_.rows().n;
    largest_.reserve(2);
    fill_zero(largest_.data(), 2, stream_);
    sizes_.reserve(n);
    const dim3 grid = blocks_for(32 * n, kStoreThreads), block(kStoreThreads);
    launch(sizes_kernel, grid, block, 0, stream_, items_.rows(), n, sizes_.data(), largest_.data());
    if (adjust_.scales != nullptr)
      launch(sizes_kernel, grid, block, 0, stream_, Rows<float>{}, n, const_cast<float*>(scales),
             largest_.data() + 1);
    copy<float>(largest_.data(), &largest_factor_, 1, stream_);
    stream_.wait();
  }

  Updater updater() const { return Updater(items_.rows(), adjust_.offsets, d_, largest_factor_); }

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
    results.fetch();
    results.check_solved();
    if (part.state != nullptr) part.state->done(ws.rows, part.first);
  }

  Answers answers(const Results& results, std::int64_t n, std::int64_t k) const {
    return {results.device<std::int32_t>(0), results.device<float>(n * k),
            results.device<int>(2 * n * k), static_cast<int>(k)};
  }

  // Puts on the stream what finds the k best for the n queries in the workspace.
  void find(Workspace& ws, const Results& results, const Mask* masks, std::int64_t n,
            std::int64_t k) const {
    const Answers out = answers(results, n, k);
    const Queries queries{ws.queries.data(), stride(), masks};
    if (halves_.rows().data != nullptr) {
      find_with(Finder<std::uint16_t>(halves_.rows(), adjust_, exact_), ws, queries, n, out);
    } else if (bytes_.rows().data != nullptr) {
      find_with(Finder<std::int8_t>(bytes_.rows(), adjust_, exact_), ws, queries, n, out);
    } else {
      find_with(plain(), ws, queries, n, out);
    }
  }

  template <typename T>
  void find_with(const Finder<T>& finder, Workspace& ws, Queries queries, std::int64_t n,
                 Answers out) const {
    if (finder.can_batch(n, out.k)) {
      finder.batch(ws, queries, n, out);
    } else if (finder.can_scan(out.k)) {
      finder.scan(ws, queries, n, out);
    } else {
      sort_all(ws, exact_, queries, n, out);
    }
  }

  Finder<float> plain() const {
    return Finder<float>(items_.rows(), {nullptr, adjust_.offsets}, exact_);
  }

  // Hands out what was fetched, after asking again of the factors themselves where it is unsure.
  void answer(Workspace& ws, const Results& results, const Mask* masks, std::int64_t first,
              std::int64_t n, MatrixView<std::int32_t> ids_out,
              MatrixView<float> approx_out) const {
    const std::int64_t k = ids_out.cols;
    const Answers out = answers(results, n, k);
    bool again = false;
    for (std::int64_t q = 0; q < n; ++q) {
      if (results.host<int>(2 * n * k)[q] == 0) continue;
      again = true;
      plain().scan(ws, {ws.queries.data() + q * stride(), stride(), masks + q}, 1,
                   {out.ids + q * k, out.approx + q * k, out.unsure + q, out.k});
    }
    if (again) results.fetch();
    results.deliver(0, ids_out.row(first), n * k);
    results.deliver(n * k, approx_out.row(first), n * k);
  }

  void check_known(const CsrView& rows, std::int64_t n_queries, Workspace& ws) const {
    if (rows.rows != n_queries || rows.cols != items_.rows().n)
      throw std::invalid_argument("known: expected (n_queries, n_items)");
    if (!within(rows.indices, rows.indptr[rows.rows], 0, items_.rows().n, ws))
      throw std::invalid_argument("known: item id out of range");
  }

  static void check_answer(std::int64_t n, MatrixView<std::int32_t> ids, MatrixView<float> approx) {
    if (ids.rows != n || approx.rows != n || ids.cols != approx.cols)
      throw std::invalid_argument("ids_out: expected (n_queries, k)");
    if (ids.cols > std::numeric_limits<std::int32_t>::max())
      throw std::invalid_argument("ids_out: expected fewer than 2^31 items a query");
  }

  Stream stream_;
  std::int64_t d_;
  ItemRows<float> items_;
  ItemRows<std::uint16_t> halves_;
  ItemRows<std::int8_t> bytes_;
  DeviceBuffer<float> offset_storage_, scale_storage_, sizes_, largest_;
  float largest_factor_ = 0.0F;
  Adjustments adjust_;
  Exact exact_;
  mutable Workspaces workspaces_;
};

}  // namespace

std::unique_ptr<Searcher> make_searcher(MatrixView<const float> item_factors,
                                        VectorView<const float> item_offsets,
                                        const CompactItems& compact) {
  const OnFirstDevice device;
  return std::make_unique<CudaSearcher>(item_factors, item_offsets, compact);
}

}  // namespace cexnn::cuda
