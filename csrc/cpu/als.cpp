#include "../als.hpp"

#include <stdexcept>
#include <utility>
#include <vector>

#include "../als_checks.hpp"
#include "../squared_distance.hpp"
#include "../transposed.hpp"
#include "parallel.hpp"
#include "ridge.hpp"

namespace cexnn::cpu {
namespace {

// The rows: those with many scores, then those with fewer and fewer, so that rows with as many are
// solved together and the short ones fill up what is left of the threads' time.
std::vector<std::int64_t> by_size(const CsrView& scores) {
  constexpr std::int64_t kMost = RidgeSolver::kFewScores + 1;
  const auto place = [&](std::int64_t r) { return kMost - std::min(kMost, scores.row_size(r)); };
  std::int64_t next[kMost + 2] = {};
  for (std::int64_t r = 0; r < scores.rows; ++r) ++next[place(r) + 1];
  for (std::int64_t i = 0; i <= kMost; ++i) next[i + 1] += next[i];
  std::vector<std::int64_t> rows(static_cast<std::size_t>(scores.rows));
  for (std::int64_t r = 0; r < scores.rows; ++r) rows[next[place(r)]++] = r;
  return rows;
}

// Rows are handed out in runs: long enough to hide the hand-over and that nobody asked for the
// first ones before, short enough to share evenly. Where each begins, and where the last one ends.
std::vector<std::int64_t> runs(const CsrView& scores, const std::vector<std::int64_t>& rows) {
  constexpr std::int64_t kScoresPerRun = 1024;
  const auto n_rows = static_cast<std::int64_t>(rows.size());
  std::vector<std::int64_t> starts{0};
  for (std::int64_t i = 0, n_scores = 0; i < n_rows; ++i) {
    if (n_scores >= kScoresPerRun && (i - starts.back()) % kMaxLanes == 0) {
      starts.push_back(i);
      n_scores = 0;
    }
    n_scores += 1 + scores.row_size(rows[static_cast<std::size_t>(i)]);
  }
  starts.push_back(n_rows);
  return starts;
}

void solve_rows(const RidgeProblem& problem, int num_threads, MatrixView<float> out) {
  const Kernels& k = kernels();
  const std::vector<std::int64_t> rows = by_size(problem.scores);
  const std::vector<std::int64_t> starts = runs(problem.scores, rows);
  const auto n_runs = static_cast<std::int64_t>(starts.size()) - 1;
  const std::size_t n_threads = static_cast<std::size_t>(
      std::max<std::int64_t>(1, std::min<std::int64_t>(num_threads, n_runs)));
  std::vector<RidgeSolver> solvers(n_threads, RidgeSolver(k, problem));
  parallel_for(n_runs, num_threads, [&](std::int64_t run, int thread) {
    const std::int64_t* begin = starts.data() + run;
    std::vector<std::int64_t> failed;
    solvers[static_cast<std::size_t>(thread)].solve({rows.data() + begin[0], begin[1] - begin[0]},
                                                    out, failed);
    for (const std::int64_t r : failed)
      if (!solve_wide(k, problem, r, out.row(r))) throw std::runtime_error(kNotSolvable);
  });
}

class CpuAlsSolver final : public AlsSolver {
 public:
  CpuAlsSolver(const AlsProblem& problem, int num_threads)
      : problem_(problem), num_threads_(num_threads), transposed_(checked_ids(problem.scores)) {}

  bool in_host_memory(std::int64_t) const override { return true; }

  void step(MatrixView<float> row_factors, MatrixView<float> col_factors) const override {
    const MatrixView<const float> rows = as_const(row_factors), cols = as_const(col_factors);
    const RidgeProblem for_rows{problem_.scores, cols, problem_.row_prior,
                                problem_.row_regularization, problem_.cg_steps};
    const RidgeProblem for_cols{transposed_.view(), rows, problem_.col_prior,
                                problem_.col_regularization, problem_.cg_steps};
    check_shapes(for_rows, row_factors);
    check_shapes(for_cols, col_factors);
    solve_rows(for_rows, num_threads_, row_factors);
    solve_rows(for_cols, num_threads_, col_factors);
  }

  double objective(MatrixView<const float> row_factors,
                   MatrixView<const float> col_factors) const override {
    const CsrView& scores = problem_.scores;
    check_shapes(problem_, row_factors, col_factors);
    std::vector<double> parts(static_cast<std::size_t>(scores.rows));
    parallel_for(scores.rows, num_threads_, [&](std::int64_t r, int) {
      const VectorView<const std::int32_t> ids = scores.row_indices(r);
      for (std::int64_t e = 0; e < ids.size; ++e) {
        const double error =
            scores.row_values(r)[e] -
            kernels().dot_wide(row_factors.row(r), col_factors.row(ids[e]), row_factors.cols);
        parts[static_cast<std::size_t>(r)] += error * error;
      }
    });
    double total = problem_.row_regularization * squared_distance(row_factors, problem_.row_prior) +
                   problem_.col_regularization * squared_distance(col_factors, problem_.col_prior);
    for (const double part : parts) total += part;
    return total;
  }

 private:
  static MatrixView<const float> as_const(MatrixView<float> m) { return {m.data, m.rows, m.cols}; }

  AlsProblem problem_;
  int num_threads_;
  Transposed transposed_;
};

}  // namespace

void ridge(const RidgeProblem& problem, int num_threads, MatrixView<float> out) {
  check_shapes(problem, out);
  checked_ids(problem.scores);
  solve_rows(problem, num_threads, out);
}

std::unique_ptr<AlsSolver> make_als_solver(const AlsProblem& problem, int num_threads) {
  return std::make_unique<CpuAlsSolver>(problem, num_threads);
}

}  // namespace cexnn::cpu
