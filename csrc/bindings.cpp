// NumPy arrays to views, GIL released; no arithmetic. Arrays must be C-contiguous and of the exact
// type: converting is Python's job.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

#include "cpu/kernels.hpp"
#include "dispatch.hpp"

namespace py = pybind11;

namespace cexnn {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Floats = Array<float>;
using Ids = Array<std::int32_t>;
using Offsets = Array<std::int64_t>;
using Codes = std::variant<Array<std::uint16_t>, Array<std::int8_t>>;  // halves by their bits

template <typename T>
VectorView<const T> vector_of(const Array<T>& array, const char* name) {
  if (array.ndim() != 1) throw std::invalid_argument(std::string(name) + ": expected 1 dimension");
  return {array.data(), array.shape(0)};
}

template <typename T>
MatrixView<const T> matrix_of(const Array<T>& array, const char* name) {
  if (array.ndim() != 2) throw std::invalid_argument(std::string(name) + ": expected 2 dimensions");
  return {array.data(), array.shape(0), array.shape(1)};
}

template <typename T>
MatrixView<T> writable(Array<T>& array, const char* name) {
  const MatrixView<const T> view = matrix_of(array, name);
  return {array.mutable_data(), view.rows, view.cols};
}

MatrixView<const float> matrix_or_none(const std::optional<Floats>& array, const char* name) {
  return array ? matrix_of(*array, name) : MatrixView<const float>{};
}

CsrView csr_of(const Offsets& indptr, const Ids& indices, const Floats* values, std::int64_t cols) {
  const VectorView<const std::int64_t> starts = vector_of(indptr, "indptr");
  const VectorView<const std::int32_t> ids = vector_of(indices, "indices");
  if (starts.empty() || starts[0] != 0 || starts[starts.size - 1] != ids.size)
    throw std::invalid_argument("indptr: expected to run from 0 to the number of indices");
  for (std::int64_t r = 1; r < starts.size; ++r)
    if (starts[r] < starts[r - 1]) throw std::invalid_argument("indptr: expected to ascend");
  if (values != nullptr && vector_of(*values, "values").size != ids.size)
    throw std::invalid_argument("values: expected one for each index");
  return {starts.size - 1, cols, starts.data, ids.data,
          values == nullptr ? nullptr : values->data()};
}

Floats ridge(const Offsets& indptr, const Ids& indices, const Floats& values, const Floats& factors,
             const std::optional<Floats>& prior, double regularization, int num_threads,
             const std::string& device) {
  const MatrixView<const float> columns = matrix_of(factors, "factors");
  const RidgeProblem problem{csr_of(indptr, indices, &values, columns.rows), columns,
                             matrix_or_none(prior, "prior"), regularization};
  Floats out({problem.scores.rows, columns.cols});
  const MatrixView<float> view = writable(out, "out");
  const py::gil_scoped_release release;
  cexnn::ridge(device_named(device), problem, num_threads, view);
  return out;
}

std::unique_ptr<AlsSolver> make_als_solver(const Offsets& indptr, const Ids& indices,
                                           const Floats& values, std::int64_t n_cols,
                                           const std::optional<Floats>& row_prior,
                                           const std::optional<Floats>& col_prior,
                                           double row_regularization, double col_regularization,
                                           int num_threads, const std::string& device) {
  const AlsProblem problem{
      csr_of(indptr, indices, &values, n_cols), matrix_or_none(row_prior, "row_prior"),
      matrix_or_none(col_prior, "col_prior"), row_regularization, col_regularization};
  const py::gil_scoped_release release;
  return cexnn::make_als_solver(device_named(device), problem, num_threads);
}

void register_als(py::module_& m) {
  using namespace py::literals;
  m.def("ridge", &ridge, "indptr"_a.noconvert(), "indices"_a.noconvert(), "values"_a.noconvert(),
        "factors"_a.noconvert(), "prior"_a.noconvert(), "regularization"_a, "num_threads"_a,
        "device"_a = "cpu");
  py::class_<AlsSolver>(m, "AlsSolver")
      .def(py::init(&make_als_solver), "indptr"_a.noconvert(), "indices"_a.noconvert(),
           "values"_a.noconvert(), "n_cols"_a, "row_prior"_a.noconvert(), "col_prior"_a.noconvert(),
           "row_regularization"_a, "col_regularization"_a, "num_threads"_a, "device"_a = "cpu",
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::keep_alive<1, 4>(),
           py::keep_alive<1, 6>(), py::keep_alive<1, 7>())
      .def(
          "step",
          [](const AlsSolver& solver, Floats row_factors, Floats col_factors) {
            const MatrixView<float> rows = writable(row_factors, "row_factors");
            const MatrixView<float> cols = writable(col_factors, "col_factors");
            const py::gil_scoped_release release;
            solver.step(rows, cols);
          },
          "row_factors"_a.noconvert(), "col_factors"_a.noconvert())
      .def(
          "objective",
          [](const AlsSolver& solver, const Floats& row_factors, const Floats& col_factors) {
            const MatrixView<const float> rows = matrix_of(row_factors, "row_factors");
            const MatrixView<const float> cols = matrix_of(col_factors, "col_factors");
            const py::gil_scoped_release release;
            return solver.objective(rows, cols);
          },
          "row_factors"_a.noconvert(), "col_factors"_a.noconvert());
}

// A searcher and the number of items that its CSR arguments refer to.
struct PySearcher {
  std::unique_ptr<Searcher> searcher;
  std::int64_t n_items;
};

CompactItems compact_of(const std::optional<Codes>& codes, const std::optional<Floats>& scales) {
  CompactItems compact;
  if (codes.has_value() != scales.has_value())
    throw std::invalid_argument("scales: expected with compact, and only with it");
  if (!codes) return compact;
  if (const auto* halves = std::get_if<Array<std::uint16_t>>(&*codes)) {
    compact.halves = matrix_of(*halves, "compact");
  } else {
    compact.bytes = matrix_of(std::get<Array<std::int8_t>>(*codes), "compact");
  }
  compact.scales = vector_of(*scales, "scales");
  return compact;
}

PySearcher make_searcher(const Floats& item_factors, const std::optional<Floats>& item_offsets,
                         const std::optional<Codes>& codes, const std::optional<Floats>& scales,
                         const std::string& device) {
  const MatrixView<const float> items = matrix_of(item_factors, "item_factors");
  VectorView<const float> offsets;
  if (item_offsets) offsets = vector_of(*item_offsets, "item_offsets");
  const CompactItems compact = compact_of(codes, scales);
  const py::gil_scoped_release release;
  return {cexnn::make_searcher(device_named(device), items, offsets, compact), items.rows};
}

Floats update(const PySearcher& self, const Offsets& indptr, const Ids& indices,
              const Floats& values, const Floats& priors, const QueryModel& model,
              SearchState* state, int num_threads) {
  const CsrView known = csr_of(indptr, indices, &values, self.n_items);
  const MatrixView<const float> prior = matrix_of(priors, "priors");
  Floats factors({prior.rows, prior.cols});
  const MatrixView<float> view = writable(factors, "factors");
  const py::gil_scoped_release release;
  self.searcher->update(known, prior, model, state, num_threads, view);
  return factors;
}

py::tuple top_items(const PySearcher& self, const Floats& query_factors, const Offsets& indptr,
                    const Ids& indices, std::int64_t k, int num_threads) {
  const MatrixView<const float> queries = matrix_of(query_factors, "query_factors");
  const CsrView seen = csr_of(indptr, indices, nullptr, self.n_items);
  Ids ids({queries.rows, k});
  Floats approx({queries.rows, k});
  const MatrixView<std::int32_t> ids_view = writable(ids, "ids");
  const MatrixView<float> approx_view = writable(approx, "approx");
  {
    const py::gil_scoped_release release;
    self.searcher->top_items(queries, seen, num_threads, ids_view, approx_view);
  }
  return py::make_tuple(ids, approx);
}

py::tuple next_items(const PySearcher& self, const Offsets& indptr, const Ids& indices,
                     const Floats& values, const Floats& priors, const QueryModel& model,
                     SearchState* state, std::int64_t k, int num_threads) {
  const CsrView known = csr_of(indptr, indices, &values, self.n_items);
  const MatrixView<const float> prior = matrix_of(priors, "priors");
  Ids ids({prior.rows, k});
  Floats approx({prior.rows, k});
  const MatrixView<std::int32_t> ids_view = writable(ids, "ids");
  const MatrixView<float> approx_view = writable(approx, "approx");
  {
    const py::gil_scoped_release release;
    self.searcher->next_items(known, prior, model, state, num_threads, ids_view, approx_view);
  }
  return py::make_tuple(ids, approx);
}

py::tuple posterior(const PySearcher& self, const Offsets& indptr, const Ids& indices,
                    const Floats& values, const Floats& priors, const QueryModel& model,
                    const Ids& items, SearchState* state, int num_threads) {
  const CsrView known = csr_of(indptr, indices, &values, self.n_items);
  const MatrixView<const float> prior = matrix_of(priors, "priors");
  const MatrixView<const std::int32_t> asked = matrix_of(items, "items");
  Floats means({asked.rows, asked.cols});
  Floats variances({asked.rows, asked.cols});
  const MatrixView<float> means_view = writable(means, "means");
  const MatrixView<float> variances_view = writable(variances, "variances");
  {
    const py::gil_scoped_release release;
    self.searcher->posterior(known, prior, model, asked, state, num_threads, means_view,
                             variances_view);
  }
  return py::make_tuple(means, variances);
}

void register_searcher(py::module_& m) {
  using namespace py::literals;
  py::class_<QueryModel>(m, "QueryModel")
      .def(py::init([](double factor_variance, double prior_scale_variance, double shift_variance,
                       double noise_variance, double offset, bool centred, double mix) {
             return QueryModel{factor_variance,
                               prior_scale_variance,
                               shift_variance,
                               noise_variance,
                               offset,
                               centred,
                               mix};
           }),
           py::kw_only(), "factor_variance"_a, "prior_scale_variance"_a, "shift_variance"_a,
           "noise_variance"_a, "offset"_a, "centred"_a, "mix"_a);
  py::class_<SearchState>(m, "SearchState");
  py::class_<PySearcher>(m, "Searcher")
      .def(py::init(&make_searcher), "item_factors"_a.noconvert(), "item_offsets"_a.noconvert(),
           "compact"_a.noconvert() = py::none(), "scales"_a.noconvert() = py::none(),
           "device"_a = "cpu", py::keep_alive<1, 2>(), py::keep_alive<1, 3>(),
           py::keep_alive<1, 4>(), py::keep_alive<1, 5>())
      .def(
          "make_state",
          [](const PySearcher& self, std::int64_t n) { return self.searcher->make_state(n); },
          "n_queries"_a)
      .def(
          "keep",
          [](const PySearcher&, SearchState& state, const Ids& queries) {
            state.keep(vector_of(queries, "queries"));
          },
          "state"_a, "queries"_a.noconvert())
      .def("update", &update, "indptr"_a.noconvert(), "indices"_a.noconvert(),
           "values"_a.noconvert(), "priors"_a.noconvert(), "model"_a, "state"_a, "num_threads"_a)
      .def("top_items", &top_items, "query_factors"_a.noconvert(), "indptr"_a.noconvert(),
           "indices"_a.noconvert(), "k"_a, "num_threads"_a)
      .def("posterior", &posterior, "indptr"_a.noconvert(), "indices"_a.noconvert(),
           "values"_a.noconvert(), "priors"_a.noconvert(), "model"_a, "items"_a.noconvert(),
           "state"_a, "num_threads"_a)
      .def("next_items", &next_items, "indptr"_a.noconvert(), "indices"_a.noconvert(),
           "values"_a.noconvert(), "priors"_a.noconvert(), "model"_a, "state"_a, "k"_a,
           "num_threads"_a);
}

using PyTokenLists = std::pair<Offsets, Ids>;

TokenLists lists_of(const PyTokenLists& lists, const char* name) {
  return {vector_of(lists.first, name), vector_of(lists.second, name)};
}

void pack_pairs(const PyTokenLists& queries, const PyTokenLists& items, const Ids& rows,
                const Ids& item_ids, const PyTokenLists& constants, const Ids& constant_types,
                std::int32_t query_type, std::int32_t item_type, std::int32_t pad_id,
                std::int32_t pad_type, std::int64_t max_length, Offsets input_ids,
                Offsets attention_mask, Offsets token_type_ids, const std::string& device) {
  const PairFormat format{lists_of(constants, "constants"),
                          vector_of(constant_types, "constant_types"),
                          query_type,
                          item_type,
                          pad_id,
                          pad_type};
  const TokenLists query_lists = lists_of(queries, "queries");
  const TokenLists item_lists = lists_of(items, "items");
  const VectorView<const std::int32_t> row_view = vector_of(rows, "rows");
  const VectorView<const std::int32_t> item_view = vector_of(item_ids, "item_ids");
  const MatrixView<std::int64_t> ids = writable(input_ids, "input_ids");
  const MatrixView<std::int64_t> mask = writable(attention_mask, "attention_mask");
  const MatrixView<std::int64_t> types = writable(token_type_ids, "token_type_ids");
  const py::gil_scoped_release release;
  cexnn::pack_pairs(device_named(device), query_lists, item_lists, row_view, item_view, format,
                    max_length, ids, mask, types);
}

void register_pack(py::module_& m) {
  using namespace py::literals;
  m.def("pack_pairs", &pack_pairs, "queries"_a.noconvert(), "items"_a.noconvert(),
        "rows"_a.noconvert(), "item_ids"_a.noconvert(), "constants"_a.noconvert(),
        "constant_types"_a.noconvert(), "query_type"_a, "item_type"_a, "pad_id"_a, "pad_type"_a,
        "max_length"_a, "input_ids"_a.noconvert(), "attention_mask"_a.noconvert(),
        "token_type_ids"_a.noconvert(), "device"_a = "cpu");
}

}  // namespace
}  // namespace cexnn

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native core: ridge rows and search rounds. See _core.pyi.";
  m.def("instruction_set", [] { return cexnn::cpu::kernels().name; });
  m.def("cuda_available", &cexnn::cuda::available);
  cexnn::register_als(m);
  cexnn::register_pack(m);
  cexnn::register_searcher(m);
}
