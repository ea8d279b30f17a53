// Finding the best items for queries: passes over all items, by one query or many at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "../searcher.hpp"
#include "candidates.hpp"
#include "coarse_scan.hpp"
#include "few_queries.hpp"
#include "kernels.hpp"
#include "packed_queries.hpp"
#include "panel_tile.hpp"
#include "parallel.hpp"
#include "query_block.hpp"
#include "topk.hpp"

namespace cexnn::cpu {

// One pass over the items for a few queries or a block of many: 2 n m d flops on m d floats. A tile
// of items and its scores stay in the cache; scores are never written out whole. A few queries take
// it one by one, until their share of a vector's lanes makes side by side faster: later where
// items must be widened for that.
inline std::int64_t few_queries(const CompactItems& from) {
  return kernels().lanes / (from.empty() ? 4 : 2);
}
constexpr std::int64_t kQueriesPerBlock = 256;
constexpr std::int64_t kItemsPerTile = 256;
constexpr std::int64_t kItemsPerTask = 16 * kItemsPerTile;
constexpr std::int64_t kItemsPerBatchTask = 1024;  // they take longer: threads share more evenly
constexpr std::int64_t kRankedPerThread = 8;       // queries: fewer are not worth a thread

// Packed dot products differ in the last bits from those of one query, and those of compact items
// by their rounding. More candidates than wanted are kept and ranked as one query ranks the factors
// themselves, so that every way to the answer ends at the same. If it is not sure that nothing left
// out belongs there (see rank_alone), the query is asked again of the factors themselves. The
// spare candidates make that rare. Of Gaussian and of real factors, k = 100 needed at most one of
// them in half precision and 5 in bytes, k = 1000 at most 3 and 108.
inline std::int64_t with_spare(std::int64_t k, const CompactItems& from) {
  return from.bytes.data == nullptr ? k + 32 : k + k / 4 + 32;
}

// Borrows its arrays, may be used from several threads.
class ItemScan {
 public:
  ItemScan(MatrixView<const float> items, VectorView<const float> offsets,
           const CompactItems& compact)
      : items_(items), compact_(compact), coarse_(items), candidates_(items, offsets, compact) {}

  // Searcher::top_items. `excluded`: for each query the ids that it must not return, sorted.
  void run(MatrixView<const float> queries, const std::vector<std::vector<std::int32_t>>& excluded,
           Ranking ranking, int num_threads, MatrixView<std::int32_t> ids_out,
           MatrixView<float> approx_out) const {
    for (std::int64_t q = 0; q < queries.rows; q += kQueriesPerBlock)
      answer({queries, q, std::min(kQueriesPerBlock, queries.rows - q), excluded, ranking},
             num_threads, ids_out, approx_out);
  }

 private:
  // What a thread needs to score panels: a tile of items, room for the scores of a few of them, and
  // the bars of each answer's queries, side by side. None beats the bar of a lane without a query.
  struct PanelRoom {
    PanelRoom(PanelTile items, const Panels& panels, std::int64_t n_answers)
        : tile(std::move(items)),
          scores(static_cast<std::size_t>(2 * kernels().lanes * kItemsAtOnce)),
          bars(static_cast<std::size_t>(n_answers * panels.n_lanes()), kInfinity) {
      for (std::int64_t a = 0; a < n_answers; ++a)
        for (const Panel& panel : panels)
          std::fill_n(bars.begin() + a * panels.n_lanes() + panel.first, panel.n_queries,
                      -kInfinity);
    }

    PanelTile tile;
    std::vector<float> scores;
    std::vector<float> bars;
  };

