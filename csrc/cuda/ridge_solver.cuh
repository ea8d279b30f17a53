// The kernels of ridge rows put on a stream, plan by plan.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "cholesky.cuh"
#include "launch.cuh"
#include "memory.cuh"
#include "ridge_plan.cuh"
#include "ridge_wide.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

inline unsigned n_blocks(std::int64_t n, std::int64_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}

inline bool by_fours(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

// Tensor cores where three of their products take less time than one product otherwise.
inline bool tensor_cores_pay() {
  const int capability = device_properties().compute_capability;
  return device_properties().instructions >= 80 && capability != 86 && capability != 87 &&
         capability != 89 && capability < 120;
}

template <typename T>
void upload(const std::vector<T>& from, DeviceBuffer<T>& to, const Stream& stream) {
  to.reserve(static_cast<std::int64_t>(from.size()));
  copy(from.data(), to.data(), static_cast<std::int64_t>(from.size()), stream);
}

constexpr std::int64_t kWideDoubles = std::int64_t(1) << 25;  // 256 MiB

// Solves the rows of one problem after another on one stream, keeping its memory.
class RidgeSolver {
 public:
  // Rows are solved again in no more than so many doubles, but for one that takes more alone.
  explicit RidgeSolver(const Stream& stream, std::int64_t wide_doubles = kWideDoubles)
      : stream_(stream), wide_doubles_(wide_doubles) {}

  // All arrays of the problem on the device. Does not wait; `plan` may go.
  void start(const DeviceRidge& problem, std::int64_t n_rows, const RidgePlan& plan,
             const PlanLists& lists) {
    begin(problem, n_rows);
    if (n_rows == 0 || problem.d == 0) return;
    workspace_.reserve(plan.workspace());
    for (const SystemBatch& batch : plan.batches) {
      if (batch.form == Form::gradients) {
        take_steps(lists, batch, plan.cg_steps);
      } else {
        build(lists, batch, workspace_.data());
        solve(lists, batch, workspace_.data());
      }
    }
    solve_short_rows<32>(lists, plan, 2);
    solve_short_rows<16>(lists, plan, 1);
    solve_short_rows<8>(lists, plan, 0);
  }

  // Waits until it is done, and solves again what lost its factorisation, if anything did.
  // `indptr`, of the problem started, in the host's memory.
  bool finish(const std::int64_t* indptr) {
    if (n_rows_ == 0 || problem_.d == 0) return false;
    const std::vector<std::int32_t> rows = failed_rows();
    if (rows.empty()) return false;
    solve_again(indptr, rows);
    if (!failed_rows().empty()) throw std::runtime_error(kNotSolvable);
    return true;
  }

  // -- the parts of `start` and `finish`, for systems that are built piece by piece --

  void begin(const DeviceRidge& problem, std::int64_t n_rows) {
    problem_ = problem;
    n_rows_ = n_rows;
    failed_.reserve(n_rows + 1);
    problem_.failed = {failed_.data(), failed_.data() + 1};
    problem_.by_fours = problem.d % 4 == 0 && by_fours(problem.factors) &&
                        by_fours(problem.prior) && by_fours(problem.out);
    fill_zero(failed_.data(), 1, stream_);
  }

  // Sums up the batch's parts and tasks in the workspace, which has room for its systems.
  void build(const PlanLists& lists, const SystemBatch& batch, float* workspace) {
    tensor_cores_ ? build_with<TensorTile>(lists, batch, workspace)
                  : build_with<PlainTile>(lists, batch, workspace);
  }

  void solve(const PlanLists& lists, const SystemBatch& batch, float* workspace) {
    const std::int64_t stride = system_stride(batch.largest_size);
    const std::int64_t n_warps = std::min<std::int64_t>(kSolveWarps, stride / kWarp);
    launch(tensor_cores_ ? solve_systems<TensorTile> : solve_systems<PlainTile>,
           static_cast<unsigned>(batch.n_systems), static_cast<unsigned>(n_warps * kWarp),
           sizeof(float) * solve_floats(stride, n_warps), stream_, problem_,
           lists.systems + batch.first_system, workspace);
  }

  // In double precision. Waits.
  void solve_wide_rows(const std::vector<WideRow>& rows, double* workspace) {
    DeviceBuffer<WideRow> on_device;
    upload(rows, on_device, stream_);
    launch(solve_wide, static_cast<unsigned>(rows.size()), kWideThreads, 0, stream_, problem_,
           static_cast<const WideRow*>(on_device.data()), workspace);
    stream_.wait();
  }

  // Waits. In ascending order; counting starts anew.
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

 private:
  template <int kSize>
  void solve_short_rows(const PlanLists& lists, const RidgePlan& plan, int kind) {
    const std::int64_t n = plan.n_short_rows[kind];
    // Rows of fewer than 128 factors would leave lanes idle that read 16 bytes.
    launch(problem_.by_fours && problem_.d >= 128 ? solve_short<kSize, 4> : solve_short<kSize, 1>,
           n_blocks(n, kShortWarps), kShortWarps * kWarp, 0, stream_, problem_,
           lists.short_rows[kind], n);
  }

  template <template <int> class Tile>
  void build_with(const PlanLists& lists, const SystemBatch& batch, float* workspace) {
    const System* systems = lists.systems + batch.first_system;
    const bool dual = batch.form == Form::dual;
    launch(problem_.by_fours ? add_right_sides<4> : add_right_sides<1>,
           static_cast<unsigned>(batch.n_parts), kSideWarps * kWarp,
           dual ? 0 : sizeof(float) * kSideWarps * system_stride(batch.largest_size), stream_,
           problem_, systems, lists.parts + batch.first_part, workspace);
    const GramTask* tasks = lists.tasks + batch.first_task;
    if (batch.tile == 64) {
      dual ? launch_gram<64, true, Tile>(systems, tasks, batch.n_tasks, workspace)
           : launch_gram<64, false, Tile>(systems, tasks, batch.n_tasks, workspace);
    } else {
      dual ? launch_gram<128, true, Tile>(systems, tasks, batch.n_tasks, workspace)
           : launch_gram<128, false, Tile>(systems, tasks, batch.n_tasks, workspace);
    }
  }

  template <int kTile, bool kDual, template <int> class Tile>
  void launch_gram(const System* systems, const GramTask* tasks, std::int64_t n_tasks,
                   float* workspace) {
    constexpr std::size_t kBytes =
        sizeof(float) * kGramStages * 2 * GramPanel<kTile, kDual>::kFloats;
    launch(gram<kTile, kDual, Tile>, static_cast<unsigned>(n_tasks), 2 * kTile, kBytes, stream_,
           problem_, systems, tasks, workspace);
  }

  void take_steps(const PlanLists& lists, const SystemBatch& batch, int n_steps) {
    const System* systems = lists.systems + batch.first_system;
    const auto n_systems = static_cast<unsigned>(batch.n_systems);
    const std::size_t bytes = sizeof(float) * kSideWarps * system_stride(problem_.d);
    for (int step = 0; step <= n_steps; ++step) {
      launch(problem_.by_fours ? add_products<4> : add_products<1>,
             static_cast<unsigned>(batch.n_parts), kSideWarps * kWarp, bytes, stream_, problem_,
             systems, lists.parts + batch.first_part, workspace_.data(), step == 0);
      if (step == 0) {
        launch(start_gradients, n_systems, kStepThreads, 0, stream_, problem_, systems,
               workspace_.data());
      } else {
        launch(step_gradients, n_systems, kStepThreads, 0, stream_, problem_, systems,
               workspace_.data(), step == n_steps);
      }
    }
  }

  void solve_again(const std::int64_t* indptr, const std::vector<std::int32_t>& rows) {
    DeviceBuffer<double> workspace;
    for (std::size_t next = 0; next < rows.size();) {
      std::vector<WideRow> together;
      std::int64_t doubles = 0;
      for (; next < rows.size(); ++next) {
        const std::int32_t r = rows[next];
        const std::int64_t n = indptr[r + 1] - indptr[r], more = wide_doubles(n, problem_.d);
        if (!together.empty() && doubles + more > wide_doubles_) break;
        WideRow row;
        row.offset = doubles;
        row.row = r;
        row.size = static_cast<std::int32_t>(std::min(n, problem_.d));
        together.push_back(row);
        doubles += more;
      }
      workspace.reserve(doubles);
      solve_wide_rows(together, workspace.data());
    }
  }

  const Stream& stream_;
  const std::int64_t wide_doubles_;
  const bool tensor_cores_ = tensor_cores_pay();
  DeviceRidge problem_;
  std::int64_t n_rows_ = 0;
  DeviceBuffer<float> workspace_;
  DeviceBuffer<std::int32_t> failed_;  // how many, and which
};

}  // namespace
}  // namespace cexnn::cuda
