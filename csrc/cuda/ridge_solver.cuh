// The kernels of ridge rows put on a stream, plan by plan.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "cholesky.cuh"
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
  return capability >= 80 && capability != 86 && capability != 87 && capability != 89 &&
         capability < 120;
}

template <typename T>
void upload(const std::vector<T>& from, DeviceBuffer<T>& to, const Stream& stream) {
  to.reserve(static_cast<std::int64_t>(from.size()));
  copy(from.data(), to.data(), static_cast<std::int64_t>(from.size()), stream);
}

// Solves the rows of one problem after another on one stream, keeping its memory.
class RidgeSolver {
 public:
  explicit RidgeSolver(const Stream& stream) : stream_(stream) {}

  // All arrays of the problem on the device. Does not wait; `plan` may go.
  void start(const DeviceRidge& problem, std::int64_t n_rows, const RidgePlan& plan,
             const PlanLists& lists) {
    problem_ = problem;
    n_rows_ = n_rows;
    if (n_rows == 0 || problem.d == 0) return;
    failed_.reserve(n_rows + 1);
    problem_.failed = {failed_.data(), failed_.data() + 1};
    problem_.by_fours = problem.d % 4 == 0 && by_fours(problem.factors) &&
                        by_fours(problem.prior) && by_fours(problem.out);
    fill_zero(failed_.data(), 1, stream_);
    workspace_.reserve(plan.workspace());
    const bool tensor_cores = tensor_cores_pay();
    for (const SystemBatch& batch : plan.batches) {
      if (batch.form == Form::gradients) {
        take_steps(lists, batch, plan.cg_steps);
      } else if (tensor_cores) {
        solve_batch<TensorTile>(lists, batch);
      } else {
        solve_batch<PlainTile>(lists, batch);
      }
    }
    solve_short_rows<32>(lists, plan, 2);
    solve_short_rows<16>(lists, plan, 1);
    solve_short_rows<8>(lists, plan, 0);
  }

  // Waits until it is done, and solves again what lost its factorisation. `indptr`, of the problem
  // started, in the host's memory.
  void finish(const std::int64_t* indptr) {
    if (n_rows_ == 0 || problem_.d == 0) return;
    if (const std::vector<std::int32_t> rows = failed_rows(); !rows.empty()) {
      solve_again(indptr, rows);
      if (!failed_rows().empty()) throw std::runtime_error(kNotSolvable);
    }
  }

 private:
  static constexpr std::int64_t kWideDoubles = std::int64_t(1) << 25;  // 256 MiB

  template <int kSize>
  void solve_short_rows(const PlanLists& lists, const RidgePlan& plan, int kind) {
    const std::int64_t n = plan.n_short_rows[kind];
    // Rows of fewer than 128 factors would leave lanes idle that read 16 bytes.
    launch(problem_.by_fours && problem_.d >= 128 ? solve_short<kSize, 4> : solve_short<kSize, 1>,
           n_blocks(n, kShortWarps), kShortWarps * kWarp, 0, stream_, problem_,
           lists.short_rows[kind], n);
  }

  template <template <int> class Tile>
  void solve_batch(const PlanLists& lists, const SystemBatch& batch) {
    const System* systems = lists.systems + batch.first_system;
    const std::int64_t stride = system_stride(batch.largest_size);
    const bool dual = batch.form == Form::dual;
    launch(problem_.by_fours ? add_right_sides<4> : add_right_sides<1>,
           static_cast<unsigned>(batch.n_parts), kSideWarps * kWarp,
           dual ? 0 : sizeof(float) * kSideWarps * stride, stream_, problem_, systems,
           lists.parts + batch.first_part, workspace_.data());
    const GramTask* tasks = lists.tasks + batch.first_task;
    if (batch.tile == 64) {
      dual ? launch_gram<64, true, Tile>(systems, tasks, batch.n_tasks)
           : launch_gram<64, false, Tile>(systems, tasks, batch.n_tasks);
    } else {
      dual ? launch_gram<128, true, Tile>(systems, tasks, batch.n_tasks)
           : launch_gram<128, false, Tile>(systems, tasks, batch.n_tasks);
    }
    const std::int64_t n_warps = std::min<std::int64_t>(kSolveWarps, stride / kWarp);
    launch(solve_systems<Tile>, static_cast<unsigned>(batch.n_systems),
           static_cast<unsigned>(n_warps * kWarp), sizeof(float) * solve_floats(stride, n_warps),
           stream_, problem_, systems, workspace_.data());
  }

  template <int kTile, bool kDual, template <int> class Tile>
  void launch_gram(const System* systems, const GramTask* tasks, std::int64_t n_tasks) {
    constexpr std::size_t kBytes =
        sizeof(float) * kGramStages * 2 * GramPanel<kTile, kDual>::kFloats;
    launch(gram<kTile, kDual, Tile>, static_cast<unsigned>(n_tasks), 2 * kTile, kBytes, stream_,
           problem_, systems, tasks, workspace_.data());
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

  void solve_again(const std::int64_t* indptr, const std::vector<std::int32_t>& rows) {
    DeviceBuffer<WideRow> on_device;
    DeviceBuffer<double> workspace;
    for (std::size_t next = 0; next < rows.size();) {
      std::vector<WideRow> together;
      std::int64_t doubles = 0;
      for (; next < rows.size(); ++next) {
        const std::int32_t r = rows[next];
        const std::int64_t more = wide_doubles(indptr[r + 1] - indptr[r], problem_.d);
        if (!together.empty() && doubles + more > kWideDoubles) break;
        together.push_back({doubles, r});
        doubles += more;
      }
      workspace.reserve(doubles);
      upload(together, on_device, stream_);
      launch(solve_wide, static_cast<unsigned>(together.size()), kWideThreads, 0, stream_, problem_,
             static_cast<const WideRow*>(on_device.data()), workspace.data());
      stream_.wait();
    }
  }

  const Stream& stream_;
  DeviceRidge problem_;
  std::int64_t n_rows_ = 0;
  DeviceBuffer<float> workspace_;
  DeviceBuffer<std::int32_t> failed_;  // how many, and which
};

}  // namespace
}  // namespace cexnn::cuda
