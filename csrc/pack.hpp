// Token ids of query-item pairs, packed into the padded inputs of a cross-encoder.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace cexnn {

// Lists of token ids one after another: list i is ids[offsets[i]] to ids[offsets[i + 1] - 1].
struct TokenLists {
  VectorView<const std::int64_t> offsets;  // (n + 1,)
  VectorView<const std::int32_t> ids;      // (offsets[n],)

  std::int64_t count() const { return offsets.size - 1; }
  VectorView<const std::int32_t> operator[](std::int64_t i) const {
    return {ids.data + offsets[i], offsets[i + 1] - offsets[i]};
  }
};

// What stands around a query and an item: prefix, query, middle, item, suffix, padding.
struct PairFormat {
  TokenLists constants;                  // three lists: prefix, middle, suffix
  VectorView<const std::int32_t> types;  // type id of each token in `constants`
  std::int32_t query_type = 0;
  std::int32_t item_type = 0;
  std::int32_t pad_id = 0;
  std::int32_t pad_type = 0;
};

namespace cpu {

// Row j of the outputs is the pair (queries[rows[j]], items[item_ids[j]]) laid out by `format`,
// the end of its item cut off so that the row has at most `max_length` tokens, then padding.
// input_ids, attention_mask (1 at tokens, 0 at padding) and token_type_ids: (n, width), all
// overwritten; where n is more than the pairs, the last of them fills the rows that are left.
// Borrows its arguments and keeps nothing.
// Throws std::invalid_argument, the outputs then being unspecified: shapes that disagree, offsets
// that do not ascend from 0 to the number of ids, a row or item out of range, a query that leaves
// no place within max_length, a pair longer than width.
void pack_pairs(const TokenLists& queries, const TokenLists& items,
                VectorView<const std::int32_t> rows, VectorView<const std::int32_t> item_ids,
                const PairFormat& format, std::int64_t max_length,
                MatrixView<std::int64_t> input_ids, MatrixView<std::int64_t> attention_mask,
                MatrixView<std::int64_t> token_type_ids);

}  // namespace cpu

// The same on the CUDA device.
namespace cuda {
void pack_pairs(const TokenLists& queries, const TokenLists& items,
                VectorView<const std::int32_t> rows, VectorView<const std::int32_t> item_ids,
                const PairFormat& format, std::int64_t max_length,
                MatrixView<std::int64_t> input_ids, MatrixView<std::int64_t> attention_mask,
                MatrixView<std::int64_t> token_type_ids);
}  // namespace cuda

}  // namespace cexnn
