// Arrays as the bindings give them: NumPy's, or the core's own on the CUDA device.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings_arrays.hpp"
#include "device.hpp"
#include "device_arrays.hpp"
#include "dlpack.hpp"
#include "views.hpp"

namespace cexnn {

// What NumPy calls such numbers.
inline py::dtype dtype_of(dlpack::DataType dtype) {
  const char kind = dtype.code == dlpack::kFloat  ? 'f'
                    : dtype.code == dlpack::kInt  ? 'i'
                    : dtype.code == dlpack::kUInt ? 'u'
                                                  : '?';
  const bool wide = dtype.bits == 16 || dtype.bits == 32 || dtype.bits == 64;
  if (kind == '?' || dtype.lanes != 1 || !(wide || (dtype.bits == 8 && kind != 'f')))
    throw std::invalid_argument(
        "expected integers or floats of a type that NumPy has (bfloat16 "
        "is none)");
  return py::dtype(kind + std::to_string(dtype.bits / 8));
}

// An array on the device: the core's own, or borrowed.
class DeviceArray {
 public:
  DeviceArray(py::dtype dtype, std::vector<std::int64_t> shape)
      : dtype_(std::move(dtype)), shape_(std::move(shape)) {
    type_code();  // throws for what is not numbers: pointers, or nothing
    memory_ = cuda::allocate(n_bytes());
  }
  static DeviceArray borrow(py::handle object) {
    const std::shared_ptr<const dlpack::ManagedTensor> lent = Borrowed::from(object);
    if (lent == nullptr) throw std::invalid_argument("expected an array on the CUDA device");
    const dlpack::Tensor& tensor = lent->tensor;
    char* data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    const DeviceArray same(dtype_of(tensor.dtype), {tensor.shape, tensor.shape + tensor.ndim},
                           {lent, data});
    return is_contiguous(tensor) ? same : same.copied(tensor.strides);
  }
  DeviceArray reshape(std::vector<std::int64_t> shape) const {
    DeviceArray same(dtype_, std::move(shape), memory_);
    if (same.n_bytes() != n_bytes())
      throw std::invalid_argument("shape: expected one with as many elements");
    return same;
  }
  // Rows of the first axis, which lie where they lay.
  DeviceArray some(const py::slice& rows) const {
    if (shape_.empty()) throw py::index_error("an array without dimensions has no rows");
    py::ssize_t begin = 0, end = 0, step = 0, n = 0;
    if (!rows.compute(shape_[0], &begin, &end, &step, &n)) throw py::error_already_set();
    if (step != 1) throw std::invalid_argument("rows: expected a step of 1");
    std::vector<std::int64_t> shape = shape_;
    shape[0] = n;
    const std::int64_t bytes_before = shape_[0] == 0 ? 0 : n_bytes() / shape_[0] * begin;
    return {dtype_, std::move(shape), {memory_, static_cast<char*>(data()) + bytes_before}};
  }
  DeviceArray ravel() const { return {dtype_, {size()}, memory_}; }
  // As float32: itself where it is.
  DeviceArray floats() const {
    if (dtype_.kind() != 'f') throw std::invalid_argument("expected floating-point numbers");
    if (dtype_.itemsize() == sizeof(float)) return *this;
    DeviceArray converted(py::dtype::of<float>(), shape_);
    const std::int64_t n = size();
    const int bits = 8 * static_cast<int>(dtype_.itemsize());
    const py::gil_scoped_release release;
    cuda::to_floats(data(), bits, n, static_cast<float*>(converted.data()));
    return converted;
  }
  DeviceArray copy() const {
    DeviceArray same(dtype_, shape_);  // not const: moved without the GIL, where not in place
    const std::int64_t bytes = n_bytes();
    const py::gil_scoped_release release;
    cuda::copy_bytes(data(), same.data(), bytes);
    return same;
  }
  // Some rows, or elements of a vector, one after another.
  DeviceArray take(const AnyArray<std::int32_t>& rows) const {
    if (shape_.empty()) throw std::invalid_argument("expected an array of one dimension at least");
    const VectorView<const std::int32_t> numbers = rows.vector(Device::cuda, "rows");
    std::vector<std::int64_t> shape = shape_;
    shape[0] = numbers.size;
    DeviceArray taken(dtype_, shape);
    shape[0] = 1;
    const std::int64_t row_bytes = DeviceArray(dtype_, std::move(shape), memory_).n_bytes();
    const py::gil_scoped_release release;
    cuda::take_rows(data(), shape_[0], row_bytes, numbers, taken.data());
    return taken;
  }
  explicit DeviceArray(const py::array& array)
      : DeviceArray(array.dtype(), {array.shape(), array.shape() + array.ndim()}) {
    if ((array.flags() & py::array::c_style) == 0)
      throw std::invalid_argument("array: expected a C-contiguous one");
    const void* from = array.data();
    const py::gil_scoped_release release;
    cuda::copy_bytes(from, memory_.get(), n_bytes());
  }

