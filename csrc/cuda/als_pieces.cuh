// What of one side of the factorisation is on the device at a time, where not all of it fits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "memory.cuh"
#include "ridge_plan.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

// Arrays filled on the host, in pinned memory, that reach the device in one copy.
class Staging {
 public:
  template <typename T>
  struct Place {
    T* host;
    T* device;
  };

  static std::int64_t bytes_of(std::int64_t n, std::size_t size) {
    return padded(n * static_cast<std::int64_t>(size), 16);
  }

  // Forgets what was taken. What bytes_of says of each array to come, in all. Nothing may be under
  // way.
  void start(std::int64_t bytes) {
    pinned_.reserve(bytes);
    device_.reserve(bytes);
    used_ = 0;
  }
  template <typename T>
  Place<T> take(std::int64_t n) {
    const Place<T> place{reinterpret_cast<T*>(pinned_.data() + used_),
                         reinterpret_cast<T*>(device_.data() + used_)};
    used_ += bytes_of(n, sizeof(T));
    return place;
  }
  template <typename T>
  Place<T> take(const T* data, std::int64_t n) {
    const Place<T> place = take<T>(n);
    if (n > 0) std::memcpy(place.host, data, static_cast<std::size_t>(n) * sizeof(T));
    return place;
  }
  void send(const Stream& stream) const {
    copy(static_cast<const unsigned char*>(pinned_.data()), device_.data(), used_, stream);
  }

 private:
  PinnedBuffer<unsigned char> pinned_;
  DeviceBuffer<unsigned char> device_;
  std::int64_t used_ = 0;
};

// Columns that some scores are of, each once, and the scores' places among them.
class Renumbering {
 public:
  explicit Renumbering(std::int64_t n_cols) : places_(static_cast<std::size_t>(n_cols), -1) {}

  void clear() {
    for (const std::int32_t id : ids_) places_[id] = -1;
    ids_.clear();
  }
  std::int32_t add(std::int32_t id) {
    if (places_[id] < 0) {
      places_[id] = static_cast<std::int32_t>(ids_.size());
      ids_.push_back(id);
    }
    return places_[id];
  }
  const std::vector<std::int32_t>& ids() const { return ids_; }

 private:
  std::vector<std::int32_t> places_;  // -1: not among them
  std::vector<std::int32_t> ids_;     // in the order of places
};

// Whole rows, or of one row that is too long the scores of some of its splits.
struct Piece {
  std::int64_t first_row = 0, n_rows = 0;
  std::int64_t first_entry = 0, n_entries = 0;
  std::int32_t first_split = 0, n_splits = 0;  // 0: whole rows
};

// At most what a row adds to the lists of its plan.
inline std::int64_t list_bytes(std::int64_t n, std::int64_t d) {
  const std::int64_t part = scores_a_split(std::max<std::int64_t>(n, 1));
  const std::int64_t n_splits = n < d ? 1 : (n + part - 1) / part;
  const std::int64_t size = std::min(n, d), tile = size <= 64 ? 64 : 128;
  const std::int64_t n_tiles = (size + tile - 1) / tile;
  return static_cast<std::int64_t>(sizeof(System)) +
         n_splits * static_cast<std::int64_t>(sizeof(SystemPart) +
                                              sizeof(GramTask) * n_tiles * (n_tiles + 1) / 2);
}

// Cuts the rows of a matrix into pieces of no more than so many bytes, factors of their columns
// included, but for what takes more alone: a row of which a split does, or that has no two.
class PieceCutter {
 public:
  PieceCutter(const CsrView& scores, std::int64_t d, std::int64_t bytes)
      : scores_(scores), d_(d), bytes_(bytes), columns_(scores.cols) {}

  std::vector<Piece> cut() {
    std::int64_t used = 0;
    for (std::int64_t r = 0; r < scores_.rows; ++r) {
      std::int64_t more = row_bytes(r);
      if (used > 0 && used + more > bytes_) {
        columns_.clear();
        used = 0;
        more = row_bytes(r);
      }
      if (more > bytes_ && is_split(scores_.row_size(r))) {
        add_splits(r);
        columns_.clear();
        used = 0;
        continue;
      }
      if (used == 0) pieces_.push_back({r, 0, scores_.indptr[r], 0, 0, 0});
      ++pieces_.back().n_rows;
      pieces_.back().n_entries += scores_.row_size(r);
      used += more;
    }
    return pieces_;
  }

 private:
  static constexpr std::int64_t kEntryBytes = sizeof(std::int32_t) + sizeof(float);

  bool is_split(std::int64_t n) const { return n >= d_ && scores_a_split(n) < n; }

  // What the row adds: columns that are new, scores, where it starts, its prior and factors, and
  // its part of the plan.
  std::int64_t row_bytes(std::int64_t r) {
    const auto known = static_cast<std::int64_t>(columns_.ids().size());
    for (const std::int32_t id : scores_.row_indices(r)) columns_.add(id);
    const auto n_new = static_cast<std::int64_t>(columns_.ids().size()) - known;
    const std::int64_t n = scores_.row_size(r);
    return (n_new + 2) * d_ * static_cast<std::int64_t>(sizeof(float)) + n * kEntryBytes +
           static_cast<std::int64_t>(sizeof(std::int64_t)) + list_bytes(n, d_);
  }

  void add_splits(std::int64_t r) {
    const std::int64_t n = scores_.row_size(r), part = scores_a_split(n);
    const std::int64_t n_splits = (n + part - 1) / part;
    const std::int64_t split_bytes =
        part * (d_ * static_cast<std::int64_t>(sizeof(float)) + kEntryBytes);
    const std::int64_t together = std::max<std::int64_t>(1, bytes_ / split_bytes);
    for (std::int64_t split = 0; split < n_splits; split += together) {
      const std::int64_t end = std::min(split + together, n_splits), begin = split * part;
      pieces_.push_back({r, 1, scores_.indptr[r] + begin, std::min(end * part, n) - begin,
                         static_cast<std::int32_t>(split), static_cast<std::int32_t>(end - split)});
    }
  }

  CsrView scores_;
  std::int64_t d_;
  std::int64_t bytes_;
  Renumbering columns_;
  std::vector<Piece> pieces_;
};

}  // namespace
}  // namespace cexnn::cuda
