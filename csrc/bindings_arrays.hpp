// Arrays as the bindings take and give them: NumPy's, or on the CUDA device by DLPack, without a
// copy. Arrays must be C-contiguous and of the exact type: converting is Python's job.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "device.hpp"
#include "dlpack.hpp"
#include "views.hpp"

namespace cexnn {

namespace py = pybind11;

template <typename T>
using NumpyArray = py::array_t<T, py::array::c_style>;

// Elements between the starts of two of the rows, planes ..., of a C-contiguous array.
inline bool is_contiguous(const dlpack::Tensor& tensor) {
  if (tensor.strides == nullptr) return true;
  std::int64_t expected = 1;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    if (tensor.shape[i] == 0) return true;
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

// Whether T is how the core holds such numbers: halves by their bits.
template <typename T>
bool holds(dlpack::DataType dtype) {
  if (dtype.lanes != 1 || dtype.bits != 8 * sizeof(T)) return false;
  if constexpr (std::is_floating_point_v<T>) return dtype.code == dlpack::kFloat;
  if constexpr (std::is_signed_v<T>) return dtype.code == dlpack::kInt;
  return dtype.code == dlpack::kUInt || (sizeof(T) == 2 && dtype.code == dlpack::kFloat);
}

// An array on the CUDA device that somebody lends, given back with the last copy of this.
class Borrowed {
 public:
  // Null where the object lends none: no DLPack, or not on CUDA.
  static std::shared_ptr<const dlpack::ManagedTensor> from(py::handle object) {
    using namespace py::literals;
    if (py::isinstance<py::array>(object) || !py::hasattr(object, "__dlpack_device__")) return {};
    const auto device = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    if (device.first != dlpack::kCuda && device.first != dlpack::kCudaManaged) return {};
    if (device.second != 0)
      throw std::invalid_argument("expected an array on CUDA device 0, got one on device " +
                                  std::to_string(device.second));
    constexpr int kDefaultStream = 1;  // the legacy one, by DLPack's numbers
    const py::capsule capsule = object.attr("__dlpack__")("stream"_a = kDefaultStream);
    cuda::wait_for_default_stream();
    auto* tensor =
        static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (tensor == nullptr || PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0)
      throw py::error_already_set();
    return {tensor, [](dlpack::ManagedTensor* lent) {
              if (lent->deleter != nullptr) lent->deleter(lent);
            }};
  }
};

// An argument: a NumPy array, or one on the device.
template <typename T>
class AnyArray {
 public:
  // False: neither, or not C-contiguous numbers of type T.
  bool load(py::handle object) {
    if (py::isinstance<NumpyArray<T>>(object)) {
      const auto array = py::reinterpret_borrow<NumpyArray<T>>(object);
      data_ = array.data();
      shape_.assign(array.shape(), array.shape() + array.ndim());
      numpy_ = array;
      return true;
    }
    lent_ = Borrowed::from(object);
    if (lent_ == nullptr || !holds<T>(lent_->tensor.dtype) || !is_contiguous(lent_->tensor))
      return false;
    data_ = reinterpret_cast<const T*>(static_cast<const char*>(lent_->tensor.data) +
                                       lent_->tensor.byte_offset);
    shape_.assign(lent_->tensor.shape, lent_->tensor.shape + lent_->tensor.ndim);
    return true;
  }

  bool on_device() const { return lent_ != nullptr; }

  VectorView<const T> vector(Device device, const char* name) const {
    check(device, name, 1);
    return {data_, shape_[0]};
  }
  MatrixView<const T> matrix(Device device, const char* name) const {
    check(device, name, 2);
    return {data_, shape_[0], shape_[1]};
  }
  MatrixView<T> writable(Device device, const char* name) {
    check(device, name, 2);
    T* data = on_device() ? const_cast<T*>(data_)
                          : py::reinterpret_borrow<NumpyArray<T>>(numpy_).mutable_data();
    return {data, shape_[0], shape_[1]};
  }

 private:
  void check(Device device, const std::string& name, std::size_t n_dimensions) const {
    if (shape_.size() != n_dimensions)
      throw std::invalid_argument(name + ": expected " + std::to_string(n_dimensions) +
                                  (n_dimensions == 1 ? " dimension" : " dimensions"));
    if (on_device() && device == Device::cpu)
      throw std::invalid_argument(name +
                                  ": expected a NumPy array with device 'cpu', got one on "
                                  "the CUDA device");
  }

  py::object numpy_;
  std::shared_ptr<const dlpack::ManagedTensor> lent_;
  const T* data_ = nullptr;
  std::vector<std::int64_t> shape_;
};

// An array of the core's own on the device.
class DeviceArray {
 public:
  DeviceArray(py::dtype dtype, std::vector<std::int64_t> shape)
      : dtype_(std::move(dtype)), shape_(std::move(shape)) {
    memory_ = cuda::allocate(n_bytes());
  }
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
    for (const std::int64_t size : shape_) n *= size;
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

inline void register_device_array(py::module_& m) {
  using namespace py::literals;
  py::class_<DeviceArray>(m, "DeviceArray")
      .def(py::init<const py::array&>(), "array"_a.noconvert())
      .def_static(
          "empty",
          [](std::vector<std::int64_t> shape, const py::object& dtype) {
            for (const std::int64_t size : shape)
              if (size < 0) throw std::invalid_argument("shape: expected no negative sizes");
            return DeviceArray(py::dtype::from_args(dtype), std::move(shape));
          },
          "shape"_a, "dtype"_a)
      .def("numpy", &DeviceArray::numpy)
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
}

}  // namespace cexnn

namespace pybind11::detail {
template <typename T>
struct type_caster<cexnn::AnyArray<T>> {
  PYBIND11_TYPE_CASTER(cexnn::AnyArray<T>,
                       const_name("array of ") + npy_format_descriptor<T>::name);
  bool load(handle source, bool) { return value.load(source); }
};
}  // namespace pybind11::detail
