// What a call takes from the caller's memory and hands back to it.
#pragma once

#include <cstring>
#include <stdexcept>
#include <vector>

#include "runtime.cuh"
#include "workspace.cuh"

namespace cexnn::cuda {

// Host memory with the array: its own, or a copy in `storage`.
template <typename T>
const T* on_host(const T* data, std::int64_t n, std::vector<T>& storage, const Stream& stream) {
  if (n == 0 || !on_device(data)) return data;
  storage.resize(static_cast<std::size_t>(n));
  copy(data, storage.data(), n, stream);
  stream.wait();
  return storage.data();
}

// A sparse matrix that the host can read.
class HostCsr {
 public:
  HostCsr(const CsrView& rows, const Stream& stream) : view_(rows) {
    view_.indptr = on_host(rows.indptr, rows.rows + 1, indptr_, stream);
    const std::int64_t n = view_.indptr[rows.rows];
    view_.indices = on_host(rows.indices, n, indices_, stream);
    view_.values = on_host(rows.values, n, values_, stream);
  }

  const CsrView& view() const { return view_; }
  CsrView part(std::int64_t first, std::int64_t n) const {
    CsrView rows = view_;
    rows.rows = n;
    rows.indptr += first;
    return rows;
  }

 private:
  std::vector<std::int64_t> indptr_;
  std::vector<std::int32_t> indices_;
  std::vector<float> values_;
  CsrView view_;
};

// Where results wait on the device, and their way to the caller: 32 bits each, the first says
// whether a system was not solvable.
class Results {
 public:
  Results(Workspace& ws, std::int64_t size) : ws_(ws), size_(size + 1) {
    ws.results.reserve(size_);
    ws.fetched.reserve(size_);
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

  // Waits for all that was put on the stream.
  void fetch() const {
    copy<std::int32_t>(ws_.results.data(), ws_.fetched.data(), size_, ws_.stream);
    ws_.stream.wait();
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
  std::int64_t size_;
};

}  // namespace cexnn::cuda
