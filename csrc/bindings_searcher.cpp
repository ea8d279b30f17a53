// Search rounds.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>

#include "bindings.hpp"
#include "bindings_device_array.hpp"
#include "dispatch.hpp"

namespace cexnn {
namespace {

using Codes = std::variant<AnyArray<std::uint16_t>, AnyArray<std::int8_t>>;  // halves by their bits

// A searcher, the number of items that its CSR arguments refer to, and where it computes.
struct PySearcher {
  std::unique_ptr<Searcher> searcher;
  std::int64_t n_items;
  Device device;

  CsrView known(const Offsets& indptr, const Ids& indices, const Floats* values) const {
    return csr_of(indptr, indices, values, n_items, device);
  }
};

CompactItems compact_of(const std::optional<Codes>& codes, const std::optional<Floats>& scales,
                        Device device) {
  CompactItems compact;
  if (codes.has_value() != scales.has_value())
    throw std::invalid_argument("scales: expected with compact, and only with it");
  if (!codes) return compact;
  if (const auto* halves = std::get_if<AnyArray<std::uint16_t>>(&*codes)) {
    compact.halves = halves->matrix(device, "compact");
  } else {
    compact.bytes = std::get<AnyArray<std::int8_t>>(*codes).matrix(device, "compact");
  }
  compact.scales = scales->vector(device, "scales");
  return compact;
}

PySearcher py_make_searcher(const Floats& item_factors, const std::optional<Floats>& item_offsets,
                            const std::optional<Codes>& codes, const std::optional<Floats>& scales,
                            const std::string& device_name) {
  const Device device = device_named(device_name);
  const MatrixView<const float> items = item_factors.matrix(device, "item_factors");
  VectorView<const float> offsets;
  if (item_offsets) offsets = item_offsets->vector(device, "item_offsets");
  const CompactItems compact = compact_of(codes, scales, device);
  const py::gil_scoped_release release;
  return {make_searcher(device, items, offsets, compact), items.rows, device};
}

void next_items_into(const PySearcher& self, const Offsets& indptr, const Ids& indices,
                     const Floats& values, const Floats& priors, const QueryModel& model,
                     SearchState* state, int num_threads, Ids ids_out, Floats approx_out) {
  const CsrView known = self.known(indptr, indices, &values);
  const MatrixView<const float> prior = priors.matrix(self.device, "priors");
  const MatrixView<std::int32_t> ids = ids_out.writable(self.device, "ids_out");
  const MatrixView<float> approx = approx_out.writable(self.device, "approx_out");
  const py::gil_scoped_release release;
  self.searcher->next_items(known, prior, model, state, num_threads, ids, approx);
}

py::object update(const PySearcher& self, const Offsets& indptr, const Ids& indices,
                  const Floats& values, const Floats& priors, const QueryModel& model,
                  SearchState* state, int num_threads) {
  const CsrView known = self.known(indptr, indices, &values);
  const MatrixView<const float> prior = priors.matrix(self.device, "priors");
  const Result<float> factors(prior.rows, prior.cols, indices.on_device());
  {
    const py::gil_scoped_release release;
    self.searcher->update(known, prior, model, state, num_threads, factors.view());
  }
  return factors.object();
}

py::tuple top_items(const PySearcher& self, const Floats& query_factors, const Offsets& indptr,
                    const Ids& indices, std::int64_t k, int num_threads, const std::string& by) {
  const Ranking ranking = ranking_named(by);
  const MatrixView<const float> queries = query_factors.matrix(self.device, "query_factors");
  const CsrView seen = self.known(indptr, indices, nullptr);
  const std::int64_t n_answers = answers_of(ranking) * queries.rows;
  const Result<std::int32_t> ids(n_answers, k, indices.on_device());
  const Result<float> approx(n_answers, k, indices.on_device());
  {
    const py::gil_scoped_release release;
    self.searcher->top_items(queries, seen, ranking, num_threads, ids.view(), approx.view());
  }
  return py::make_tuple(ids.object(), approx.object());
}

py::tuple next_items(const PySearcher& self, const Offsets& indptr, const Ids& indices,
                     const Floats& values, const Floats& priors, const QueryModel& model,
                     SearchState* state, std::int64_t k, int num_threads) {
  const CsrView known = self.known(indptr, indices, &values);
  const MatrixView<const float> prior = priors.matrix(self.device, "priors");
  const Result<std::int32_t> ids(prior.rows, k, indices.on_device());
  const Result<float> approx(prior.rows, k, indices.on_device());
  {
    const py::gil_scoped_release release;
    self.searcher->next_items(known, prior, model, state, num_threads, ids.view(), approx.view());
  }
  return py::make_tuple(ids.object(), approx.object());
}

py::tuple posterior(const PySearcher& self, const Offsets& indptr, const Ids& indices,
                    const Floats& values, const Floats& priors, const QueryModel& model,
                    const Ids& items, SearchState* state, int num_threads) {
  const CsrView known = self.known(indptr, indices, &values);
  const MatrixView<const float> prior = priors.matrix(self.device, "priors");
  const MatrixView<const std::int32_t> asked = items.matrix(self.device, "items");
  const Result<float> means(asked.rows, asked.cols, items.on_device());
  const Result<float> variances(asked.rows, asked.cols, items.on_device());
  {
    const py::gil_scoped_release release;
    self.searcher->posterior(known, prior, model, asked, state, num_threads, means.view(),
                             variances.view());
  }
  return py::make_tuple(means.object(), variances.object());
}

}  // namespace

void register_searcher(py::module_& m) {
  using namespace py::literals;
  py::class_<QueryModel>(m, "QueryModel")
      .def(py::init([](double factor_variance, double prior_scale_variance, double shift_variance,
                       double noise_variance, double offset, bool centred, double mix,
                       bool item_offsets) {
             return QueryModel{factor_variance,
                               prior_scale_variance,
                               shift_variance,
                               noise_variance,
                               offset,
                               centred,
                               mix,
                               item_offsets};
           }),
           py::kw_only(), "factor_variance"_a, "prior_scale_variance"_a, "shift_variance"_a,
           "noise_variance"_a, "offset"_a, "centred"_a, "mix"_a, "item_offsets"_a = true)
      .def_readonly("item_offsets", &QueryModel::item_offsets);
  py::class_<SearchState>(m, "SearchState");
  py::class_<PySearcher>(m, "Searcher")
      .def(py::init(&py_make_searcher), "item_factors"_a, "item_offsets"_a,
           "compact"_a = py::none(), "scales"_a = py::none(), "device"_a = "cpu",
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::keep_alive<1, 4>(),
           py::keep_alive<1, 5>())
      .def(
          "make_state",
          [](const PySearcher& self, std::int64_t n) { return self.searcher->make_state(n); },
          "n_queries"_a)
      .def(
          "keep",
          [](const PySearcher&, SearchState& state, const Ids& queries) {
            state.keep(queries.vector(Device::cpu, "queries"));
          },
          "state"_a, "queries"_a)
      .def("update", &update, "indptr"_a.noconvert(), "indices"_a, "values"_a, "priors"_a,
           "model"_a, "state"_a, "num_threads"_a)
      .def("top_items", &top_items, "query_factors"_a, "indptr"_a.noconvert(), "indices"_a, "k"_a,
           "num_threads"_a, "ranking"_a = "with_offsets")
      .def("posterior", &posterior, "indptr"_a.noconvert(), "indices"_a, "values"_a, "priors"_a,
           "model"_a, "items"_a, "state"_a, "num_threads"_a)
      .def("next_items", &next_items, "indptr"_a.noconvert(), "indices"_a, "values"_a, "priors"_a,
           "model"_a, "state"_a, "k"_a, "num_threads"_a)
      .def("next_items_into", &next_items_into, "indptr"_a.noconvert(), "indices"_a, "values"_a,
           "priors"_a, "model"_a, "state"_a, "num_threads"_a, "ids_out"_a, "approx_out"_a);
}

}  // namespace cexnn
