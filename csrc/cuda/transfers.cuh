// What a call takes from the caller's memory and hands back to it.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "../searcher.hpp"
#include "ids.cuh"
#include "memory.cuh"
#include "rank.cuh"
#include "workspace.cuh"

namespace cexnn::cuda {

// `n` rows of a sparse matrix. The indptr is the host's; the other arrays lie where they lie.
inline CsrView rows_of(CsrView matrix, std::int64_t first, std::int64_t n) {
  matrix.rows = n;
  matrix.indptr += first;
  return matrix;
}

// Whether all ids are from `least` to `end` - 1, wherever they lie.
inline bool within(const std::int32_t* ids, std::int64_t n, std::int64_t least, std::int64_t end,
                   Workspace& ws) {
  if (n == 0 || !on_device(ids)) {
    for (std::int64_t e = 0; e < n; ++e)
      if (ids[e] < least || ids[e] >= end) return false;
    return true;
  }
  return all_within(ids, n, least, end, ws.bad, ws.stream);
}

inline void check_answer(std::int64_t n, MatrixView<std::int32_t> ids, MatrixView<float> approx) {
  if (ids.rows != n || approx.rows != n || ids.cols != approx.cols)
    throw std::invalid_argument("ids_out: expected (n_queries, k)");
  if (ids.cols > std::numeric_limits<std::int32_t>::max())
    throw std::invalid_argument("ids_out: expected fewer than 2^31 items a query");
}

// How much of the results of n queries the host gets: their flags, and where they do not stay on
// the device, the answers.
inline std::int64_t fetched(std::int64_t n, MatrixView<std::int32_t> ids,
                            MatrixView<float> approx) {
  if (ids.cols == 0) return 0;
  return on_device(ids.data) && on_device(approx.data) ? n : n * (2 * ids.cols + 1);
}

// Queries on the device, and how many answers each is asked for in a ranking.
struct Asked {
  Asked(const float* factors, std::int64_t stride, const Mask* masks, Ranking by,
        std::int64_t n_queries, MatrixView<std::int32_t> ids_out, MatrixView<float> approx_out)
      : rows{factors, stride, masks, by == Ranking::both ? 1 : 0},
        ranking(by),
        n_rows(answers_of(by) * n_queries),
        k(ids_out.cols),
        n_fetched(fetched(n_rows, ids_out, approx_out)) {}

  Queries rows;
  Ranking ranking;
  std::int64_t n_rows;
  std::int64_t k;
  std::int64_t n_fetched;  // of the results, by the host
};

// Where results wait on the device, and their way to the caller: 32 bits each, the first says
// whether a system was not solvable.
class Results {
 public:
  Results(Workspace& ws, std::int64_t size) : ws_(ws) {
    ws.results.reserve(size + 1);
    ws.fetched.reserve(size + 1);
  }

  int* failed() const { return ws_.results.data(); }
  template <typename T>
  T* device(std::int64_t begin) const {
    return reinterpret_cast<T*>(ws_.results.data() + 1 + begin);
  }
  template <typename T>
  T* host(std::int64_t begin) const {
    return reinterpret_cast<T*>(ws_.fetched.data() + 1 + begin);
  }

  // Puts on the stream what brings the first n of them to the host.
  void send(std::int64_t n) const {
    copy<std::int32_t>(ws_.results.data(), ws_.fetched.data(), n + 1, ws_.stream);
  }

  void check_solved() const {
    if (ws_.fetched.data()[0] != 0)
      throw std::runtime_error("the system of a query is not solvable: factors not finite?");
  }

  template <typename T>
  void deliver(std::int64_t begin, T* out, std::int64_t n) const {
    if (n == 0) return;
    if (on_device(out)) {
      copy<T>(device<T>(begin), out, n, ws_.stream);
      ws_.stream.wait();
    } else {
      std::memcpy(out, host<T>(begin), static_cast<std::size_t>(n) * sizeof(T));
    }
  }

 private:
  Workspace& ws_;
};

}  // namespace cexnn::cuda
