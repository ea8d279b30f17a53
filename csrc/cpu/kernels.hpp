// The inner loops, compiled once for each instruction set and chosen when the module is loaded.
#pragma once

#include <cstdint>

namespace cexnn::cpu {

constexpr std::int64_t kMaxLanes = 16;

// Floats that a row of a matrix is padded to: the widest vector.
constexpr std::int64_t kRowPadding = 16;

// Of items in four bits; see pack_i4. Seven and a half steps and a little more are the largest.
constexpr float kI4StepOfLargest = 1.00001F / 7.5F;
constexpr float kI4LeastStep = 1e-15F;
constexpr float kI4Middle = 23.5F;

// Rows that will be wanted soon, one for each of those that a kernel takes now: it asks for them.
struct Ahead {
  const void* rows;
  std::int64_t stride;  // bytes
};

// Every dot product of one kind is accumulated in the same order whatever the shape it is part of,
// so that a batch gives what its queries give one by one. panel_dots alone has an order of its own.
struct Kernels {
  const char* name;    // "avx512vnni", "avx512", "avx2" or "plain"
  std::int64_t lanes;  // floats of a vector

  // out[i] = query . items[i]; rows of d floats, contiguous.
  void (*dots)(const float* items, std::int64_t n_items, const float* query, std::int64_t d,
               float* out);
  // out[i] = scales[i] * query . items[i], items in IEEE half precision, finite.
  void (*dots_f16)(const std::uint16_t* items, const float* scales, std::int64_t n_items,
                   const float* query, std::int64_t d, float* out);
  // out[i] = scales[i] * query_scale * query . items[i], the products exact. Expects
  // 127 * d * max |query| < 2^31.
  void (*dots_i8)(const std::int8_t* items, const float* scales, std::int64_t n_items,
                  const std::int16_t* query, float query_scale, std::int64_t d, float* out);
  // out[i] = steps[i] * (query_scale * query . items[i] + shift), the products exact, items as
  // pack_i4 makes them: for n_items rounded up to whole blocks, of which steps and out have room.
  // The query has d numbers rounded up to 8, zero from d on; d is at most 2^16. Both are null where
  // a processor gains nothing by them.
  void (*dots_i4)(const std::uint8_t* items, const float* steps, std::int64_t n_items,
                  const std::int8_t* query, float query_scale, float shift, std::int64_t d,
                  float* out);
  // Packs n_items items, at most a block of 2 * lanes, in half a byte a factor:
  //
  //   steps[i] = max(kI4StepOfLargest * max_j |items[i, j]|, kI4LeastStep)
  //   code_ij = floor(items[i, j] / steps[i] + kI4Middle + dither[j]) - 16, from 0 to 15,
  //
  // the sum but for the last addition, which is exact, rounded to whole 2^-19, of which `dither`
  // in [0, 1) is made. Of eight factors an item's lane has four bytes, the first four factors in
  // their lower halves. out: two vectors for each eight factors. Returns the largest magnitude.
  // Expects finite items.
  float (*pack_i4)(const float* items, std::int64_t n_items, std::int64_t d, const float* dither,
                   std::uint8_t* out, float* steps);
  // out[i * d + j] = scales[i] * items[i * d + j].
  void (*widen_f16)(const std::uint16_t* items, const float* scales, std::int64_t n_items,
                    std::int64_t d, float* out);
  // A row's numbers as 16 bits each, in pairs: the even one is the lower half, zero comes after an
  // odd number of them. out: (n_items, (d + 1) / 2).
  void (*pair_i8)(const std::int8_t* items, std::int64_t n_items, std::int64_t d,
                  std::int32_t* out);
  // out[i * n + q] = items[i] . query q, for n = n_vectors * lanes queries, n_vectors 1 or 2, that
  // are packed with one vector after another for each factor: panel[j * n + q].
  void (*panel_dots)(const float* items, std::int64_t n_items, const float* panel,
                     std::int64_t n_vectors, std::int64_t d, Ahead ahead, float* out);
  // out[i * n + q] = scales[i] * query_scales[q] * items[i] . query q, of numbers in pairs, the
  // products exact: expects what dots_i8 does. panel[j * n + q] is query q's pair j.
  void (*panel_dots_i16)(const std::int32_t* items, const float* scales, std::int64_t n_items,
                         const std::int32_t* panel, const float* query_scales,
                         std::int64_t n_vectors, std::int64_t n_pairs, Ahead ahead, float* out);
  // Writes the positions, ascending, where scores[i * n + q] + offsets[i] > bars[q], for i below
  // n_items and n as above, and returns how many there are; offsets may be null. `positions` has
  // room for all, whatever lies behind those that are written.
  std::int64_t (*above_bars)(const float* scores, const float* offsets, std::int64_t n_items,
                             const float* bars, std::int64_t n_vectors, std::int32_t* positions);
  // The same for one query: where scores[i] + offsets[i] > bar.
  std::int64_t (*above_bar)(const float* scores, const float* offsets, std::int64_t n, float bar,
                            std::int32_t* positions);
  float (*dot_f32)(const float* a, const float* b, std::int64_t n);
  double (*dot_f64)(const double* a, const double* b, std::int64_t n);
  double (*dot_wide)(const float* a, const float* b, std::int64_t n);  // accumulated in double
  // out[4 i + j] = a[i] . b[j] of the first n elements, i < n_a, j < n_b, both at most 4.
  void (*dots_f64)(const double* const* a, int n_a, const double* const* b, int n_b, std::int64_t n,
                   double* out);
  void (*dots_wide)(const double* const* a, int n_a, const float* const* b, int n_b, std::int64_t n,
                    double* out);
  void (*axpy_f64)(double alpha, const double* x, double* y, std::int64_t n);  // y += alpha x
  void (*axpy_wide)(double alpha, const float* x, double* y, std::int64_t n);

