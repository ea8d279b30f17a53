// Arrays as the bindings take them: NumPy's, or on the CUDA device by DLPack, without a copy.
// Arrays must be C-contiguous and of the exact type: converting is Python's job.
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
    {
      const py::gil_scoped_release release;  // the lender may have much under way
      cuda::wait_for_default_stream();
    }
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
  std::size_t n_dimensions() const { return shape_.size(); }

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
    return {mutable_data(), shape_[0], shape_[1]};
  }
  VectorView<T> writable_vector(Device device, const char* name) {
    check(device, name, 1);
    return {mutable_data(), shape_[0]};
  }

 private:
  T* mutable_data() {
    return on_device() ? const_cast<T*>(data_)
                       : py::reinterpret_borrow<NumpyArray<T>>(numpy_).mutable_data();
  }

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

}  // namespace cexnn

namespace pybind11::detail {
template <typename T>
struct type_caster<cexnn::AnyArray<T>> {
  PYBIND11_TYPE_CASTER(cexnn::AnyArray<T>,
                       const_name("array of ") + npy_format_descriptor<T>::name);
  bool load(handle source, bool) { return value.load(source); }
};
}  // namespace pybind11::detail
