// Ridge rows and alternating least squares over a sparse score matrix.
#pragma once

#include <cstdint>
#include <memory>

#include "views.hpp"

namespace cexnn {

// Every row's factors given the columns':
//
//   x_r = argmin_x  sum_{c stored in row r} (y_rc - x . f_c)^2 + lambda |x - x0_r|^2
//
// with A the rows of `factors` that row r has scores for, in whichever form costs less:
//
//   primal (n >= d):  x = x0 + (A^T A + lambda I)^-1 A^T (y - A x0)
//   dual   (n <  d):  x = x0 + A^T (A A^T + lambda I)^-1 (y - A x0)
//
// lambda is at least 1e-6 times the largest squared row norm of A. Single precision; a row whose
// Cholesky factorisation breaks down there is solved again in double precision. A row without
// scores gets its prior. `prior` (rows, d) may be null: zero. Rows may come in any order of
// columns. Results do not depend on num_threads. Where condition numbers are about ten, x is within
// 2e-6 max(|x|, |x0|) of the exact solution, on every device.
//
// With cg_steps > 0, a row of more than 8 (cg_steps + 1) scores, with more factors than that, gets
// as many steps of conjugate gradients on  (A^T A + lambda I) x = A^T y + lambda x0  instead, from
// what `out` holds: the objective falls, to no more than that many steps reach. Where that is not
// finite the row is solved exactly.
//
// Throws std::invalid_argument for disagreeing shapes or a column id out of range.
struct RidgeProblem {
  CsrView scores;                   // (rows, cols)
  MatrixView<const float> factors;  // (cols, d)
  MatrixView<const float> prior;    // (rows, d) or data == nullptr
  double regularization = 0.0;      // lambda
  int cg_steps = 0;                 // 0: exactly
};

// Alternating least squares on  sum (y - u.v)^2 + lambda_u sum |u - u0|^2 + lambda_v sum |v - v0|^2
// over the stored entries. Borrows the arrays it was made from; owns their transpose.
class AlsSolver {
 public:
  virtual ~AlsSolver() = default;

  // Whether step and objective take factors in the host's memory alone: on the CPU, and on the CUDA
  // device where both sides of so many factors do not fit beside the scores. What it says stays.
  virtual bool in_host_memory(std::int64_t n_factors) const = 0;

  // One iteration, in place: all rows given the columns, then all columns given the new rows. With
  // conjugate gradients row_factors, too, must be finite: where they start.
  virtual void step(MatrixView<float> row_factors, MatrixView<float> col_factors) const = 0;

  // The objective above, accumulated in double precision.
  virtual double objective(MatrixView<const float> row_factors,
                           MatrixView<const float> col_factors) const = 0;
};

struct AlsProblem {
  CsrView scores;                     // (rows, cols)
  MatrixView<const float> row_prior;  // (rows, d) or data == nullptr: zero
  MatrixView<const float> col_prior;  // (cols, d) or data == nullptr: zero
  double row_regularization = 0.0;
  double col_regularization = 0.0;
  int cg_steps = 0;  // 0: rows are solved exactly
};

namespace cpu {
void ridge(const RidgeProblem& problem, int num_threads, MatrixView<float> out);
std::unique_ptr<AlsSolver> make_als_solver(const AlsProblem& problem, int num_threads);
}  // namespace cpu

// The same on the CUDA device. Arrays lie in the host's memory or, `scores.indptr` apart, on the
// device; those on the device are used where they are. What of an AlsSolver does not fit there is
// streamed: each row gets the same, but that one whose scores' factors do not fit alone, more of
// them than factors, is solved exactly in any case.
namespace cuda {
void ridge(const RidgeProblem& problem, MatrixView<float> out);
std::unique_ptr<AlsSolver> make_als_solver(const AlsProblem& problem);
}  // namespace cuda

}  // namespace cexnn