  // For ridge.hpp. Gathered rows are zero up to a whole number of kRowPadding floats; strides, and
  // the d of gathered rows, are multiples of it.

  // rows[i] = factors[ids[i]], zero from n_ids on; fits[i] = rows[i] . prior; norms[i] is the
  // squared norm. d as it is; n and what is written are rounded up to 4.
  void (*gather_rows)(const float* factors, const std::int32_t* ids, std::int64_t n_ids,
                      std::int64_t n, std::int64_t d, const float* prior, float* rows,
                      std::int64_t stride, float* fits, float* norms);
  // Below and on the diagonal of rows rows^T in tiles of 4 x 4: tile (i, j), row by row, is number
  // i (i + 1) / 2 + j. The rows are n and one more, and then whatever makes them a multiple of 4,
  // each zero up to d, a multiple of kRowPadding. Of row n on the diagonal, and of those behind it,
  // what is written is of no use.
  void (*gram_tiles)(const float* const* rows, std::int64_t n, std::int64_t d, float* tiles);
  // out[e * lanes + s] = tiles[s * n + e], n a multiple of 16: a system to a lane.
  void (*tiles_to_lanes)(const float* tiles, std::int64_t n, float* out);
  // out[i * stride + j] = rows[i] . rows[j] for j >= i; gathered rows one after another, and as
  // many of out. n is rounded up to 4.
  void (*gram_dots)(const float* rows, std::int64_t n, std::int64_t d, float* out,
                    std::int64_t stride);
  // out[i * out_stride + j] += sum_k rows[k][i] rows[k][j] for i < d, j >= i; any d.
  void (*gram_outer)(const float* rows, std::int64_t stride, std::int64_t n, std::int64_t d,
                     float* out, std::int64_t out_stride);
  // Solves the system of each lane by Cholesky, in place: n unknowns, row n the right-hand side.
  // x[i * lanes + s] is unknown i of system s. Bit s of what it returns: a pivot of system s was
  // not above pivot_floor times its diagonal element.
  unsigned (*solve_lanes)(float* systems, std::int64_t n, float pivot_floor, float* x);
  // a (n, stride), on and above its diagonal, becomes U with U^T U = a, and the columns from n on,
  // of which there is at least one, U^-T times themselves. False if a pivot is not above
  // pivot_floor times its diagonal element. n^3 / 3 flops.
  bool (*cholesky_upper)(float* a, std::int64_t n, std::int64_t stride, float pivot_floor);
  // out = prior + sum_i x[i * x_stride] rows[ids[i] * d], any d; false if that is not finite.
  bool (*add_combination)(const float* rows, const std::int32_t* ids, std::int64_t n,
                          std::int64_t d, const float* x, std::int64_t x_stride, const float* prior,
                          float* out);
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
namespace avx512vnni {
const Kernels& table();
}

}  // namespace cexnn::cpu