  py::array numpy() const {
    py::array array(dtype_, shape_);
    void* to = array.mutable_data();
    {
      const py::gil_scoped_release release;
      cuda::copy_bytes(memory_.get(), to, n_bytes());
    }
    return array;
  }

  const py::dtype& dtype() const { return dtype_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  void* data() const { return memory_.get(); }
  std::int64_t n_bytes() const {
    std::int64_t n = dtype_.itemsize();
    for (const std::int64_t size : shape_)
      if (size < 0 || __builtin_mul_overflow(n, size, &n))
        throw std::invalid_argument("shape: expected no negative sizes, and fewer than 2^63 bytes");
    return n;
  }

  py::capsule lend() const {
    struct Loan {
      dlpack::ManagedTensor tensor;
      std::shared_ptr<void> memory;
      std::vector<std::int64_t> shape;
    };
    auto loan = std::make_unique<Loan>();
    loan->memory = memory_;
    loan->shape = shape_;
    loan->tensor = {{memory_.get(),
                     {dlpack::kCuda, 0},
                     static_cast<std::int32_t>(shape_.size()),
                     {type_code(), static_cast<std::uint8_t>(8 * dtype_.itemsize()), 1},
                     loan->shape.data(),
                     nullptr,
                     0},
                    loan.get(),
                    [](dlpack::ManagedTensor* lent) { delete static_cast<Loan*>(lent->manager); }};
    py::capsule capsule(&loan->tensor, "dltensor", [](PyObject* object) {
      if (PyCapsule_IsValid(object, "dltensor") == 0) return;  // taken: its taker gives it back
      auto* lent = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(object, "dltensor"));
      lent->deleter(lent);
    });
    loan.release();
    return capsule;
  }

 private:
  DeviceArray(py::dtype dtype, std::vector<std::int64_t> shape, std::shared_ptr<void> memory)
      : dtype_(std::move(dtype)), shape_(std::move(shape)), memory_(std::move(memory)) {}

  std::int64_t size() const { return n_bytes() / dtype_.itemsize(); }

  // A C-contiguous copy of what lies so many elements apart.
  DeviceArray copied(const std::int64_t* strides) const {
    cuda::StridedArray from;
    from.data = data();
    from.element_bytes = static_cast<int>(dtype_.itemsize());
    from.n_dimensions = static_cast<int>(shape_.size());
    if (from.n_dimensions > cuda::kMostDimensions)
      throw std::invalid_argument("expected at most " + std::to_string(cuda::kMostDimensions) +
                                  " dimensions, or a C-contiguous array");
    std::copy(shape_.begin(), shape_.end(), from.shape);
    std::copy(strides, strides + shape_.size(), from.strides);
    DeviceArray copy(dtype_, shape_);
    const py::gil_scoped_release release;
    cuda::copy_strided(from, copy.data());
    return copy;
  }

  std::uint8_t type_code() const {
    switch (dtype_.kind()) {
      case 'f':
        return dlpack::kFloat;
      case 'i':
        return dlpack::kInt;
      case 'u':
        return dlpack::kUInt;
      default:
        throw std::invalid_argument("dtype: expected integers or floats");
    }
  }

  py::dtype dtype_;
  std::vector<std::int64_t> shape_;
  std::shared_ptr<void> memory_;
};

// A matrix to be filled: NumPy's, or on the device.
template <typename T>
class Result {
 public:
  Result(std::int64_t rows, std::int64_t cols, bool on_device) : rows_(rows), cols_(cols) {
    if (on_device) {
      DeviceArray array(py::dtype::of<T>(), {rows, cols});
      data_ = static_cast<T*>(array.data());
      object_ = py::cast(std::move(array));
    } else {
      NumpyArray<T> array({rows, cols});
      data_ = array.mutable_data();
      object_ = std::move(array);
    }
  }

  MatrixView<T> view() const { return {data_, rows_, cols_}; }
  py::object object() const { return object_; }

 private:
  std::int64_t rows_, cols_;
  T* data_ = nullptr;
  py::object object_;
};

}  // namespace cexnn
