// What a search on the CUDA device does with scores that it was told there; see known_scores.hpp.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace cexnn::cuda {

// Items and their scores, one row a query. Arrays lie on the device.
struct ScoredItems {
  MatrixView<const std::int32_t> ids;
  MatrixView<const float> scores;
};

// To each row of `known` (n, a) appends that of `told` (n, b): ids_out and scores_out (n, a + b),
// on the device, too. Throws std::invalid_argument where shapes do not agree.
void append(const ScoredItems& known, const ScoredItems& told, MatrixView<std::int32_t> ids_out,
            MatrixView<float> scores_out);

}  // namespace cexnn::cuda
