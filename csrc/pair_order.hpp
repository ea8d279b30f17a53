// How pairs that lie on the CUDA device become batches there, and the batches' logits their scores.
// On the host NumPy does.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace cexnn::cuda {

// What decides how many tokens a pair has: list i of the queries and of the items has
// offsets[i + 1] - offsets[i]. `cut_queries`, not 0 where a query was cut, is the host's; the
// others lie on the device, or are copied there.
struct PairSizes {
  VectorView<const std::int64_t> query_offsets;  // (n_queries + 1,)
  VectorView<const std::int64_t> item_offsets;   // (n_items + 1,)
  VectorView<const std::uint8_t> cut_queries;    // (n_queries,)
  std::int64_t n_constants = 0;                  // of a pair beside the two
};

// Pairs in the order in which they are scored, (p,) each, on the device.
struct OrderedPairs {
  VectorView<std::int32_t> rows;
  VectorView<std::int32_t> item_ids;
  VectorView<std::int32_t> places;  // of each among the pairs as they were given
  VectorView<float> scores;         // as they were given: room, filled with NaN
};

// Puts pairs (query rows[j], item item_ids[j]) in the order of their tokens, the longest first;
// more than `most` count as most + 1. Of as many, those with a cut query come first, then those
// that were given first. counts (most + 2, 2), the host's: how many pairs have so many tokens, and
// a query that is whole (column 0) or cut (column 1). Throws std::invalid_argument: sizes that
// disagree, a row or an item out of range.
void order_pairs(const PairSizes& sizes, VectorView<const std::int32_t> rows,
                 VectorView<const std::int32_t> item_ids, std::int64_t most,
                 const OrderedPairs& out, MatrixView<std::int32_t> counts);

// scores[places[j]] = logits[j] for each of the places, no more than logits; all on the device.
// Throws std::invalid_argument: fewer logits than places, a place out of range.
void place_logits(VectorView<const float> logits, VectorView<const std::int32_t> places,
                  VectorView<float> scores);
// The same for halves, by their bits.
void place_logits(VectorView<const std::uint16_t> logits, VectorView<const std::int32_t> places,
                  VectorView<float> scores);

}  // namespace cexnn::cuda
