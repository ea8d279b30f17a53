// The factorisation: ridge rows and sweeps.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "bindings.hpp"
#include "bindings_device_array.hpp"
#include "dispatch.hpp"

namespace cexnn {
namespace {

MatrixView<const float> matrix_or_none(const std::optional<Floats>& array, Device device,
                                       const char* name) {
  return array ? array->matrix(device, name) : MatrixView<const float>{};
}

py::object py_ridge(const Offsets& indptr, const Ids& indices, const Floats& values,
                    const Floats& factors, const std::optional<Floats>& prior,
                    double regularization, int num_threads, const std::string& device_name) {
  const Device device = device_named(device_name);
  const MatrixView<const float> columns = factors.matrix(device, "factors");
  const RidgeProblem problem{csr_of(indptr, indices, &values, columns.rows, device), columns,
                             matrix_or_none(prior, device, "prior"), regularization};
  const Result<float> out(problem.scores.rows, columns.cols, factors.on_device());
  {
    const py::gil_scoped_release release;
    ridge(device, problem, num_threads, out.view());
  }
  return out.object();
}

// A solver and where it computes.
struct PyAlsSolver {
  std::unique_ptr<AlsSolver> solver;
  Device device;
};

PyAlsSolver py_make_als_solver(const Offsets& indptr, const Ids& indices, const Floats& values,
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
  return {make_als_solver(device, problem, num_threads), device};
}

}  // namespace

void register_als(py::module_& m) {
  using namespace py::literals;
  m.def("ridge", &py_ridge, "indptr"_a.noconvert(), "indices"_a, "values"_a, "factors"_a, "prior"_a,
        "regularization"_a, "num_threads"_a, "device"_a = "cpu");
  py::class_<PyAlsSolver>(m, "AlsSolver")
      .def(py::init(&py_make_als_solver), "indptr"_a.noconvert(), "indices"_a, "values"_a,
           "n_cols"_a, "row_prior"_a, "col_prior"_a, "row_regularization"_a, "col_regularization"_a,
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

}  // namespace cexnn
