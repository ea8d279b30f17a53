// Which kernel solves which row, and which systems share the workspace.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gram.cuh"
#include "ridge_short.cuh"

namespace cexnn::cuda {
namespace {

constexpr std::int64_t kWorkspaceFloats = std::int64_t(1) << 27;  // 512 MiB: 2,000 of 256 factors
constexpr int kShortSizes[] = {8, 16, 32};                        // scores and prior, at most

// Systems that are in the workspace together: in one form, with tiles of one size.
struct SystemBatch {
  bool dual = false;
  int tile = 128;
  std::int64_t first_system = 0, n_systems = 0;
  std::int64_t first_task = 0, n_tasks = 0;
  std::int64_t first_part = 0, n_parts = 0;
  std::int64_t largest_size = 0;
  std::int64_t workspace = 0;  // floats
};

template <typename T>
void upload(const std::vector<T>& from, DeviceBuffer<T>& to, const Stream& stream) {
  to.reserve(static_cast<std::int64_t>(from.size()));
  copy(from.data(), to.data(), static_cast<std::int64_t>(from.size()), stream);
}

// The work for one side of a matrix at one number of factors, on the device. Rows with many scores
// come first, so that the last blocks to start are the shortest.
class RidgePlan {
 public:
  RidgePlan(const std::int64_t* indptr, std::int64_t n_rows, std::int64_t d, const Stream& stream)
      : d_(d) {
    std::vector<std::int32_t> order[3], others;
    for (std::int64_t r = 0; r < n_rows; ++r) {
      const std::int64_t n = indptr[r + 1] - indptr[r];
      int kind = 0;
      while (kind < 3 && n + 1 > kShortSizes[kind]) ++kind;
      const bool is_short = kind < 3 && n < d;
      (is_short ? order[kind] : others).push_back(static_cast<std::int32_t>(r));
    }
    const auto longer = [&](std::int32_t a, std::int32_t b) {
      return indptr[a + 1] - indptr[a] > indptr[b + 1] - indptr[b];
    };
    std::stable_sort(others.begin(), others.end(), longer);
    for (int kind = 0; kind < 3; ++kind) {
      std::stable_sort(order[kind].begin(), order[kind].end(), longer);
      upload(order[kind], short_rows[kind], stream);
      n_short_rows[kind] = static_cast<std::int64_t>(order[kind].size());
    }
    for (const std::int32_t r : others)
      add_system(r, indptr[r], static_cast<std::int32_t>(indptr[r + 1] - indptr[r]));
    upload(systems_, systems, stream);
    upload(tasks_, tasks, stream);
    upload(parts_, parts, stream);
    stream.wait();  // the vectors go
    systems_ = {}, tasks_ = {}, parts_ = {};
  }

  std::int64_t workspace() const {
    std::int64_t most = 0;
    for (const SystemBatch& batch : batches) most = std::max(most, batch.workspace);
    return most;
  }

  DeviceBuffer<std::int32_t> short_rows[3];
  std::int64_t n_short_rows[3] = {};
  DeviceBuffer<System> systems;
  DeviceBuffer<GramTask> tasks;
  DeviceBuffer<SystemPart> parts;
  std::vector<SystemBatch> batches;

 private:
  void add_system(std::int32_t row, std::int64_t first, std::int32_t n) {
    const bool dual = n < d_;
    const std::int64_t size = std::min<std::int64_t>(n, d_), stride = system_stride(size);
    const std::int64_t part = scores_a_split(n), n_splits = dual ? 1 : (n + part - 1) / part;
    const std::int64_t floats = n_splits * split_floats(stride);
    const int tile = size <= 64 ? 64 : 128;
    if (batches.empty() || batches.back().dual != dual || batches.back().tile != tile ||
        batches.back().workspace + floats > kWorkspaceFloats) {
      SystemBatch batch;
      batch.dual = dual;
      batch.tile = tile;
      batch.first_system = static_cast<std::int64_t>(systems_.size());
      batch.first_task = static_cast<std::int64_t>(tasks_.size());
      batch.first_part = static_cast<std::int64_t>(parts_.size());
      batches.push_back(batch);
    }
    SystemBatch& batch = batches.back();
    const auto place = static_cast<std::int32_t>(batch.n_systems++);
    systems_.push_back({first, batch.workspace, row, n, static_cast<std::int32_t>(size),
                        static_cast<std::int32_t>(n_splits)});
    batch.workspace += floats;
    batch.largest_size = std::max(batch.largest_size, size);
    const auto n_tiles = static_cast<std::int32_t>((size + tile - 1) / tile);
    for (std::int32_t split = 0; split < n_splits; ++split) {
      parts_.push_back({place, split});
      for (std::int32_t i = 0; i < n_tiles; ++i)
        for (std::int32_t j = 0; j <= i; ++j) tasks_.push_back({place, split, i, j});
    }
    batch.n_parts += n_splits;
    batch.n_tasks += n_splits * n_tiles * (n_tiles + 1) / 2;
  }

  std::int64_t d_;
  std::vector<System> systems_;
  std::vector<GramTask> tasks_;
  std::vector<SystemPart> parts_;
};

}  // namespace
}  // namespace cexnn::cuda
