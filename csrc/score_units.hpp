// Scores in the units that a query's model takes them in. On the host: few, and soon told.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace cexnn::cpu {

// Each row of a CSR matrix to mean 0 and deviation 1; its deviation counts as 1 where it is 0.
// scores and out: as many as indptr ends with. In double precision.
void standardise(VectorView<const std::int64_t> indptr, VectorView<const float> scores,
                 VectorView<float> out);

// The same of asinh((y - median) / s) for each y of a row: median is the upper one, and
// s = 1.4826 median |y - median|; where that is 0, the root mean square of y - median, or 1.
void draw_in(VectorView<const std::int64_t> indptr, VectorView<const float> scores,
             VectorView<float> out);

// A line between the points that strictly increasing knots and values make, two at least, with
// slopes s. Above the last knot  values + log(1 + s (y - knots))  of the last, below the first
// values - log(1 + s (knots - y))  of the first.
void bend(VectorView<const double> knots, VectorView<const double> values,
          VectorView<const double> scores, VectorView<float> out);

}  // namespace cexnn::cpu
