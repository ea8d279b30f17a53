// Arrays to views, GIL released; no arithmetic.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

#include "bindings_arrays.hpp"
#include "bindings_device_array.hpp"
#include "cpu/kernels.hpp"
#include "dispatch.hpp"

namespace cexnn {
namespace {

using Floats = AnyArray<float>;
using Ids = AnyArray<std::int32_t>;
using Longs = AnyArray<std::int64_t>;
using Offsets = NumpyArray<std::int64_t>;  // of CSR rows, which the host reads, too
using Codes = std::variant<AnyArray<std::uint16_t>, AnyArray<std::int8_t>>;  // halves by their bits

MatrixView<const float> matrix_or_none(const std::optional<Floats>& array, Device device,
                                       const char* name) {
  return array ? array->matrix(device, name) : MatrixView<const float>{};
}

CsrView csr_of(const Offsets& indptr, const Ids& indices, const Floats* values, std::int64_t cols,
               Device device) {
  if (indptr.ndim() != 1) throw std::invalid_argument("indptr: expected 1 dimension");
  const VectorView<const std::int64_t> starts{indptr.data(), indptr.shape(0)};
  const VectorView<const std::int32_t> ids = indices.vector(device, "indices");
  if (starts.empty() || starts[0] != 0 || starts[starts.size - 1] != ids.size)
    throw std::invalid_argument("indptr: expected to run from 0 to the number of indices");
  for (std::int64_t r = 1; r < starts.size; ++r)
    if (starts[r] < starts[r - 1]) throw std::invalid_argument("indptr: expected to ascend");
  VectorView<const float> numbers;
  if (values != nullptr) {
    numbers = values->vector(device, "values");
    if (numbers.size != ids.size)
      throw std::invalid_argument("values: expected one for each index");
  }
  return {starts.size - 1, cols, starts.data, ids.data, numbers.data};
}

py::object ridge(const Offsets& indptr, const Ids& indices, const Floats& values,
                 const Floats& factors, const std::optional<Floats>& prior, double regularization,
                 int num_threads, const std::string& device_name) {
  const Device device = device_named(device_name);
  const MatrixView<const float> columns = factors.matrix(device, "factors");
  const RidgeProblem problem{csr_of(indptr, indices, &values, columns.rows, device), columns,
                             matrix_or_none(prior, device, "prior"), regularization};
  const Result<float> out(problem.scores.rows, columns.cols, factors.on_device());
  {
    const py::gil_scoped_release release;
    cexnn::ridge(device, problem, num_threads, out.view());
  }
  return out.object();
}

// A solver and where it computes.
struct PyAlsSolver {
  std::unique_ptr<AlsSolver> solver;
  Device device;
};

PyAlsSolver make_als_solver(const Offsets& indptr, const Ids& indices, const Floats& values,
                            std::int64_t n_cols, const std::optional<Floats>& row_prior,
                            const std::optional<Floats>& col_prior, double row_regularization,
                            double col_regularization, int num_threads,
                            const std::string& device_name, int cg_steps) {
  const Device device = device_named(device_name);
  const AlsProblem problem{csr_of(indptr, indices, &values, n_cols, device),
                           matrix_or_none(row_prior, device, "row_prior"),
                           matrix_or_none(col_prior, device, "col_prior"),
                           row_regularization,
                           col_regularization,
                           cg_steps};
  const py::gil_scoped_release release;
  return {cexnn::make_als_solver(device, problem, num_threads), device};
}

void register_als(py::module_& m) {
  using namespace py::literals;
  m.def("ridge", &ridge, "indptr"_a.noconvert(), "indices"_a, "values"_a, "factors"_a, "prior"_a,
        "regularization"_a, "num_threads"_a, "device"_a = "cpu");
  py::class_<PyAlsSolver>(m, "AlsSolver")
      .def(py::init(&make_als_solver), "indptr"_a.noconvert(), "indices"_a, "values"_a, "n_cols"_a,
           "row_prior"_a, "col_prior"_a, "row_regularization"_a, "col_regularization"_a,
           "num_threads"_a, "device"_a = "cpu", "cg_steps"_a = 0, py::keep_alive<1, 2>(),
           py::keep_alive<1, 3>(), py::keep_alive<1, 4>(), py::keep_alive<1, 6>(),
           py::keep_alive<1, 7>())
      .def(
          "in_host_memory",
          [](const PyAlsSolver& self, std::int64_t n_factors) {
            return self.solver->in_host_memory(n_factors);
          },
          "n_factors"_a, py::call_guard<py::gil_scoped_release>())
      .def(
          "step",
          [](const PyAlsSolver& self, Floats row_factors, Floats col_factors) {
            const MatrixView<float> rows = row_factors.writable(self.device, "row_factors");
            const MatrixView<float> cols = col_factors.writable(self.device, "col_factors");
            const py::gil_scoped_release release;
            self.solver->step(rows, cols);
          },
          "row_factors"_a, "col_factors"_a)
      .def(
          "objective",
          [](const PyAlsSolver& self, const Floats& row_factors, const Floats& col_factors) {
            const MatrixView<const float> rows = row_factors.matrix(self.device, "row_factors");
            const MatrixView<const float> cols = col_factors.matrix(self.device, "col_factors");
            const py::gil_scoped_release release;
            return self.solver->objective(rows, cols);
          },
          "row_factors"_a, "col_factors"_a);
}

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

PySearcher make_searcher(const Floats& item_factors, const std::optional<Floats>& item_offsets,
                         const std::optional<Codes>& codes, const std::optional<Floats>& scales,
                         const std::string& device_name) {
  const Device device = device_named(device_name);
  const MatrixView<const float> items = item_factors.matrix(device, "item_factors");
  VectorView<const float> offsets;
  if (item_offsets) offsets = item_offsets->vector(device, "item_offsets");
  const CompactItems compact = compact_of(codes, scales, device);
  const py::gil_scoped_release release;
  return {cexnn::make_searcher(device, items, offsets, compact), items.rows, device};
}

py::object update(const PySearcher& self, const Offsets& indptr, const Ids& indices,
                  const Floats& values, const Floats& priors, const QueryModel& model,
                  SearchState* state, int num_threads) {
  const CsrView known = self.known(indptr, indices, &values);
  const MatrixView<const float> prior = priors.matrix(self.device, "priors");
  const Result<float> factors(prior.rows, prior.cols, priors.on_device());
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
  const Result<std::int32_t> ids(n_answers, k, query_factors.on_device());
  const Result<float> approx(n_answers, k, query_factors.on_device());
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
  const Result<std::int32_t> ids(prior.rows, k, priors.on_device());
  const Result<float> approx(prior.rows, k, priors.on_device());
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
      .def(py::init(&make_searcher), "item_factors"_a, "item_offsets"_a, "compact"_a = py::none(),
           "scales"_a = py::none(), "device"_a = "cpu", py::keep_alive<1, 2>(),
           py::keep_alive<1, 3>(), py::keep_alive<1, 4>(), py::keep_alive<1, 5>())
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
           "model"_a, "state"_a, "k"_a, "num_threads"_a);
}

using PyTokenLists = std::pair<Longs, Ids>;

TokenLists lists_of(const PyTokenLists& lists, Device device, const char* name) {
  return {lists.first.vector(device, name), lists.second.vector(device, name)};
}

void pack_pairs(const PyTokenLists& queries, const PyTokenLists& items, const Ids& rows,
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
  cexnn::pack_pairs(device, query_lists, item_lists, row_view, item_view, format, max_length, ids,
                    mask, types);
}

void register_pack(py::module_& m) {
  using namespace py::literals;
  m.def("pack_pairs", &pack_pairs, "queries"_a, "items"_a, "rows"_a, "item_ids"_a, "constants"_a,
        "constant_types"_a, "query_type"_a, "item_type"_a, "pad_id"_a, "pad_type"_a, "max_length"_a,
        "input_ids"_a, "attention_mask"_a, "token_type_ids"_a, "device"_a = "cpu");
}

}  // namespace
}  // namespace cexnn

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native core: ridge rows and search rounds. See _core.pyi.";
  m.def("instruction_set", [] { return cexnn::cpu::kernels().name; });
  m.def("cuda_available", &cexnn::cuda::available);
  m.def("cuda_free_memory", &cexnn::cuda::free_memory);
  cexnn::register_device_array(m);
  cexnn::register_als(m);
  cexnn::register_pack(m);
  cexnn::register_searcher(m);
}
