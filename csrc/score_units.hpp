// Scores in the units that a query's model takes them in.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace cexnn {

// A line between the points that strictly increasing knots and values make, two at least. Beyond
// them it goes on with the slopes s that it has there: straight,
//   values + s (y - knots)             of the first or the last,
// or ever more slowly,
//   values + log(1 + s (y - knots))    of the last above it,
//   values - log(1 + s (knots - y))    of the first below it.
struct ScoreMap {
  VectorView<const double> knots, values;
  bool straight = false;
};

}  // namespace cexnn

namespace cexnn::cpu {

// Each row of a CSR matrix to mean 0 and deviation 1; its deviation counts as 1 where it is 0.
// scores and out: as many as indptr ends with. In double precision.
void standardise(VectorView<const std::int64_t> indptr, VectorView<const float> scores,
                 VectorView<float> out);

// The same of asinh((y - median) / s) for each y of a row: median is the upper one, and
// s = 1.4826 median |y - median|; where that is 0, the root mean square of y - median, or 1.
void draw_in(VectorView<const std::int64_t> indptr, VectorView<const float> scores,
             VectorView<float> out);

// Maps each score, in double precision. Throws std::invalid_argument where `map` is none.
void bend(const ScoreMap& map, VectorView<const double> scores, VectorView<float> out);

}  // namespace cexnn::cpu

namespace cexnn::cuda {

// The same of the rows of a matrix, on the device, where all arrays lie, the map's, too; done when
// they return. A row's sums run in an order of their own that depends on its length alone.
void standardise(MatrixView<const float> scores, MatrixView<float> out);
void draw_in(MatrixView<const float> scores, MatrixView<float> out);
void bend(const ScoreMap& map, MatrixView<const float> scores, MatrixView<float> out);

}  // namespace cexnn::cuda
