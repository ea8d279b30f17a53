// A searcher's items on the device, and the best of them for queries.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../searcher.hpp"
#include "finder.cuh"
#include "item_store.cuh"
#include "launch.cuh"
#include "memory.cuh"
#include "runtime.cuh"
#include "transfers.cuh"
#include "workspace.cuh"

namespace cexnn::cuda {

// The factors, and in compact form where searches scan that: never changed once they are there.
class ItemsThere {
 public:
  ItemsThere(MatrixView<const float> items, VectorView<const float> offsets,
             const CompactItems& compact)
      : items_(items, stream_),
        halves_(compact.halves, stream_),
        bytes_(compact.bytes, stream_),
        offsets_(offsets, stream_) {
    const float* scales =
        to_device(compact.scales.data, compact.scales.size, scale_storage_, stream_);
    if (!compact.empty()) scales_ = scales;
    measure(scales);
  }

  const Rows<float>& rows() const { return items_.rows(); }
  std::int64_t n() const { return rows().n; }
  const float* offsets() const { return offsets_.counted(); }  // null where there are none
  float largest_factor() const { return largest_factor_; }

  // Puts on the stream what finds the best for the queries.
  void find(Workspace& ws, const Results& results, const Asked& asked) const {
    const Adjustments adjust{scales_, offsets_.of(asked.ranking)};
    const Exact ranked = exact(asked.ranking);
    if (halves_.rows().data != nullptr) {
      find_with(Finder<std::uint16_t>(halves_.rows(), adjust, ranked), ws, results, asked);
    } else if (bytes_.rows().data != nullptr) {
      find_with(Finder<std::int8_t>(bytes_.rows(), adjust, ranked), ws, results, asked);
    } else {
      find_with(plain(asked.ranking), ws, results, asked);
    }
  }

  // Hands out what was fetched, after asking again of the factors themselves where it is unsure.
  void answer(Workspace& ws, const Results& results, const Asked& asked, std::int64_t first,
              MatrixView<std::int32_t> ids_out, MatrixView<float> approx_out) const {
    const std::int64_t k = asked.k, n = asked.n_rows;
    const Answers out = answers(results, asked);
    bool again = false;
    for (std::int64_t row = 0; row < n; ++row) {
      if (results.host<int>(0)[row] == 0) continue;
      again = true;
      Queries unsure = asked.rows;
      unsure.first = row;
      plain(asked.ranking)
          .scan(ws, unsure, 1, {out.ids + row * k, out.approx + row * k, out.unsure + row, out.k});
    }
    if (again) {
      results.send(asked.n_fetched);
      ws.stream.wait();
    }
    const std::int64_t first_row = answers_of(asked.ranking) * first;
    results.deliver(n, ids_out.row(first_row), n * k);
    results.deliver(n + n * k, approx_out.row(first_row), n * k);
  }

 private:
  template <typename T>
  void find_with(const Finder<T>& finder, Workspace& ws, const Results& results,
                 const Asked& asked) const {
    const Answers out = answers(results, asked);
    if (finder.can_batch(asked.rows, asked.n_rows, out.k)) {
      finder.batch(ws, asked.rows, asked.n_rows, out);
    } else if (finder.can_scan(out.k)) {
      finder.scan(ws, asked.rows, asked.n_rows, out);
    } else {
      sort_all(ws, exact(asked.ranking), asked.rows, asked.n_rows, out);
    }
  }

  Finder<float> plain(Ranking ranking) const {
    return Finder<float>(rows(), {nullptr, offsets_.of(ranking)}, exact(ranking));
  }

  Answers answers(const Results& results, const Asked& asked) const {
    const std::int64_t n = asked.n_rows;
    return {results.device<std::int32_t>(n), results.device<float>(n + n * asked.k),
            results.device<int>(0), static_cast<int>(asked.k)};
  }

  Exact exact(Ranking ranking) const {
    return {rows(), offsets_.of(ranking), scales_ == nullptr ? sizes_.data() : scales_,
            largest_.data() + (scales_ == nullptr ? 0 : 1)};
  }

  // Item sizes, for the errors of rounding, and the largest of them and of the scales.
  void measure(const float* scales) {
    const std::int64_t n = rows().n;
    largest_.reserve(2);
    fill_zero(largest_.data(), 2, stream_);
    sizes_.reserve(n);
    const dim3 grid = blocks_for(32 * n, kStoreThreads), block(kStoreThreads);
    launch(sizes_kernel, grid, block, 0, stream_, rows(), n, sizes_.data(), largest_.data());
    if (scales_ != nullptr)
      launch(sizes_kernel, grid, block, 0, stream_, Rows<float>{}, n, const_cast<float*>(scales),
             largest_.data() + 1);
    copy<float>(largest_.data(), &largest_factor_, 1, stream_);
    stream_.wait();
  }

  Stream stream_;
  ItemRows<float> items_;
  ItemRows<std::uint16_t> halves_;
  ItemRows<std::int8_t> bytes_;
  ItemOffsets offsets_;
  DeviceBuffer<float> scale_storage_, sizes_, largest_;
  float largest_factor_ = 0.0F;
  const float* scales_ = nullptr;  // of compact items
};

}  // namespace cexnn::cuda
