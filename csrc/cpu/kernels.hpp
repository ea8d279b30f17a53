// The inner loops, compiled once for each instruction set and chosen when the module is loaded.
#pragma once

#include <cstdint>

namespace cexnn::cpu {

constexpr std::int64_t kMaxLanes = 16;

// Floats that a row of a matrix to be factorised is padded to: the widest vector.
constexpr std::int64_t kRowPadding = 16;

// Every dot product of one kind is accumulated in the same order whatever the shape it is part of,
// so that a batch gives what its queries give one by one. panel_dots alone has an order of its own.
struct Kernels {
  const char* name;    // "avx512", "avx2" or "plain"
  std::int64_t lanes;  // floats of a vector

  // out[q * stride + i] = queries[q] . items[i]; rows of d floats, contiguous.
  void (*dots)(const float* items, std::int64_t n_items, const float* queries,
               std::int64_t n_queries, std::int64_t d, float* out, std::int64_t stride);
  // out[i * n + q] = items[i] . query q, for n = n_vectors * lanes queries, n_vectors 1 or 2, that
  // are packed with one vector after another for each factor: panel[j * n + q].
  void (*panel_dots)(const float* items, std::int64_t n_items, const float* panel,
                     std::int64_t n_vectors, std::int64_t d, float* out);
  // Writes the positions, ascending, where scores[i * n + q] + offsets[i] > bars[q], for i below
  // n_items and n as above, and returns how many there are; offsets may be null.
  std::int64_t (*above_bars)(const float* scores, const float* offsets, std::int64_t n_items,
                             const float* bars, std::int64_t n_vectors, std::int32_t* positions);
  // Lower Cholesky factor in place, false if a pivot is not above pivot_floor times its diagonal
  // element; what lies above the diagonal is neither read nor kept. stride is a multiple of
  // kRowPadding, at least n.
  bool (*cholesky_f32)(float* a, std::int64_t n, std::int64_t stride, float pivot_floor);
  float (*dot_f32)(const float* a, const float* b, std::int64_t n);
  double (*dot_f64)(const double* a, const double* b, std::int64_t n);
  double (*dot_wide)(const float* a, const float* b, std::int64_t n);  // accumulated in double
  // out[4 i + j] = a[i] . b[j] of the first n elements, i < n_a, j < n_b, both at most 4.
  void (*dots_f64)(const double* const* a, int n_a, const double* const* b, int n_b, std::int64_t n,
                   double* out);
  void (*dots_wide)(const double* const* a, int n_a, const float* const* b, int n_b, std::int64_t n,
                    double* out);
  void (*axpy_f32)(float alpha, const float* x, float* y, std::int64_t n);  // y += alpha x
  void (*axpy_f64)(double alpha, const double* x, double* y, std::int64_t n);
  void (*axpy_wide)(double alpha, const float* x, double* y, std::int64_t n);
};

// The widest set that this processor has, or the one that the environment variable CEXNN_SIMD
// names, if the processor has it. The choice is made once.
const Kernels& kernels();

namespace plain {
const Kernels& table();
}
namespace avx2 {
const Kernels& table();
}
namespace avx512 {
const Kernels& table();
}

}  // namespace cexnn::cpu
