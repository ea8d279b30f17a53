// What ridge and AlsSolver ask of their arguments' shapes, whatever the device.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "als.hpp"

namespace cexnn {

inline void check_shapes(const RidgeProblem& problem, MatrixView<float> out) {
  const CsrView& scores = problem.scores;
  if (problem.factors.rows != scores.cols)
    throw std::invalid_argument("factors: expected one row for each column of scores");
  const bool has_prior = problem.prior.data != nullptr;
  if (has_prior && (problem.prior.rows != scores.rows || problem.prior.cols != out.cols))
    throw std::invalid_argument("prior: expected one row of factors for each row of scores");
  if (out.rows != scores.rows || out.cols != problem.factors.cols)
    throw std::invalid_argument("out: expected one row of factors for each row of scores");
}

inline void check_shapes(const AlsProblem& problem, MatrixView<const float> row_factors,
                         MatrixView<const float> col_factors) {
  const CsrView& scores = problem.scores;
  if (row_factors.rows != scores.rows || col_factors.rows != scores.cols ||
      row_factors.cols != col_factors.cols)
    throw std::invalid_argument("factors: expected one row for each row and column of scores");
  const auto check_prior = [](MatrixView<const float> prior, MatrixView<const float> factors) {
    if (prior.data != nullptr && (prior.rows != factors.rows || prior.cols != factors.cols))
      throw std::invalid_argument("prior: expected the shape of the factors");
  };
  check_prior(problem.row_prior, row_factors);
  check_prior(problem.col_prior, col_factors);
}

constexpr const char* kIdOutOfRange = "scores: column id out of range";

// The matrix, in the host's memory; throws where its column ids are out of range.
inline const CsrView& checked_ids(const CsrView& scores) {
  for (std::int64_t e = scores.indptr[0]; e < scores.indptr[scores.rows]; ++e)
    if (scores.indices[e] < 0 || scores.indices[e] >= scores.cols)
      throw std::invalid_argument(kIdOutOfRange);
  return scores;
}

// Regularisation is at least this times the largest squared row norm: repeated or collinear items
// stay solvable.
constexpr double kRidgeFloor = 1e-6;

// Rows of at most so many equations, min(scores, factors), for each pass that conjugate gradients
// make over the scores, one more than they have steps, are solved exactly, which takes no longer.
constexpr std::int64_t kExactEquationsAPass = 8;

inline bool by_conjugate_gradients(int cg_steps, std::int64_t n_scores, std::int64_t n_factors) {
  const std::int64_t n_equations = n_scores < n_factors ? n_scores : n_factors;
  return cg_steps > 0 && n_equations > kExactEquationsAPass * (cg_steps + std::int64_t(1));
}

// A pivot below this share of its diagonal element is noise.
template <typename Real>
constexpr Real kPivotFloor = sizeof(Real) == sizeof(float) ? Real(1e-4) : Real(1e-14);

constexpr const char* kNotSolvable =
    "the ridge system of a row is not solvable: factors not finite?";

}  // namespace cexnn
