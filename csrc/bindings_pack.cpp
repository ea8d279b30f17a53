// Pairs of token lists to a batch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>

#include "bindings.hpp"
#include "bindings_arrays.hpp"
#include "dispatch.hpp"

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

}  // namespace

void register_pack(py::module_& m) {
  using namespace py::literals;
  m.def("pack_pairs", &py_pack_pairs, "queries"_a, "items"_a, "rows"_a, "item_ids"_a, "constants"_a,
        "constant_types"_a, "query_type"_a, "item_type"_a, "pad_id"_a, "pad_type"_a, "max_length"_a,
        "input_ids"_a, "attention_mask"_a, "token_type_ids"_a, "device"_a = "cpu");
}

}  // namespace cexnn
