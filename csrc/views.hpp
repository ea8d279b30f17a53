// A pointer and a shape; views own nothing and go by value.
#pragma once

#include <cstdint>

namespace cexnn {

template <typename T>
struct VectorView {
  T* data = nullptr;
  std::int64_t size = 0;

  T& operator[](std::int64_t i) const { return data[i]; }
  T* begin() const { return data; }
  T* end() const { return data + size; }
  bool empty() const { return size == 0; }
};

// Row-major and contiguous: row r starts at data + r * cols.
template <typename T>
struct MatrixView {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;

  T* row(std::int64_t r) const { return data + r * cols; }
  VectorView<T> row_view(std::int64_t r) const { return {row(r), cols}; }
};

// A sparse matrix by rows. Stored means known, whatever the value; a zero is a score.
struct CsrView {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  const std::int64_t* indptr = nullptr;   // (rows + 1,)
  const std::int32_t* indices = nullptr;  // (indptr[rows],)
  const float* values = nullptr;          // (indptr[rows],)

  std::int64_t row_size(std::int64_t r) const { return indptr[r + 1] - indptr[r]; }
  VectorView<const std::int32_t> row_indices(std::int64_t r) const {
    return {indices + indptr[r], row_size(r)};
  }
  VectorView<const float> row_values(std::int64_t r) const {
    return {values + indptr[r], row_size(r)};
  }
};

}  // namespace cexnn
