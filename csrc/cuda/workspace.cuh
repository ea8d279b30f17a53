// What one call on the device needs for itself, kept for the calls after it.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "memory.cuh"
#include "query_update.cuh"
#include "round_graphs.cuh"
#include "runtime.cuh"
#include "topk.cuh"

namespace cexnn::cuda {

// Of one call at a time.
struct Workspace {
  Stream stream;
  Gathered upload;
  std::vector<KnownRows> rows;

  DeviceBuffer<float> queries;        // (n_queries, stride)
  DeviceBuffer<std::int32_t> tables;  // of the masks
  DeviceBuffer<Key> keys;
  DeviceBuffer<std::int32_t> results;  // ids, approximate scores, unsure queries, failures
  PinnedBuffer<std::int32_t> fetched;

  DeviceBuffer<int> counts;  // of lists and what goes with them
  DeviceBuffer<uint4> packed;
  DeviceBuffer<float> list_floats;

  DeviceBuffer<int> arrived;     // blocks that are done, of each query
  DeviceBuffer<double> numbers;  // of known items
  DeviceBuffer<double> projected;
  DeviceBuffer<double> columns;
  DeviceBuffer<double> inverses;  // where there is no state
  DeviceBuffer<std::int32_t> asked;
  DeviceBuffer<int> bad;  // whether an id was out of range

  // Copies of arrays that the caller has on the device, at places that stay.
  DeviceBuffer<std::int32_t> own_ids;
  DeviceBuffer<float> own_scores;
  DeviceBuffer<float> own_factors;

  RoundGraphs graphs;

  // Where the array will lie once what goes up is sent, in every round that has as much room: among
  // that, or, if it lies on the device, in `own`.
  template <typename T>
  const T* settle(const T* data, std::int64_t n, std::int64_t room, DeviceBuffer<T>& own) {
    if (!on_device(data)) return upload.add(data, n, room);
    own.reserve(room);
    copy(data, own.data(), n, stream);
    return own.data();
  }

  // Of a round that is decided by these, and by where all lies that it uses.
  template <typename... Parts>
  RoundShape shape(const Parts&... parts) const {
    RoundShape shape;
    shape.add(parts..., upload.used(), upload.pinned(), upload.device(), queries.data(),
              tables.data(), keys.data(), results.data(), fetched.data(), counts.data(),
              packed.data(), list_floats.data(), arrived.data(), numbers.data(), projected.data());
    return shape;
  }
};

// Lends workspaces, as many as calls run at once.
class Workspaces {
 public:
  class Loan {
   public:
    Loan(Workspaces& owner, std::unique_ptr<Workspace> lent)
        : owner_(owner), lent_(std::move(lent)) {}
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    ~Loan() {
      cudaStreamSynchronize(lent_->stream.get());  // after a failure work may be left on it
      const std::lock_guard<std::mutex> lock(owner_.mutex_);
      owner_.idle_.push_back(std::move(lent_));
    }
    Workspace& operator*() const { return *lent_; }

   private:
    Workspaces& owner_;
    std::unique_ptr<Workspace> lent_;
  };

  Loan lend() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!idle_.empty()) {
        std::unique_ptr<Workspace> found = std::move(idle_.back());
        idle_.pop_back();
        return Loan(*this, std::move(found));
      }
    }
    return Loan(*this, std::make_unique<Workspace>());
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> idle_;
};

}  // namespace cexnn::cuda
