// What one call on the device needs for itself, kept for the calls after it.
#pragma once

#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "query_update.cuh"
#include "topk.cuh"

namespace cexnn::cuda {

// Arrays that go to the device in one copy.
class Upload {
 public:
  void clear() { size_ = 0; }

  // Where the array will begin on the device, for at().
  template <typename T>
  std::int64_t add(const T* data, std::int64_t n) {
    const std::int64_t begin = size_, bytes = n * static_cast<std::int64_t>(sizeof(T));
    size_ = (begin + bytes + 15) / 16 * 16;
    if (size_ > host_.size()) {
      PinnedBuffer<unsigned char> larger(2 * size_);
      if (begin > 0) std::memcpy(larger.data(), host_.data(), static_cast<std::size_t>(begin));
      host_ = std::move(larger);
    }
    if (bytes > 0) std::memcpy(host_.data() + begin, data, static_cast<std::size_t>(bytes));
    return begin;
  }

  void send(const Stream& stream) {
    device_.reserve(size_);
    copy<unsigned char>(host_.data(), device_.data(), size_, stream);
  }

  template <typename T>
  const T* at(std::int64_t begin) const {
    return reinterpret_cast<const T*>(device_.data() + begin);
  }

 private:
  PinnedBuffer<unsigned char> host_;
  DeviceBuffer<unsigned char> device_;
  std::int64_t size_ = 0;
};

// Of one call at a time.
struct Workspace {
  Stream stream;
  Upload upload;
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
