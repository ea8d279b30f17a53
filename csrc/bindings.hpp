// What the parts of the extension module share: arrays to views, GIL released; no arithmetic.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "bindings_arrays.hpp"

namespace cexnn {

void register_als(py::module_& m);
void register_device_array(py::module_& m);
void register_known_scores(py::module_& m);
void register_pack(py::module_& m);
void register_searcher(py::module_& m);

using Floats = AnyArray<float>;
using Ids = AnyArray<std::int32_t>;
using Longs = AnyArray<std::int64_t>;
using Offsets = NumpyArray<std::int64_t>;  // of CSR rows, which the host reads, too

// Of a CSR matrix with so many values.
inline void check_starts(VectorView<const std::int64_t> starts, std::int64_t n) {
  if (starts.empty() || starts[0] != 0 || starts[starts.size - 1] != n)
    throw std::invalid_argument("indptr: expected to run from 0 to the number of indices");
  for (std::int64_t r = 1; r < starts.size; ++r)
    if (starts[r] < starts[r - 1]) throw std::invalid_argument("indptr: expected to ascend");
}

inline CsrView csr_of(const Offsets& indptr, const Ids& indices, const Floats* values,
                      std::int64_t cols, Device device) {
  if (indptr.ndim() != 1) throw std::invalid_argument("indptr: expected 1 dimension");
  const VectorView<const std::int64_t> starts{indptr.data(), indptr.shape(0)};
  const VectorView<const std::int32_t> ids = indices.vector(device, "indices");
  check_starts(starts, ids.size);
  VectorView<const float> numbers;
  if (values != nullptr) {
    numbers = values->vector(device, "values");
    if (numbers.size != ids.size)
      throw std::invalid_argument("values: expected one for each index");
  }
  return {starts.size - 1, cols, starts.data, ids.data, numbers.data};
}

}  // namespace cexnn
