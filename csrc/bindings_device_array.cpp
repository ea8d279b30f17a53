// Arrays on the CUDA device, and what is done with them there.
#include "bindings_device_array.hpp"

#include <limits>

#include "bindings.hpp"
#include "embedding_map.hpp"
#include "known.hpp"
#include "known_scores.hpp"
#include "score_units.hpp"

namespace cexnn {
namespace {

void append(const Ids& ids, const Floats& scores, const Ids& told_ids, const Floats& told_scores,
            Ids ids_out, Floats scores_out) {
  if (!ids.on_device() || !told_ids.on_device() || !ids_out.on_device())
    throw std::invalid_argument("ids: expected on the CUDA device");
  if (!scores.on_device() || !told_scores.on_device() || !scores_out.on_device())
    throw std::invalid_argument("scores: expected on the CUDA device");
  const cuda::ScoredItems known{ids.matrix(Device::cuda, "ids"),
                                scores.matrix(Device::cuda, "scores")};
  const cuda::ScoredItems told{told_ids.matrix(Device::cuda, "told_ids"),
                               told_scores.matrix(Device::cuda, "told_scores")};
  const MatrixView<std::int32_t> all_ids = ids_out.writable(Device::cuda, "ids_out");
  const MatrixView<float> all_scores = scores_out.writable(Device::cuda, "scores_out");
  const py::gil_scoped_release release;
  cuda::append(known, told, all_ids, all_scores);
}

// work(scores, out), without the GIL.
template <typename Work>
void in_units(const Floats& scores, Floats& out, const Work& work) {
  if (!scores.on_device() || !out.on_device())
    throw std::invalid_argument("scores: expected on the CUDA device, and out, too");
  const MatrixView<const float> given = scores.matrix(Device::cuda, "scores");
  const MatrixView<float> found = out.writable(Device::cuda, "out");
  const py::gil_scoped_release release;
  work(given, found);
}

using BringRows = void (*)(MatrixView<const float>, MatrixView<float>);

template <BringRows kBring>
void bring_there(const Floats& scores, Floats out) {
  in_units(scores, out, kBring);
}

void bend_there(const AnyArray<double>& knots, const AnyArray<double>& values, bool straight,
                const Floats& scores, Floats out) {
  if (!knots.on_device() || !values.on_device())
    throw std::invalid_argument("knots: expected on the CUDA device, and values, too");
  const ScoreMap map{knots.vector(Device::cuda, "knots"), values.vector(Device::cuda, "values"),
                     straight};
  in_units(scores, out, [&](MatrixView<const float> given, MatrixView<float> found) {
    cuda::bend(map, given, found);
  });
}

bool all_finite(const AnyArray<float>& values, float most) {
  if (!values.on_device()) return cpu::all_within(values.vector(Device::cpu, "values"), most);
  const VectorView<const float> numbers = values.vector(Device::cuda, "values");
  const py::gil_scoped_release release;
  return cuda::all_within(numbers, most);
}

py::object map_embeddings(const Floats& embeddings, float scale, const Floats& by) {
  if (!embeddings.on_device() || !by.on_device())
    throw std::invalid_argument("map_embeddings: expected arrays on the CUDA device");
  const MatrixView<const float> rows = embeddings.matrix(Device::cuda, "embeddings");
  cuda::EmbeddingMap map;
  map.scale = scale;
  std::int64_t n_factors = rows.cols;
  if (by.n_dimensions() == 1) {
    map.network = by.vector(Device::cuda, "map");
  } else if (by.matrix(Device::cuda, "map").rows > 0) {
    map.matrix = by.matrix(Device::cuda, "map");
    n_factors = map.matrix.cols;
  }
  const Result<float> out(rows.rows, n_factors, true);
  {
    const py::gil_scoped_release release;
    cuda::map_embeddings(rows, map, out.view());
  }
  return out.object();
}

}  // namespace

void register_device_array(py::module_& m) {
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
      .def("copy", &DeviceArray::copy)
      .def(
          "__deepcopy__", [](const DeviceArray& a, const py::object&) { return a.copy(); },
          "memo"_a)
      .def("floats", &DeviceArray::floats)
      .def("take", &DeviceArray::take, "rows"_a)
      .def("ravel", &DeviceArray::ravel)
      .def("reshape", &DeviceArray::reshape, "shape"_a)
      .def("__getitem__", &DeviceArray::some, "rows"_a)
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
  m.def("append", &append, "ids"_a, "scores"_a, "told_ids"_a, "told_scores"_a, "ids_out"_a,
        "scores_out"_a);
  m.def("standardise_there", &bring_there<cuda::standardise>, "scores"_a, "out"_a);
  m.def("draw_in_there", &bring_there<cuda::draw_in>, "scores"_a, "out"_a);
  m.def("bend_there", &bend_there, "knots"_a, "values"_a, "straight"_a, "scores"_a, "out"_a);
  m.def("all_finite", &all_finite, "values"_a, "most"_a = std::numeric_limits<float>::max());
  m.def("map_embeddings", &map_embeddings, "embeddings"_a, "scale"_a, "map"_a);
}

}  // namespace cexnn
