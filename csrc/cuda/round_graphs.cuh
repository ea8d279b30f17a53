// Rounds that were seen before, put on the stream as one graph.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "runtime.cuh"

namespace cexnn::cuda {

// All that decides what a round puts on the stream: sizes, addresses, what kernels are given by
// value. Rounds of one shape differ by what lies in memory alone.
class RoundShape {
 public:
  template <typename... Parts>
  void add(const Parts&... parts) {
    (add_one(parts), ...);
  }
  bool operator==(const RoundShape& other) const { return parts_ == other.parts_; }

 private:
  template <typename T>
  void add_one(const T& part) {
    static_assert(std::is_arithmetic_v<T> || std::is_pointer_v<T>);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &part, sizeof part);
    parts_.push_back(bits);
  }

  std::vector<std::uint64_t> parts_;
};

// The graphs of a workspace, for one call at a time. A shape is recorded when it comes for the
// second time: the first time its memory is allocated, and many shapes come once. Of the shapes
// that came last kMost are remembered.
class RoundGraphs {
 public:
  static constexpr std::size_t kMost = 16;

  // Puts on the stream what `work` does. shape() is asked before and after it, which may allocate
  // what the shape names.
  template <typename Shape, typename Work>
  void run(const Stream& stream, const Shape& shape, const Work& work) {
    const RoundShape now = shape();
    const auto found = std::find_if(rounds_.begin(), rounds_.end(),
                                    [&](const Round& round) { return round.shape == now; });
    if (found == rounds_.end()) {
      work();
      remember(shape());
      return;
    }
    std::rotate(rounds_.begin(), found, found + 1);  // the last one to be forgotten
    Round& round = rounds_.front();
    if (!round.refused && !round.graph->recorded()) record(round, stream, work);
    if (round.refused) {
      work();
    } else {
      round.graph->replay(stream);
    }
  }

 private:
  struct Round {
    RoundShape shape;
    std::unique_ptr<Graph> graph;
    bool refused = false;  // it could not be recorded
  };

  void remember(RoundShape shape) {
    if (rounds_.size() == kMost) rounds_.pop_back();
    rounds_.insert(rounds_.begin(), Round{std::move(shape), std::make_unique<Graph>(), false});
  }

  // Where the driver does not record, rounds go on without: what is wrong with `work` itself, it
  // will say again.
  template <typename Work>
  static void record(Round& round, const Stream& stream, const Work& work) {
    try {
      round.graph->record(stream, work);
    } catch (const std::runtime_error&) {
      round.refused = true;
    }
  }

  std::vector<Round> rounds_;  // the last one to come first
};

}  // namespace cexnn::cuda