  void answer(const QueryBlock& block, int num_threads, MatrixView<std::int32_t> ids_out,
              MatrixView<float> approx_out) const {
    std::vector<BoundedTopK> best = coarse_.run(block, candidates_, ids_out.cols, num_threads);
    if (best.empty()) {
      answer_by_all(block, num_threads, ids_out, approx_out);
      return;
    }
    const std::int64_t n_answers = answers_of(block.ranking);
    for (std::int64_t q = 0; q < block.n_queries; ++q) {
      const std::int64_t row = block.first + q;
      bool gave_up = false;
      for (std::int64_t a = 0; a < n_answers; ++a)
        gave_up |= best[static_cast<std::size_t>(a * block.n_queries + q)].gave_up();
      if (gave_up)
        answer_by_all({block.queries, row, 1, block.excluded, block.ranking}, num_threads, ids_out,
                      approx_out);
      for (std::int64_t a = 0; a < n_answers && !gave_up; ++a)
        write(best[static_cast<std::size_t>(a * block.n_queries + q)].finish(),
              ids_out.row_view(n_answers * row + a), approx_out.row_view(n_answers * row + a));
    }
  }

  // Without coarse items.
  void answer_by_all(const QueryBlock& block, int num_threads, MatrixView<std::int32_t> ids_out,
                     MatrixView<float> approx_out) const {
    const std::int64_t k = ids_out.cols, n_answers = answers_of(block.ranking);
    const bool alone = compact_.empty() && block.n_queries <= few_queries(compact_);
    const std::int64_t n_kept = alone ? k : with_spare(k, compact_);
    std::vector<TopK> best = scan(block, compact_, n_kept, num_threads);
    std::vector<std::uint8_t> unsure(best.size());  // not bool: threads would share its bytes
    const std::int64_t n_found = n_answers * block.n_queries;
    const auto n_threads = static_cast<int>(
        std::min<std::int64_t>(num_threads, (n_found + kRankedPerThread - 1) / kRankedPerThread));
    parallel_for(n_found, n_threads, [&](std::int64_t e, int) {
      const std::int64_t q = e % block.n_queries, row = block.first + q, a = e / block.n_queries;
      std::vector<Candidate> found = best[static_cast<std::size_t>(e)].finish();
      unsure[static_cast<std::size_t>(e)] =
          !alone && !candidates_.rank_alone(block.queries.row(row), k, n_kept,
                                            counts_offsets(block.ranking, a), found);
      const std::int64_t out = n_answers * row + a;
      write(found, ids_out.row_view(out), approx_out.row_view(out));
    });
    for (std::int64_t e = 0; e < n_found; ++e) {
      if (unsure[static_cast<std::size_t>(e)] == 0) continue;
      const std::int64_t row = block.first + e % block.n_queries, a = e / block.n_queries;
      const Ranking ranking =
          counts_offsets(block.ranking, a) ? Ranking::with_offsets : Ranking::without_offsets;
      const QueryBlock again{block.queries, row, 1, block.excluded, ranking};
      const std::int64_t out = n_answers * row + a;
      write(scan(again, {}, k, num_threads)[0].finish(), ids_out.row_view(out),
            approx_out.row_view(out));
    }
  }

  // For the block's first answers, then for its second ones if it wants both rankings.
  std::vector<TopK> scan(const QueryBlock& block, const CompactItems& from, std::int64_t n_kept,
                         int num_threads) const {
    const bool few = block.n_queries <= few_queries(from);
    const Panels panels(kernels().lanes, block.queries, block.first, few ? 0 : block.n_queries,
                        from.bytes.data != nullptr);
    const std::int64_t per_tile =
        few ? kItemsPerTile : PanelTile::size(items_, from, panels.size());
    const std::int64_t n_items = few ? kItemsPerTask : kItemsPerBatchTask;
    const std::int64_t per_task = std::max<std::int64_t>(1, n_items / per_tile) * per_tile;
    const std::int64_t n_tasks = (items_.rows + per_task - 1) / per_task;
    const std::size_t n_threads = static_cast<std::size_t>(
        std::max<std::int64_t>(1, std::min<std::int64_t>(num_threads, n_tasks)));
    const auto n_answers = static_cast<std::size_t>(answers_of(block.ranking) * block.n_queries);
    std::vector<std::vector<TopK>> best(n_threads, std::vector<TopK>(n_answers, TopK(n_kept)));
    std::vector<std::vector<float>> scores(few ? n_threads : 0, std::vector<float>(kItemsPerTile));
    std::vector<PanelRoom> rooms(
        few ? 0 : n_threads,
        PanelRoom(PanelTile(items_, from, panels.size()), panels, answers_of(block.ranking)));
    const FewQueries alone({block.queries.row(block.first), few ? block.n_queries : 0, items_.cols},
                           items_, from);
    parallel_for(n_tasks, static_cast<int>(n_threads), [&](std::int64_t task, int thread) {
      std::vector<TopK>& mine = best[static_cast<std::size_t>(thread)];
      const std::int64_t begin = task * per_task, end = std::min(items_.rows, begin + per_task);
      if (few) {
        scan_few(block, alone, begin, end, scores[static_cast<std::size_t>(thread)].data(), mine);
      } else {
        scan_panels(panels, block, begin, end, per_tile, rooms[static_cast<std::size_t>(thread)],
                    mine);
      }
    });
    for (std::size_t e = 0; e < n_answers; ++e)
      for (std::size_t thread = 1; thread < n_threads; ++thread) best[0][e].merge(best[thread][e]);
    return std::move(best[0]);
  }

