#include <mutex>
#include <optional>
#include <stdexcept>
#include <vector>

#include "../als.hpp"
#include "../transposed.hpp"
#include "cholesky.cuh"
#include "objective.cuh"
#include "ridge_plan.cuh"
#include "ridge_wide.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

unsigned n_blocks(std::int64_t n, std::int64_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}

bool by_fours(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

// Tensor cores where three of their products take less time than one product otherwise.
bool tensor_cores_pay() {
  const int capability = device_properties().compute_capability;
  return capability >= 80 && capability != 86 && capability != 87 && capability != 89 &&
         capability < 120;
}

// A sparse matrix on the device; its starts on the host as well.
struct DeviceCsr {
  DeviceBuffer<std::int64_t> indptr_storage;
  DeviceBuffer<std::int32_t> indices_storage;
  DeviceBuffer<float> values_storage;
  CsrView view;  // on the device
  const std::int64_t* indptr = nullptr;

  // Borrows what lies on the device and, all along, matrix.indptr. Throws for ids out of range.
  DeviceCsr(const CsrView& matrix, const Stream& stream) : view(matrix), indptr(matrix.indptr) {
    const std::int64_t n = matrix.indptr[matrix.rows];
    view.indptr = to_device(matrix.indptr, matrix.rows + 1, indptr_storage, stream);
    view.indices = to_device(matrix.indices, n, indices_storage, stream);
    view.values = to_device(matrix.values, n, values_storage, stream);
    DeviceBuffer<std::int32_t> count(1);
    fill_zero(count.data(), 1, stream);
    launch(count_out_of_range, n_blocks(n, kSumThreads), kSumThreads, 0, stream, view.indices, n,
           matrix.cols, count.data());
    std::int32_t found = 0;
    copy<std::int32_t>(count.data(), &found, 1, stream);
    stream.wait();
    if (found != 0) throw std::invalid_argument(kIdOutOfRange);
  }
};

// Solves the rows of problems on one stream, keeping its memory.
class RidgeSolver {
 public:
  explicit RidgeSolver(const Stream& stream) : stream_(stream) {}

  // All arrays but `indptr` on the device. Waits until it is done.
  void solve(DeviceRidge problem, const std::int64_t* indptr, std::int64_t n_rows,
             const RidgePlan& plan) {
    if (n_rows == 0 || problem.d == 0) return;
    failed_.reserve(n_rows + 1);
    problem.failed = {failed_.data(), failed_.data() + 1};
    problem.by_fours = problem.d % 4 == 0 && by_fours(problem.factors) && by_fours(problem.prior) &&
                       by_fours(problem.out);
    fill_zero(failed_.data(), 1, stream_);
    workspace_.reserve(plan.workspace());
    const bool tensor_cores = tensor_cores_pay();
    for (const SystemBatch& batch : plan.batches) {
      if (tensor_cores) {
        solve_batch<TensorTile>(problem, plan, batch);
      } else {
        solve_batch<PlainTile>(problem, plan, batch);
      }
    }
    solve_short_rows<32>(problem, plan, 2);
    solve_short_rows<16>(problem, plan, 1);
    solve_short_rows<8>(problem, plan, 0);
    if (const std::vector<std::int32_t> rows = failed_rows(); !rows.empty()) {
      solve_again(problem, indptr, rows);
      if (!failed_rows().empty()) throw std::runtime_error(kNotSolvable);
    }
  }

 private:
  static constexpr std::int64_t kWideDoubles = std::int64_t(1) << 25;  // 256 MiB

  template <int kSize>
  void solve_short_rows(const DeviceRidge& problem, const RidgePlan& plan, int kind) {
    const std::int64_t n = plan.n_short_rows[kind];
    // Rows of fewer than 128 factors would leave lanes idle that read 16 bytes.
    launch(problem.by_fours && problem.d >= 128 ? solve_short<kSize, 4> : solve_short<kSize, 1>,
           n_blocks(n, kShortWarps), kShortWarps * kWarp, 0, stream_, problem,
           plan.short_rows[kind].data(), n);
  }

  template <template <int> class Tile>
  void solve_batch(const DeviceRidge& problem, const RidgePlan& plan, const SystemBatch& batch) {
    const System* systems = plan.systems.data() + batch.first_system;
    const std::int64_t stride = system_stride(batch.largest_size);
    launch(problem.by_fours ? add_right_sides<4> : add_right_sides<1>,
           static_cast<unsigned>(batch.n_parts), kSideWarps * kWarp,
           batch.dual ? 0 : sizeof(float) * kSideWarps * stride, stream_, problem, systems,
           plan.parts.data() + batch.first_part, workspace_.data());
    const GramTask* tasks = plan.tasks.data() + batch.first_task;
    if (batch.tile == 64) {
      batch.dual ? launch_gram<64, true, Tile>(problem, systems, tasks, batch.n_tasks)
                 : launch_gram<64, false, Tile>(problem, systems, tasks, batch.n_tasks);
    } else {
      batch.dual ? launch_gram<128, true, Tile>(problem, systems, tasks, batch.n_tasks)
                 : launch_gram<128, false, Tile>(problem, systems, tasks, batch.n_tasks);
    }
    const std::int64_t n_warps = std::min<std::int64_t>(kSolveWarps, stride / kWarp);
    launch(solve_systems<Tile>, static_cast<unsigned>(batch.n_systems),
           static_cast<unsigned>(n_warps * kWarp), sizeof(float) * solve_floats(stride, n_warps),
           stream_, problem, systems, workspace_.data());
  }

  template <int kTile, bool kDual, template <int> class Tile>
  void launch_gram(const DeviceRidge& problem, const System* systems, const GramTask* tasks,
                   std::int64_t n_tasks) {
    constexpr std::size_t kBytes =
        sizeof(float) * kGramStages * 2 * GramPanel<kTile, kDual>::kFloats;
    launch(gram<kTile, kDual, Tile>, static_cast<unsigned>(n_tasks), 2 * kTile, kBytes, stream_,
           problem, systems, tasks, workspace_.data());
  }

  // In ascending order; counting starts anew.
  std::vector<std::int32_t> failed_rows() {
    std::int32_t count = 0;
    copy<std::int32_t>(failed_.data(), &count, 1, stream_);
    stream_.wait();
    std::vector<std::int32_t> rows(static_cast<std::size_t>(count));
    copy<std::int32_t>(failed_.data() + 1, rows.data(), count, stream_);
    fill_zero(failed_.data(), 1, stream_);
    stream_.wait();
    std::sort(rows.begin(), rows.end());
    return rows;
  }

  void solve_again(const DeviceRidge& problem, const std::int64_t* indptr,
                   const std::vector<std::int32_t>& rows) {
    DeviceBuffer<WideRow> on_device;
    DeviceBuffer<double> workspace;
    for (std::size_t next = 0; next < rows.size();) {
      std::vector<WideRow> together;
      std::int64_t doubles = 0;
      for (; next < rows.size(); ++next) {
        const std::int32_t r = rows[next];
        const std::int64_t more = wide_doubles(indptr[r + 1] - indptr[r], problem.d);
        if (!together.empty() && doubles + more > kWideDoubles) break;
        together.push_back({doubles, r});
        doubles += more;
      }
      workspace.reserve(doubles);
      upload(together, on_device, stream_);
      launch(solve_wide, static_cast<unsigned>(together.size()), kWideThreads, 0, stream_, problem,
             static_cast<const WideRow*>(on_device.data()), workspace.data());
      stream_.wait();
    }
  }

  const Stream& stream_;
  DeviceBuffer<float> workspace_;
  DeviceBuffer<std::int32_t> failed_;  // how many, and which
};

DeviceRidge device_problem(const CsrView& scores, const float* factors, const float* prior,
                           float* out, std::int64_t d, double regularization) {
  DeviceRidge problem;
  problem.indptr = scores.indptr;
  problem.indices = scores.indices;
  problem.values = scores.values;
  problem.factors = factors;
  problem.prior = prior;
  problem.out = out;
  problem.d = d;
  problem.regularization = regularization;
  return problem;
}

// A matrix that may be none.
const float* prior_on_device(MatrixView<const float> prior, DeviceBuffer<float>& storage,
                             const Stream& stream) {
  return prior.data == nullptr ? nullptr : to_device(prior, storage, stream).data;
}

// The transpose of a matrix whose indices and values may lie on the device.
Transposed transpose(const CsrView& matrix, const Stream& stream) {
  const std::int64_t n = matrix.indptr[matrix.rows];
  std::vector<std::int32_t> indices;
  std::vector<float> values;
  CsrView on_host = matrix;
  if (on_device(matrix.indices)) {
    indices.resize(static_cast<std::size_t>(n));
    copy(matrix.indices, indices.data(), n, stream);
    on_host.indices = indices.data();
  }
  if (on_device(matrix.values)) {
    values.resize(static_cast<std::size_t>(n));
    copy(matrix.values, values.data(), n, stream);
    on_host.values = values.data();
  }
  stream.wait();
  return Transposed(on_host);
}

// One side of the factorisation.
struct Side {
  DeviceCsr scores;
  double regularization;
  DeviceBuffer<float> prior_storage;
  const float* prior;
  std::optional<RidgePlan> plan;
  std::int64_t plan_d = -1;
  DeviceBuffer<float> factors;  // where the caller's are on the host

  Side(const CsrView& matrix, MatrixView<const float> from, double regularization_,
       const Stream& stream)
      : scores(matrix, stream),
        regularization(regularization_),
        prior(prior_on_device(from, prior_storage, stream)) {}

  const RidgePlan& plan_for(std::int64_t d, const Stream& stream) {
    if (plan_d != d) {
      plan.emplace(scores.indptr, scores.view.rows, d, stream);
      plan_d = d;
    }
    return *plan;
  }
};

class CudaAlsSolver final : public AlsSolver {
 public:
  explicit CudaAlsSolver(const AlsProblem& problem)
      : problem_(problem),
        solver_(stream_),
        rows_(problem.scores, problem.row_prior, problem.row_regularization, stream_),
        transposed_(transpose(problem.scores, stream_)),
        cols_(transposed_.view(), problem.col_prior, problem.col_regularization, stream_) {
    stream_.wait();
    transposed_.forget_entries();  // they are on the device
  }

  void step(MatrixView<float> row_factors, MatrixView<float> col_factors) const override {
    const MatrixView<const float> cols{col_factors.data, col_factors.rows, col_factors.cols};
    check_shapes(problem_, {row_factors.data, row_factors.rows, row_factors.cols}, cols);
    const OnFirstDevice device;
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::int64_t d = cols.cols, n_rows = row_factors.rows * d, n_cols = cols.rows * d;
    float* row_out = output_on_device(row_factors.data, n_rows, rows_.factors);
    float* col_out = output_on_device(col_factors.data, n_cols, cols_.factors);
    deliver<float>(col_factors.data, col_out, n_cols, stream_);
    solve(rows_, col_out, d, row_out);
    deliver<float>(row_out, row_factors.data, n_rows, stream_);
    solve(cols_, row_out, d, col_out);
    deliver<float>(col_out, col_factors.data, n_cols, stream_);
    stream_.wait();
  }

  double objective(MatrixView<const float> row_factors,
                   MatrixView<const float> col_factors) const override {
    check_shapes(problem_, row_factors, col_factors);
    const OnFirstDevice device;
    const std::lock_guard<std::mutex> lock(mutex_);
    const float* rows = to_device(row_factors, rows_.factors, stream_).data;
    const float* cols = to_device(col_factors, cols_.factors, stream_).data;
    const std::int64_t d = row_factors.cols, n_entries = problem_.scores.indptr[row_factors.rows];
    const std::int64_t n_rows = row_factors.rows * d, n_cols = col_factors.rows * d;
    const unsigned blocks[] = {n_blocks(n_entries, kSumEntries), n_blocks(n_rows, kSumFloats),
                               n_blocks(n_cols, kSumFloats)};
    sums_.reserve(3 + std::int64_t(blocks[0]) + blocks[1] + blocks[2]);
    double* parts[] = {sums_.data() + 3, sums_.data() + 3 + blocks[0],
                       sums_.data() + 3 + blocks[0] + blocks[1]};
    launch(sum_squared_errors, blocks[0], kSumThreads, 0, stream_, rows_.scores.view, rows, cols, d,
           parts[0]);
    launch(sum_squared_distances, blocks[1], kSumThreads, 0, stream_, rows, rows_.prior, n_rows,
           parts[1]);
    launch(sum_squared_distances, blocks[2], kSumThreads, 0, stream_, cols, cols_.prior, n_cols,
           parts[2]);
    for (int i = 0; i < 3; ++i)
      launch(add_up, 1, kSumThreads, 0, stream_, static_cast<const double*>(parts[i]),
             std::int64_t(blocks[i]), sums_.data() + i);
    double found[3] = {};
    copy<double>(sums_.data(), found, 3, stream_);
    stream_.wait();
    return found[0] + rows_.regularization * found[1] + cols_.regularization * found[2];
  }

 private:
  void solve(Side& side, const float* factors, std::int64_t d, float* out) const {
    const DeviceRidge problem =
        device_problem(side.scores.view, factors, side.prior, out, d, side.regularization);
    solver_.solve(problem, side.scores.indptr, side.scores.view.rows, side.plan_for(d, stream_));
  }

  AlsProblem problem_;
  Stream stream_;
  mutable std::mutex mutex_;  // one call at a time
  mutable RidgeSolver solver_;
  mutable Side rows_;
  Transposed transposed_;
  mutable Side cols_;
  mutable DeviceBuffer<double> sums_;
};

}  // namespace

void ridge(const RidgeProblem& problem, MatrixView<float> out) {
  check_shapes(problem, out);
  const OnFirstDevice device;
  const Stream stream;
  const DeviceCsr scores(problem.scores, stream);
  DeviceBuffer<float> factors, prior, storage;
  const std::int64_t d = out.cols, n = out.rows * d;
  float* found = output_on_device(out.data, n, storage);
  const RidgePlan plan(scores.indptr, out.rows, d, stream);
  RidgeSolver solver(stream);
  solver.solve(device_problem(scores.view, to_device(problem.factors, factors, stream).data,
                              prior_on_device(problem.prior, prior, stream), found, d,
                              problem.regularization),
               scores.indptr, out.rows, plan);
  deliver<float>(found, out.data, n, stream);
  stream.wait();
}

std::unique_ptr<AlsSolver> make_als_solver(const AlsProblem& problem) {
  const OnFirstDevice device;
  return std::make_unique<CudaAlsSolver>(problem);
}

}  // namespace cexnn::cuda
