// What a search knows, and its scores in the units of the model. Small work: the GIL is kept, which
// takes longer to get back.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "bindings.hpp"
#include "known_scores.hpp"
#include "score_units.hpp"

namespace cexnn {
namespace {

using HostFloats = NumpyArray<float>;
using HostIds = NumpyArray<std::int32_t>;
using HostLongs = NumpyArray<std::int64_t>;
using HostDoubles = NumpyArray<double>;

template <typename T>
VectorView<const T> vector_of(const NumpyArray<T>& array, const char* name) {
  if (array.ndim() != 1) throw std::invalid_argument(std::string(name) + ": expected 1 dimension");
  return {array.data(), array.shape(0)};
}

template <typename T>
MatrixView<const T> matrix_of(const NumpyArray<T>& array, const char* name) {
  if (array.ndim() != 2) throw std::invalid_argument(std::string(name) + ": expected 2 dimensions");
  return {array.data(), array.shape(0), array.shape(1)};
}

template <typename T>
VectorView<T> written(NumpyArray<T>& array) {
  return {array.mutable_data(), array.size()};
}

template <typename T>
MatrixView<T> written_matrix(NumpyArray<T>& array) {
  return {array.mutable_data(), array.shape(0), array.shape(1)};
}

cpu::KnownScores known_of(const HostIds& ids, const HostFloats& scores, const HostLongs& counts) {
  return {matrix_of(ids, "ids"), matrix_of(scores, "scores"), vector_of(counts, "counts")};
}

HostIds first_distinct(const HostIds& ids, std::int64_t n) {
  const MatrixView<const std::int32_t> given = matrix_of(ids, "ids");
  HostIds found({given.rows, n});
  cpu::first_distinct(given, written_matrix(found));
  return found;
}

py::tuple list_pairs(const HostIds& ids, const HostLongs& numbers) {
  const MatrixView<const std::int32_t> asked = matrix_of(ids, "ids");
  const VectorView<const std::int64_t> row_numbers = vector_of(numbers, "numbers");
  if (row_numbers.size != asked.rows)
    throw std::invalid_argument("numbers: expected one for each row");
  const std::int64_t n = cpu::count_ids(asked);
  HostIds rows(n), items(n);
  cpu::list_pairs(asked, row_numbers, written(rows), written(items));
  return py::make_tuple(rows, items);
}

HostLongs append_known(HostIds& ids, HostFloats& scores, const HostLongs& counts,
                       const HostIds& rows, const HostIds& items, const HostFloats& told) {
  const cpu::KnownScores known = known_of(ids, scores, counts);
  const VectorView<const std::int32_t> told_rows = vector_of(rows, "rows");
  const VectorView<const std::int32_t> told_items = vector_of(items, "items");
  const VectorView<const float> told_scores = vector_of(told, "told");
  if (told_items.size != told_rows.size || told_scores.size != told_rows.size)
    throw std::invalid_argument("told: expected one for each row and item");
  HostLongs found(known.counts.size);
  cpu::append(known, told_rows, told_items, told_scores, written_matrix(ids),
              written_matrix(scores), written(found));
  return found;
}

py::tuple known_rows(const HostIds& ids, const HostFloats& scores, const HostLongs& counts,
                     const HostLongs& rows) {
  const cpu::KnownScores known = known_of(ids, scores, counts);
  const VectorView<const std::int64_t> wanted = vector_of(rows, "rows");
  HostLongs indptr(wanted.size + 1);
  cpu::start_rows(known, wanted, written(indptr));
  const std::int64_t n = indptr.at(wanted.size);
  HostIds found(n);
  HostFloats found_scores(n);
  cpu::list_rows(known, wanted, written(found), written(found_scores));
  return py::make_tuple(indptr, found, found_scores);
}

py::tuple known_by_id(const HostIds& ids, const HostFloats& scores, const HostLongs& counts) {
  const cpu::KnownScores known = known_of(ids, scores, counts);
  HostLongs indptr(known.counts.size + 1);
  cpu::start_rows(known, written(indptr));
  const std::int64_t n = indptr.at(known.counts.size);
  HostIds found(n);
  HostFloats found_scores(n);
  cpu::list_by_id(known, written(found), written(found_scores));
  return py::make_tuple(indptr, found, found_scores);
}

py::tuple best_known(const HostIds& ids, const HostFloats& scores, const HostLongs& counts,
                     std::int64_t k) {
  const cpu::KnownScores known = known_of(ids, scores, counts);
  HostIds found({known.counts.size, k});
  HostFloats found_scores({known.counts.size, k});
  cpu::best(known, written_matrix(found), written_matrix(found_scores));
  return py::make_tuple(found, found_scores);
}

using BringRows = void (*)(VectorView<const std::int64_t>, VectorView<const float>,
                           VectorView<float>);

template <BringRows kBring>
HostFloats in_units(const HostLongs& indptr, const HostFloats& scores) {
  const VectorView<const std::int64_t> starts = vector_of(indptr, "indptr");
  const VectorView<const float> values = vector_of(scores, "scores");
  check_starts(starts, values.size);
  HostFloats found(values.size);
  kBring(starts, values, written(found));
  return found;
}

HostFloats bend(const HostDoubles& knots, const HostDoubles& values, const HostDoubles& scores,
                bool straight) {
  const ScoreMap map{vector_of(knots, "knots"), vector_of(values, "values"), straight};
  const VectorView<const double> given = vector_of(scores, "scores");
  HostFloats found(given.size);
  cpu::bend(map, given, written(found));
  return found;
}

}  // namespace

void register_known_scores(py::module_& m) {
  using namespace py::literals;
  m.def("first_distinct", &first_distinct, "ids"_a.noconvert(), "n"_a);
  m.def("list_pairs", &list_pairs, "ids"_a.noconvert(), "numbers"_a.noconvert());
  m.def("append_known", &append_known, "ids"_a.noconvert(), "scores"_a.noconvert(),
        "counts"_a.noconvert(), "rows"_a.noconvert(), "items"_a.noconvert(), "told"_a.noconvert());
  m.def("known_rows", &known_rows, "ids"_a.noconvert(), "scores"_a.noconvert(),
        "counts"_a.noconvert(), "rows"_a.noconvert());
  m.def("known_by_id", &known_by_id, "ids"_a.noconvert(), "scores"_a.noconvert(),
        "counts"_a.noconvert());
  m.def("best_known", &best_known, "ids"_a.noconvert(), "scores"_a.noconvert(),
        "counts"_a.noconvert(), "k"_a);
  m.def("standardise", &in_units<cpu::standardise>, "indptr"_a.noconvert(), "scores"_a.noconvert());
  m.def("draw_in", &in_units<cpu::draw_in>, "indptr"_a.noconvert(), "scores"_a.noconvert());
  m.def("bend", &bend, "knots"_a.noconvert(), "values"_a.noconvert(), "scores"_a.noconvert(),
        "straight"_a = false);
}

}  // namespace cexnn
