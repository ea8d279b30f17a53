// Pairs of token lists to batches, and batches' logits to scores.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>

#include "bindings.hpp"
#include "bindings_device_array.hpp"
#include "dispatch.hpp"
#include "pair_order.hpp"

namespace cexnn {
namespace {

using PyTokenLists = std::pair<Longs, Ids>;

TokenLists lists_of(const PyTokenLists& lists, Device device, const char* name) {
  return {lists.first.vector(device, name), lists.second.vector(device, name)};
}

void py_pack_pairs(const PyTokenLists& queries, const PyTokenLists& items, const Ids& rows,
                   const Ids& item_ids, const PyTokenLists& constants, const Ids& constant_types,
                   std::int32_t query_type, std::int32_t item_type, std::int32_t pad_id,
                   std::int32_t pad_type, std::int64_t max_length, Longs input_ids,
                   Longs attention_mask, Longs token_type_ids, const std::string& device_name) {
  const Device device = device_named(device_name);
  const PairFormat format{lists_of(constants, Device::cpu, "constants"),
                          constant_types.vector(Device::cpu, "constant_types"),
                          query_type,
                          item_type,
                          pad_id,
                          pad_type};
  const TokenLists query_lists = lists_of(queries, device, "queries");
  const TokenLists item_lists = lists_of(items, device, "items");
  const VectorView<const std::int32_t> row_view = rows.vector(device, "rows");
  const VectorView<const std::int32_t> item_view = item_ids.vector(device, "item_ids");
  const MatrixView<std::int64_t> ids = input_ids.writable(device, "input_ids");
  const MatrixView<std::int64_t> mask = attention_mask.writable(device, "attention_mask");
  const MatrixView<std::int64_t> types = token_type_ids.writable(device, "token_type_ids");
  const py::gil_scoped_release release;
  pack_pairs(device, query_lists, item_lists, row_view, item_view, format, max_length, ids, mask,
             types);
}

// (p,) on the device, to be filled.
template <typename T>
struct Room {
  DeviceArray array;

  explicit Room(std::int64_t n) : array(py::dtype::of<T>(), {n}) {}
  VectorView<T> view() const { return {static_cast<T*>(array.data()), array.shape()[0]}; }
};

py::tuple py_order_pairs(const Longs& query_offsets, const Longs& item_offsets,
                         const NumpyArray<bool>& cut_queries, std::int64_t n_constants,
                         const Ids& rows, const Ids& item_ids, std::int64_t most) {
  static_assert(sizeof(bool) == sizeof(std::uint8_t));
  const cuda::PairSizes sizes{
      query_offsets.vector(Device::cuda, "query_offsets"),
      item_offsets.vector(Device::cuda, "item_offsets"),
      {reinterpret_cast<const std::uint8_t*>(cut_queries.data()), cut_queries.size()},
      n_constants};
  const VectorView<const std::int32_t> row_view = rows.vector(Device::cuda, "rows");
  const VectorView<const std::int32_t> item_view = item_ids.vector(Device::cuda, "item_ids");
  const std::int64_t n = row_view.size;
  const Room<std::int32_t> rows_out(n), items_out(n), places(n);
  const Room<float> scores(n);
  NumpyArray<std::int32_t> counts({most + 2, std::int64_t{2}});
  const MatrixView<std::int32_t> counts_view{counts.mutable_data(), most + 2, 2};
  {
    const py::gil_scoped_release release;
    cuda::order_pairs(sizes, row_view, item_view, most,
                      {rows_out.view(), items_out.view(), places.view(), scores.view()},
                      counts_view);
  }
  return py::make_tuple(rows_out.array, items_out.array, places.array, scores.array, counts);
}

template <typename T>
void py_place_logits(const AnyArray<T>& logits, const Ids& places, AnyArray<float> scores) {
  if (!logits.on_device() || !places.on_device() || !scores.on_device())
    throw std::invalid_argument("place_logits: expected arrays on the CUDA device");
  const VectorView<const T> from = logits.vector(Device::cuda, "logits");
  const VectorView<const std::int32_t> to = places.vector(Device::cuda, "places");
  const VectorView<float> out = scores.writable_vector(Device::cuda, "scores");
  const py::gil_scoped_release release;
  cuda::place_logits(from, to, out);
}

}  // namespace

void register_pack(py::module_& m) {
  using namespace py::literals;
  m.def("pack_pairs", &py_pack_pairs, "queries"_a, "items"_a, "rows"_a, "item_ids"_a, "constants"_a,
        "constant_types"_a, "query_type"_a, "item_type"_a, "pad_id"_a, "pad_type"_a, "max_length"_a,
        "input_ids"_a, "attention_mask"_a, "token_type_ids"_a, "device"_a = "cpu");
  m.def("order_pairs", &py_order_pairs, "query_offsets"_a, "item_offsets"_a,
        "cut_queries"_a.noconvert(), "n_constants"_a, "rows"_a, "item_ids"_a, "most"_a);
  m.def("place_logits", &py_place_logits<float>, "logits"_a, "places"_a, "scores"_a);
  m.def("place_logits", &py_place_logits<std::uint16_t>, "logits"_a, "places"_a, "scores"_a);
}

}  // namespace cexnn
