// What one call on the device needs for itself, kept for the calls after it.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "query_update.cuh"
#include "topk.cuh"

namespace cexnn::cuda {

// Of one call at a time.
struct Workspace {
  Stream stream;
  Gathered upload;
  std::vector<KnownRows> rows;

  DeviceBuffer<float> inputs;         // queries or priors, as they came
  DeviceBuffer<float> queries;        // (n_queries, stride)
  DeviceBuffer<std::int32_t> tables;  // of the masks
  DeviceBuffer<Key> keys;
  DeviceBuffer<std::int32_t> results;  // ids, approximate scores, unsure queries, failures
  PinnedBuffer<std::int32_t> fetched;

  DeviceBuffer<int> counts;  // of lists and what goes with them
  DeviceBuffer<uint4> packed;
  DeviceBuffer<float> list_floats;

  DeviceBuffer<double> numbers;  // of known items
  DeviceBuffer<double> projected;
  DeviceBuffer<double> columns;
  DeviceBuffer<double> inverses;  // where there is no state
  DeviceBuffer<std::int32_t> asked;
  DeviceBuffer<int> bad;  // whether an id was out of range
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
