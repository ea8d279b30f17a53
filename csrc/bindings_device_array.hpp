// Arrays as the bindings give them: NumPy's, or the core's own on the CUDA device.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings_arrays.hpp"
#include "device.hpp"
#include "dlpack.hpp"
#include "known.hpp"
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
    if (!is_contiguous(tensor))
      throw std::invalid_argument("expected a C-contiguous array on the CUDA device");
    return {dtype_of(tensor.dtype),
            {tensor.shape, tensor.shape + tensor.ndim},
            {lent, static_cast<char*>(tensor.data) + tensor.byte_offset}};
  }
  DeviceArray reshape(std::vector<std::int64_t> shape) const {
    DeviceArray same(dtype_, std::move(shape), memory_);
    if (same.n_bytes() != n_bytes())
      throw std::invalid_argument("shape: expected one with as many elements");
    return same;
  }
  DeviceArray ravel() const { return {dtype_, {n_bytes() / dtype_.itemsize()}, memory_}; }
  explicit DeviceArray(const py::array& array)
      : DeviceArray(array.dtype(), {array.shape(), array.shape() + array.ndim()}) {
    if ((array.flags() & py::array::c_style) == 0)
      throw std::invalid_argument("array: expected a C-contiguous one");
    cuda::copy_bytes(array.data(), memory_.get(), n_bytes());
  }

  py::array numpy() const {
    py::array array(dtype_, shape_);
    cuda::copy_bytes(memory_.get(), array.mutable_data(), n_bytes());
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

inline py::tuple append(const AnyArray<std::int32_t>& ids, const AnyArray<float>& scores,
                        const AnyArray<std::int32_t>& told_ids,
                        const AnyArray<float>& told_scores) {
  if (!ids.on_device() || !scores.on_device() || !told_ids.on_device() || !told_scores.on_device())
    throw std::invalid_argument("append: expected arrays on the CUDA device");
  const cuda::ScoredItems known{ids.matrix(Device::cuda, "ids"),
                                scores.matrix(Device::cuda, "scores")};
  const cuda::ScoredItems told{told_ids.matrix(Device::cuda, "told_ids"),
                               told_scores.matrix(Device::cuda, "told_scores")};
  const std::int64_t n = known.ids.rows, cols = known.ids.cols + told.ids.cols;
  const Result<std::int32_t> ids_out(n, cols, true);
  const Result<float> scores_out(n, cols, true);
  {
    const py::gil_scoped_release release;
    cuda::append(known, told, ids_out.view(), scores_out.view());
  }
  return py::make_tuple(ids_out.object(), scores_out.object());
}

inline bool all_finite(const AnyArray<float>& scores) {
  if (!scores.on_device()) throw std::invalid_argument("scores: expected on the CUDA device");
  const VectorView<const float> values = scores.vector(Device::cuda, "scores");
  const py::gil_scoped_release release;
  return cuda::all_finite(values);
}

inline void register_device_array(py::module_& m) {
  using namespace py::literals;
  py::class_<DeviceArray>(m, "DeviceArray")
      .def(py::init<const py::array&>(), "array"_a.noconvert())
      .def_static(
          "empty",
          [](std::vector<std::int64_t> shape, const py::object& dtype) {
            return DeviceArray(py::dtype::from_args(dtype), std::move(shape));
          },
          "shape"_a, "dtype"_a)
      .def_static("from_dlpack", &DeviceArray::borrow, "array"_a)
      .def("numpy", &DeviceArray::numpy)
      .def("ravel", &DeviceArray::ravel)
      .def("reshape", &DeviceArray::reshape, "shape"_a)
      .def("__len__",
           [](const DeviceArray& a) {
             if (a.shape().empty()) throw py::type_error("len() of an array without dimensions");
             return a.shape()[0];
           })
      .def_property_readonly("dtype", &DeviceArray::dtype)
      .def_property_readonly("shape",
                             [](const DeviceArray& a) { return py::tuple(py::cast(a.shape())); })
      .def("__dlpack_device__",
           [](const DeviceArray&) { return std::pair<int, int>(dlpack::kCuda, 0); })
      .def(
          "__dlpack__",
          [](const DeviceArray& array, const py::object&, const py::object&,
             const std::optional<std::pair<int, int>>& device, std::optional<bool> copy) {
            if (device && *device != std::pair<int, int>(dlpack::kCuda, 0))
              throw py::buffer_error("dl_device: the array is lent on its own device only");
            if (copy.value_or(false)) throw py::buffer_error("copy: the array is only lent");
            return array.lend();
          },
          // Nothing is under way on an array that the core has given out: no stream need wait.
          py::kw_only(), "stream"_a = py::none(), "max_version"_a = py::none(),
          "dl_device"_a = py::none(), "copy"_a = py::none())
      .def_property_readonly("__cuda_array_interface__", [](const DeviceArray& array) {
        return py::dict(
            "shape"_a = py::tuple(py::cast(array.shape())), "typestr"_a = array.dtype().attr("str"),
            "data"_a = py::make_tuple(reinterpret_cast<std::uintptr_t>(array.data()), false),
            "version"_a = 3, "strides"_a = py::none(), "stream"_a = py::none());
      });
  m.def("append", &append, "ids"_a, "scores"_a, "told_ids"_a, "told_scores"_a);
  m.def("all_finite", &all_finite, "scores"_a);
}

}  // namespace cexnn
