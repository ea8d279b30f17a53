#include "../pack.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace cexnn::cpu {
namespace {

using Tokens = VectorView<const std::int32_t>;

// Only the ends: whoever reads list i checks that it lies within them.
void check_lists(const TokenLists& lists, const std::string& name) {
  if (lists.offsets.size < 1 || lists.offsets[0] != 0 ||
      lists.offsets[lists.offsets.size - 1] != lists.ids.size) {
    throw std::invalid_argument(name + ": expected offsets from 0 to the number of token ids (" +
                                std::to_string(lists.ids.size) + ")");
  }
}

Tokens list_at(const TokenLists& lists, std::int64_t i, const char* name) {
  if (i < 0 || i >= lists.count()) {
    throw std::invalid_argument(std::string(name) + ": expected a number from 0 to " +
                                std::to_string(lists.count() - 1) + ", got " + std::to_string(i));
  }
  const std::int64_t begin = lists.offsets[i];
  const std::int64_t end = lists.offsets[i + 1];
  if (begin < 0 || end < begin || end > lists.ids.size) {
    throw std::invalid_argument(std::string(name) + ": offsets of list " + std::to_string(i) +
                                " do not ascend within the token ids");
  }
  return lists[i];
}

template <typename T>
void check_shape(const MatrixView<T>& out, std::int64_t rows, std::int64_t cols, const char* name) {
  if (out.rows != rows || out.cols != cols) {
    throw std::invalid_argument(std::string(name) + ": expected shape (" + std::to_string(rows) +
                                ", " + std::to_string(cols) + "), got (" +
                                std::to_string(out.rows) + ", " + std::to_string(out.cols) + ")");
  }
}

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
  check_lists(queries, "queries");
  check_lists(items, "items");
  check_lists(format.constants, "constants");
  if (format.constants.count() != 3 || format.types.size != format.constants.ids.size) {
    throw std::invalid_argument(
        "constants: expected prefix, middle and suffix, each token with a type");
  }
  if (item_ids.size != rows.size) {
    throw std::invalid_argument("item_ids: expected " + std::to_string(rows.size) +
                                " numbers as in rows, got " + std::to_string(item_ids.size));
  }
  const std::int64_t width = input_ids.cols;
  check_shape(input_ids, rows.size, width, "input_ids");
  check_shape(attention_mask, rows.size, width, "attention_mask");
  check_shape(token_type_ids, rows.size, width, "token_type_ids");
  const Tokens prefix = list_at(format.constants, 0, "constants");
  const Tokens middle = list_at(format.constants, 1, "constants");
  const Tokens suffix = list_at(format.constants, 2, "constants");
  const std::int32_t* types = format.types.data;

  for (std::int64_t j = 0; j < rows.size; ++j) {
    const Tokens query = list_at(queries, rows[j], "rows");
    Tokens item = list_at(items, item_ids[j], "item_ids");
    const std::int64_t fixed = format.constants.ids.size + query.size;
    if (fixed > max_length) {
      throw std::invalid_argument("max_length: query " + std::to_string(rows[j]) + " needs " +
                                  std::to_string(fixed) + " tokens without an item, got " +
                                  std::to_string(max_length));
    }
    item.size = std::min(item.size, max_length - fixed);
    if (fixed + item.size > width) {
      throw std::invalid_argument("input_ids: pair " + std::to_string(j) + " has " +
                                  std::to_string(fixed + item.size) + " tokens, got room for " +
                                  std::to_string(width));
    }
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
