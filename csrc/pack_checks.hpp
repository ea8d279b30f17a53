// What pack_pairs asks of its arguments, and says where one is wrong, on every device.
#pragma once

#include <stdexcept>
#include <string>

#include "pack.hpp"

namespace cexnn {

// Only the ends: whoever reads list i checks that it lies within them.
inline void check_ends(std::int64_t first, std::int64_t last, std::int64_t n_ids,
                       const std::string& name) {
  if (first != 0 || last != n_ids) {
    throw std::invalid_argument(name + ": expected offsets from 0 to the number of token ids (" +
                                std::to_string(n_ids) + ")");
  }
}

// For arrays in the host's memory.
inline void check_ends(const TokenLists& lists, const std::string& name) {
  check_ends(lists.offsets[0], lists.offsets[lists.offsets.size - 1], lists.ids.size, name);
}

inline void check_number(std::int64_t i, std::int64_t count, const std::string& name) {
  if (i < 0 || i >= count) {
    throw std::invalid_argument(name + ": expected a number from 0 to " +
                                std::to_string(count - 1) + ", got " + std::to_string(i));
  }
}

inline void check_span(std::int64_t begin, std::int64_t end, std::int64_t n_ids, std::int64_t i,
                       const std::string& name) {
  if (begin < 0 || end < begin || end > n_ids) {
    throw std::invalid_argument(name + ": offsets of list " + std::to_string(i) +
                                " do not ascend within the token ids");
  }
}

// n_fixed: tokens of the query and of what stands around it and its item.
inline void check_length(std::int64_t n_fixed, std::int64_t max_length, std::int64_t query) {
  if (n_fixed > max_length) {
    throw std::invalid_argument("max_length: query " + std::to_string(query) + " needs " +
                                std::to_string(n_fixed) + " tokens without an item, got " +
                                std::to_string(max_length));
  }
}

inline void check_width(std::int64_t n_tokens, std::int64_t width, std::int64_t pair) {
  if (n_tokens > width) {
    throw std::invalid_argument("input_ids: pair " + std::to_string(pair) + " has " +
                                std::to_string(n_tokens) + " tokens, got room for " +
                                std::to_string(width));
  }
}

// The sizes that need no look into an array.
inline void check_shapes(const TokenLists& queries, const TokenLists& items,
                         VectorView<const std::int32_t> rows,
                         VectorView<const std::int32_t> item_ids, const PairFormat& format,
                         MatrixView<std::int64_t> input_ids,
                         MatrixView<std::int64_t> attention_mask,
                         MatrixView<std::int64_t> token_type_ids) {
  // No offsets at all: ends that cannot be right.
  if (queries.offsets.size < 1) check_ends(-1, -1, queries.ids.size, "queries");
  if (items.offsets.size < 1) check_ends(-1, -1, items.ids.size, "items");
  if (format.constants.offsets.size < 1) check_ends(-1, -1, format.constants.ids.size, "constants");
  if (format.constants.count() != 3 || format.types.size != format.constants.ids.size) {
    throw std::invalid_argument(
        "constants: expected prefix, middle and suffix, each token with a type");
  }
  if (item_ids.size != rows.size) {
    throw std::invalid_argument("item_ids: expected " + std::to_string(rows.size) +
                                " numbers as in rows, got " + std::to_string(item_ids.size));
  }
  if (input_ids.rows < rows.size || (rows.empty() && input_ids.rows > 0))
    throw std::invalid_argument(
        "input_ids: expected a row for each of " + std::to_string(rows.size) +
        " pairs, and more only if there is one, got " + std::to_string(input_ids.rows));
  const auto check_output = [&](MatrixView<std::int64_t> out, const std::string& name) {
    if (out.rows == input_ids.rows && out.cols == input_ids.cols) return;
    throw std::invalid_argument(name + ": expected shape (" + std::to_string(input_ids.rows) +
                                ", " + std::to_string(input_ids.cols) + "), got (" +
                                std::to_string(out.rows) + ", " + std::to_string(out.cols) + ")");
  };
  check_output(attention_mask, "attention_mask");
  check_output(token_type_ids, "token_type_ids");
}

// List i, its number and its offsets checked; for arrays in the host's memory.
inline VectorView<const std::int32_t> checked_list(const TokenLists& lists, std::int64_t i,
                                                   const std::string& name) {
  check_number(i, lists.count(), name);
  check_span(lists.offsets[i], lists.offsets[i + 1], lists.ids.size, i, name);
  return lists[i];
}

}  // namespace cexnn
