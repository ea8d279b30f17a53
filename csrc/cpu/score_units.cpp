#include "../score_units.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

namespace cexnn::cpu {
namespace {

constexpr double kNormalDeviation = 1.4826;  // over the median distance from the median

double root_mean_square(const std::vector<double>& row) {
  double squares = 0.0;
  for (const double y : row) squares += y * y;
  const double size = std::sqrt(squares / static_cast<double>(row.size()));
  return size > 0.0 ? size : 1.0;
}

void subtract(double y, std::vector<double>& row) {
  for (double& mine : row) mine -= y;
}

// The upper one; what stood in `row` stands in another order then.
double median(std::vector<double>& row) {
  const auto middle = row.begin() + static_cast<std::ptrdiff_t>(row.size() / 2);
  std::nth_element(row.begin(), middle, row.end());
  return *middle;
}

void write_standardised(std::vector<double>& row, float* out) {
  double total = 0.0;
  for (const double y : row) total += y;
  subtract(total / static_cast<double>(row.size()), row);
  const double size = root_mean_square(row);
  for (std::size_t j = 0; j < row.size(); ++j) out[j] = static_cast<float>(row[j] / size);
}

// work(row, out) for each row that is not empty.
template <typename Work>
void for_each_row(VectorView<const std::int64_t> indptr, VectorView<const float> scores,
                  VectorView<float> out, const Work& work) {
  std::vector<double> row;
  for (std::int64_t r = 0; r + 1 < indptr.size; ++r) {
    row.assign(scores.data + indptr[r], scores.data + indptr[r + 1]);
    if (!row.empty()) work(row, out.data + indptr[r]);
  }
}

}  // namespace

void standardise(VectorView<const std::int64_t> indptr, VectorView<const float> scores,
                 VectorView<float> out) {
  for_each_row(indptr, scores, out, write_standardised);
}

void draw_in(VectorView<const std::int64_t> indptr, VectorView<const float> scores,
             VectorView<float> out) {
  std::vector<double> ordered;
  for_each_row(indptr, scores, out, [&](std::vector<double>& row, float* row_out) {
    ordered = row;
    subtract(median(ordered), row);
    std::transform(row.begin(), row.end(), ordered.begin(), [](double y) { return std::abs(y); });
    double size = kNormalDeviation * median(ordered);
    if (size == 0.0) size = root_mean_square(row);
    for (double& y : row) y = std::asinh(y / size);
    write_standardised(row, row_out);
  });
}

void bend(const ScoreMap& map, VectorView<const double> scores, VectorView<float> out) {
  const VectorView<const double> knots = map.knots, values = map.values;
  const std::int64_t last = knots.size - 1;
  if (last < 1 || values.size != knots.size)
    throw std::invalid_argument("knots: expected two at least, and as many values");
  const auto slope = [&](std::int64_t j) {
    return (values[j + 1] - values[j]) / (knots[j + 1] - knots[j]);
  };
  const auto beyond = [&](double rise) { return map.straight ? rise : std::log1p(rise); };
  for (std::int64_t i = 0; i < scores.size; ++i) {
    const double y = scores[i];
    double mapped;
    if (y < knots[0]) {
      mapped = values[0] - beyond(slope(0) * (knots[0] - y));
    } else if (!(y < knots[last])) {  // no number is among them
      mapped = values[last] + beyond(slope(last - 1) * (y - knots[last]));
    } else {
      const std::int64_t j = std::upper_bound(knots.begin(), knots.end(), y) - knots.begin() - 1;
      mapped = values[j] + slope(j) * (y - knots[j]);
    }
    out[i] = static_cast<float>(mapped);
  }
}

}  // namespace cexnn::cpu
