#include <algorithm>

#include "../pack_checks.hpp"

namespace cexnn::cpu {
namespace {

using Tokens = VectorView<const std::int32_t>;

// Writes one output row from left to right.
struct RowWriter {
  std::int64_t* ids;
  std::int64_t* types;
  std::int64_t at = 0;

  void append(const Tokens& tokens, std::int32_t type) {
    std::copy(tokens.begin(), tokens.end(), ids + at);
    std::fill_n(types + at, tokens.size, type);
    at += tokens.size;
  }
  void append(const Tokens& tokens, const std::int32_t* token_types) {
    std::copy(tokens.begin(), tokens.end(), ids + at);
    std::copy_n(token_types, tokens.size, types + at);
    at += tokens.size;
  }
  void pad(std::int64_t width, std::int32_t id, std::int32_t type) {
    std::fill(ids + at, ids + width, id);
    std::fill(types + at, types + width, type);
  }
};

}  // namespace

void pack_pairs(const TokenLists& queries, const TokenLists& items,
                VectorView<const std::int32_t> rows, VectorView<const std::int32_t> item_ids,
                const PairFormat& format, std::int64_t max_length,
                MatrixView<std::int64_t> input_ids, MatrixView<std::int64_t> attention_mask,
                MatrixView<std::int64_t> token_type_ids) {
  check_shapes(queries, items, rows, item_ids, format, input_ids, attention_mask, token_type_ids);
  check_ends(queries, "queries");
  check_ends(items, "items");
  check_ends(format.constants, "constants");
  const std::int64_t width = input_ids.cols;
  const Tokens prefix = checked_list(format.constants, 0, "constants");
  const Tokens middle = checked_list(format.constants, 1, "constants");
  const Tokens suffix = checked_list(format.constants, 2, "constants");
  const std::int32_t* types = format.types.data;

  for (std::int64_t j = 0; j < input_ids.rows; ++j) {
    const std::int64_t pair = std::min(j, rows.size - 1);
    const Tokens query = checked_list(queries, rows[pair], "rows");
    Tokens item = checked_list(items, item_ids[pair], "item_ids");
    const std::int64_t fixed = format.constants.ids.size + query.size;
    check_length(fixed, max_length, rows[pair]);
    item.size = std::min(item.size, max_length - fixed);
    check_width(fixed + item.size, width, pair);
    RowWriter row{input_ids.row(j), token_type_ids.row(j)};
    row.append(prefix, types);
    row.append(query, format.query_type);
    row.append(middle, types + prefix.size);
    row.append(item, format.item_type);
    row.append(suffix, types + prefix.size + middle.size);
    std::fill_n(attention_mask.row(j), row.at, 1);
    std::fill(attention_mask.row(j) + row.at, attention_mask.row(j) + width, 0);
    row.pad(width, format.pad_id, format.pad_type);
  }
}

}  // namespace cexnn::cpu
