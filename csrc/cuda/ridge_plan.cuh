// Which kernel solves which row, and which systems share the workspace.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gram.cuh"
#include "ridge_gradients.cuh"
#include "ridge_short.cuh"

namespace cexnn::cuda {
namespace {

constexpr std::int64_t kWorkspaceFloats = std::int64_t(1) << 27;  // 512 MiB: 2,000 of 256 factors
constexpr int kShortSizes[] = {8, 16, 32};                        // scores and prior, at most

enum class Form { gradients, primal, dual };

// Systems that are in the workspace together: in one form, with tiles of one size.
struct SystemBatch {
  Form form = Form::dual;
  int tile = 128;
  std::int64_t first_system = 0, n_systems = 0;
  std::int64_t first_task = 0, n_tasks = 0;
  std::int64_t first_part = 0, n_parts = 0;
  std::int64_t largest_size = 0;
  std::int64_t workspace = 0;  // floats
};

// Where the device has a plan's lists.
struct PlanLists {
  const std::int32_t* short_rows[3] = {};
  const System* systems = nullptr;
  const GramTask* tasks = nullptr;
  const SystemPart* parts = nullptr;
};

// The work for one side of a matrix at one number of factors, in the host's memory. Rows with many
// scores come first, so that the last blocks to start are the shortest.
class RidgePlan {
 public:
  RidgePlan() = default;
  // Batches of no more than so many floats, but for a system that takes more alone.
  RidgePlan(const std::int64_t* indptr, std::int64_t n_rows, std::int64_t d, int n_steps,
            std::int64_t workspace_floats = kWorkspaceFloats)
      : cg_steps(n_steps), d_(d), workspace_floats_(workspace_floats) {
    std::vector<std::int32_t> by_gradients, others;
    for (std::int64_t r = 0; r < n_rows; ++r) {
      const std::int64_t n = indptr[r + 1] - indptr[r];
      int kind = 0;
      while (kind < 3 && n + 1 > kShortSizes[kind]) ++kind;
      const bool is_short = kind < 3 && n < d;
      (by_conjugate_gradients(cg_steps, n, d) ? by_gradients
       : is_short                             ? short_rows[kind]
                                              : others)
          .push_back(static_cast<std::int32_t>(r));
    }
    const auto longer = [&](std::int32_t a, std::int32_t b) {
      return indptr[a + 1] - indptr[a] > indptr[b + 1] - indptr[b];
    };
    for (auto* rows : {&short_rows[0], &short_rows[1], &short_rows[2], &by_gradients, &others})
      std::stable_sort(rows->begin(), rows->end(), longer);
    for (int kind = 0; kind < 3; ++kind)
      n_short_rows[kind] = static_cast<std::int64_t>(short_rows[kind].size());
    const auto size = [&](std::int32_t r) {
      return static_cast<std::int32_t>(indptr[r + 1] - indptr[r]);
    };
    for (const std::int32_t r : by_gradients) add_gradients(r, indptr[r], size(r));
    for (const std::int32_t r : others) add_system(r, indptr[r], size(r));
  }

  std::int64_t workspace() const {  // floats
    std::int64_t most = 0;
    for (const SystemBatch& batch : batches) most = std::max(most, batch.workspace);
    return most;
  }

  // Gives the lists to place(data, n), which says where the device has them.
  template <typename Place>
  PlanLists place(const Place& place) const {
    PlanLists lists;
    const auto put = [&](const auto& list) {
      return place(list.data(), static_cast<std::int64_t>(list.size()));
    };
    for (int kind = 0; kind < 3; ++kind) lists.short_rows[kind] = put(short_rows[kind]);
    lists.systems = put(systems);
    lists.tasks = put(tasks);
    lists.parts = put(parts);
    return lists;
  }

  // Once they are placed; how many short rows there are is kept.
  void forget_lists() {
    for (auto& rows : short_rows) rows = {};
    systems = {}, tasks = {}, parts = {};
  }

  int cg_steps = 0;
  std::int64_t n_short_rows[3] = {};
  std::vector<std::int32_t> short_rows[3];
  std::vector<System> systems;
  std::vector<GramTask> tasks;
  std::vector<SystemPart> parts;
  std::vector<SystemBatch> batches;

 private:
  static std::int64_t splits_of(std::int64_t n) {
    const std::int64_t part = scores_a_split(n);
    return (n + part - 1) / part;
  }

  // Puts a system into the last batch, or into a new one if it does not fit there.
  SystemBatch& add(System system, Form form, int tile, std::int64_t floats) {
    if (batches.empty() || batches.back().form != form || batches.back().tile != tile ||
        batches.back().workspace + floats > workspace_floats_) {
      SystemBatch batch;
      batch.form = form;
      batch.tile = tile;
      batch.first_system = static_cast<std::int64_t>(systems.size());
      batch.first_task = static_cast<std::int64_t>(tasks.size());
      batch.first_part = static_cast<std::int64_t>(parts.size());
      batches.push_back(batch);
    }
    SystemBatch& batch = batches.back();
    const auto place = static_cast<std::int32_t>(batch.n_systems++);
    system.offset = batch.workspace;
    systems.push_back(system);
    for (std::int32_t split = 0; split < system.n_splits; ++split) parts.push_back({place, split});
    batch.n_parts += system.n_splits;
    batch.workspace += floats;
    batch.largest_size = std::max<std::int64_t>(batch.largest_size, system.size);
    return batch;
  }

  void add_gradients(std::int32_t row, std::int64_t first, std::int32_t n) {
    const auto n_splits = static_cast<std::int32_t>(splits_of(n));
    add({first, 0, row, n, static_cast<std::int32_t>(d_), n_splits}, Form::gradients, 0,
        gradient_floats(system_stride(d_), n_splits));
  }

  void add_system(std::int32_t row, std::int64_t first, std::int32_t n) {
    const bool dual = n < d_;
    const std::int64_t size = std::min<std::int64_t>(n, d_);
    const auto n_splits = static_cast<std::int32_t>(dual ? 1 : splits_of(n));
    const int tile = size <= 64 ? 64 : 128;
    SystemBatch& batch =
        add({first, 0, row, n, static_cast<std::int32_t>(size), n_splits},
            dual ? Form::dual : Form::primal, tile, n_splits * split_floats(system_stride(size)));
    const auto place = static_cast<std::int32_t>(batch.n_systems - 1);
    const auto n_tiles = static_cast<std::int32_t>((size + tile - 1) / tile);
    for (std::int32_t split = 0; split < n_splits; ++split)
      for (std::int32_t i = 0; i < n_tiles; ++i)
        for (std::int32_t j = 0; j <= i; ++j) tasks.push_back({place, split, i, j});
    batch.n_tasks += n_splits * n_tiles * (n_tiles + 1) / 2;
  }

  std::int64_t d_ = 0;
  std::int64_t workspace_floats_ = kWorkspaceFloats;
};

}  // namespace
}  // namespace cexnn::cuda