  void scan_few(const QueryBlock& block, const FewQueries& queries, std::int64_t begin,
                std::int64_t end, float* scores, std::vector<TopK>& best) const {
    std::int32_t positions[kItemsPerTile];
    for (std::int64_t i = begin; i < end; i += kItemsPerTile) {
      const std::int64_t n = std::min(kItemsPerTile, end - i);
      for (std::int64_t q = 0; q < block.n_queries; ++q) {
        queries.score(q, i, n, scores);
        for (std::int64_t a = 0; a < answers_of(block.ranking); ++a) {
          const bool counted = counts_offsets(block.ranking, a);
          TopK& mine = best[static_cast<std::size_t>(a * block.n_queries + q)];
          const std::int64_t n_above = kernels().above_bar(
              scores, candidates_.offsets_from(i, counted), n, mine.bar(), positions);
          for (std::int64_t at = 0; at < n_above; ++at) {
            const std::int64_t p = positions[at];
            mine.offer({scores[p] + candidates_.offset_of(i + p, counted),
                        static_cast<std::int32_t>(i + p)},
                       block.mask(q));
          }
        }
      }
    }
  }

  void scan_panels(const Panels& panels, const QueryBlock& block, std::int64_t begin,
                   std::int64_t end, std::int64_t per_tile, PanelRoom& room,
                   std::vector<TopK>& best) const {
    for (std::int64_t t = begin; t < end; t += per_tile) {
      const std::int64_t tile_end = std::min(end, t + per_tile);
      room.tile.load(t, tile_end);
      for (const Panel& panel : panels) {
        for (std::int64_t i = t; i < tile_end; i += kItemsAtOnce) {
          const std::int64_t n = std::min(kItemsAtOnce, tile_end - i);
          room.tile.dots(panel, i, n, room.scores.data());
          for (std::int64_t a = 0; a < answers_of(block.ranking); ++a)
            offer_panel(panel, block, counts_offsets(block.ranking, a), i, n, room.scores.data(),
                        room.bars.data() + a * panels.n_lanes() + panel.first,
                        best.data() + a * block.n_queries + panel.first);
        }
      }
    }
  }

  // The panel's dot products with n items from i on; `bars` are those of `best`.
  void offer_panel(const Panel& panel, const QueryBlock& block, bool counted, std::int64_t i,
                   std::int64_t n, const float* scores, float* bars, TopK* best) const {
    std::int32_t positions[kItemsAtOnce * 2 * kMaxLanes];
    const auto width = static_cast<unsigned>(panel.n_vectors * kernels().lanes);
    const int shift = __builtin_ctz(width);  // a power of two
    const std::int64_t n_above = kernels().above_bars(scores, candidates_.offsets_from(i, counted),
                                                      n, bars, panel.n_vectors, positions);
    for (std::int64_t at = 0; at < n_above; ++at) {
      const std::int32_t position = positions[at];
      const std::int64_t item = i + (position >> shift), q = position & (width - 1);
      best[q].offer({scores[position] + candidates_.offset_of(item, counted),
                     static_cast<std::int32_t>(item)},
                    block.mask(panel.first + q));
      bars[q] = best[q].bar();
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
  CompactItems compact_;
  CoarseScan coarse_;
  Candidates candidates_;
};

}  // namespace cexnn::cpu
