// What a search on the host does with the items it asks for and the scores that it was told.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace cexnn::cpu {

// Items and their scores, a row a query, in the order of scoring: the first counts[q] places of row
// q are known. No item twice in a row. What takes one throws std::invalid_argument where its shapes
// do not agree, or it counts more than there are places.
struct KnownScores {
  MatrixView<const std::int32_t> ids;
  MatrixView<const float> scores;
  VectorView<const std::int64_t> counts;
};

// The first different ids of each row, -1 left out; -1 where there are fewer.
void first_distinct(MatrixView<const std::int32_t> ids, MatrixView<std::int32_t> out);

// How many ids there are: -1 is none.
std::int64_t count_ids(MatrixView<const std::int32_t> ids);

// The ids of row after row, and the number that each one's row has; as many as there are ids.
void list_pairs(MatrixView<const std::int32_t> ids, VectorView<const std::int64_t> numbers,
                VectorView<std::int32_t> rows_out, VectorView<std::int32_t> items_out);

// Writes items and scores to the rows of ids_out and scores_out, where `known` stands, behind what
// is known. counts_out: the counts that make them known. Throws std::invalid_argument where there
// is no such row, or no place left in it.
void append(const KnownScores& known, VectorView<const std::int32_t> rows,
            VectorView<const std::int32_t> items, VectorView<const float> scores,
            MatrixView<std::int32_t> ids_out, MatrixView<float> scores_out,
            VectorView<std::int64_t> counts_out);

// Where each of the rows begins in a CSR matrix of them, (rows + 1,). Throws std::invalid_argument
// where there is no such row.
void start_rows(const KnownScores& known, VectorView<const std::int64_t> rows,
                VectorView<std::int64_t> indptr_out);

// The same of all rows: (n_queries + 1,).
void start_rows(const KnownScores& known, VectorView<std::int64_t> indptr_out);

// What is known of the rows, one after another: ids and scores of that matrix.
void list_rows(const KnownScores& known, VectorView<const std::int64_t> rows,
               VectorView<std::int32_t> ids_out, VectorView<float> scores_out);

// The same of all rows, each in the order of its ids.
void list_by_id(const KnownScores& known, VectorView<std::int32_t> ids_out,
                VectorView<float> scores_out);

// The best of each row, largest score first, the smaller id first among equals; -1 and NaN where
// fewer are known. ids_out and scores_out: (n_queries, k).
void best(const KnownScores& known, MatrixView<std::int32_t> ids_out, MatrixView<float> scores_out);

// Whether none is larger than `most`, or smaller than its negative, or no number.
bool all_within(VectorView<const float> values, float most);

}  // namespace cexnn::cpu
