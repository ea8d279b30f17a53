#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "../pack_checks.hpp"
#include "../pair_order.hpp"
#include "launch.cuh"
#include "memory.cuh"
#include "runtime.cuh"
#include "sort.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRight = std::numeric_limits<int>::max();

// A thread's own, kept from call to call.
struct Workspace {
  Stream stream;
  Gathered small;
  DeviceBuffer<std::int64_t> query_offsets, item_offsets;
  DeviceBuffer<std::int32_t> rows, item_ids;
  DeviceBuffer<Key> keys;
  DeviceBuffer<int> found;  // what is wrong, then the counts
  PinnedBuffer<int> found_here;
};

Workspace& workspace() {
  thread_local Workspace mine;
  return mine;
}

__device__ std::int64_t list_size(VectorView<const std::int64_t> offsets, std::int64_t i) {
  return offsets.data[i + 1] - offsets.data[i];
}

// A pair's key: its tokens, whether its query was cut, and its place, complemented, so that the
// largest is the first; of a pair that is wrong the place alone. found[0] is kRight minus the first
// of those, 0 where there is none.
__global__ void __launch_bounds__(kThreads)
    pair_keys_kernel(PairSizes sizes, VectorView<const std::int32_t> rows,
                     const std::int32_t* item_ids, std::int64_t most, std::int64_t n_keys,
                     Key* keys, int* found) {
  const std::int64_t j = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= n_keys) return;
  keys[j] = kNone;
  if (j >= rows.size) return;
  keys[j] = ~static_cast<std::uint32_t>(j);
  const std::int64_t row = rows.data[j], item = item_ids[j];
  if (row < 0 || row + 1 >= sizes.query_offsets.size || item < 0 ||
      item + 1 >= sizes.item_offsets.size) {
    atomicMax(&found[0], kRight - static_cast<int>(j));
    return;
  }
  const std::int64_t n =
      sizes.n_constants + list_size(sizes.query_offsets, row) + list_size(sizes.item_offsets, item);
  const std::int64_t tokens = max(std::int64_t{0}, min(n, most + 1));
  const std::int64_t bin = 2 * tokens + (sizes.cut_queries.data[row] != 0 ? 1 : 0);
  atomicAdd(&found[1 + bin], 1);
  keys[j] |= static_cast<Key>(bin) << 32;
}

__global__ void __launch_bounds__(kThreads)
    take_in_order_kernel(const Key* keys, const std::int32_t* rows, const std::int32_t* item_ids,
                         OrderedPairs out) {
  const std::int64_t j = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= out.places.size) return;
  const std::int32_t place = id_of(keys[j]);
  out.places.data[j] = place;
  out.rows.data[j] = rows[place];
  out.item_ids.data[j] = item_ids[place];
  out.scores.data[j] = __uint_as_float(0x7FC00000U);
}

__device__ float number_of(float logit) { return logit; }
__device__ float number_of(std::uint16_t logit) { return half_to_float(logit); }

template <typename T>
__global__ void __launch_bounds__(kThreads)
    place_kernel(const T* logits, VectorView<const std::int32_t> places, VectorView<float> scores,
                 int* wrong) {
  const std::int64_t j = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= places.size) return;
  const std::int64_t place = places.data[j];
  if (place < 0 || place >= scores.size) {
    *wrong = 1;
    return;
  }
  scores.data[place] = number_of(logits[j]);
}

template <typename T>
void place_any(VectorView<const T> logits, VectorView<const std::int32_t> places,
               VectorView<float> scores) {
  if (logits.size < places.size)
    throw std::invalid_argument("logits: expected " + std::to_string(places.size) +
                                " as places, got " + std::to_string(logits.size));
  const OnFirstDevice device;
  Workspace& ws = workspace();
  ws.found.reserve(1);
  fill_zero(ws.found.data(), 1, ws.stream);
  launch(place_kernel<T>, blocks_for(places.size, kThreads), dim3(kThreads), 0, ws.stream,
         logits.data, places, scores, ws.found.data());
  if (fetch(ws.found.data(), ws.stream) != 0)
    throw std::invalid_argument("places: expected numbers from 0 to " +
                                std::to_string(scores.size - 1));
}

void check_sizes(const PairSizes& sizes, VectorView<const std::int32_t> rows,
                 VectorView<const std::int32_t> item_ids, std::int64_t most,
                 const OrderedPairs& out, MatrixView<std::int32_t> counts) {
  if (sizes.query_offsets.size < 1 || sizes.cut_queries.size != sizes.query_offsets.size - 1)
    throw std::invalid_argument("cut_queries: expected one for each query");
  if (sizes.item_offsets.size < 1)
    throw std::invalid_argument("item_offsets: expected one number at least");
  if (item_ids.size != rows.size)
    throw std::invalid_argument("item_ids: expected " + std::to_string(rows.size) +
                                " numbers as in rows, got " + std::to_string(item_ids.size));
  if (rows.size > kRight - 1)
    throw std::invalid_argument("rows: expected fewer than 2^31 - 1 pairs");
  if (most < 0 || most > kRight / 2 - 2)
    throw std::invalid_argument("most: expected a number from 0 to 2^30 - 3");
  if (counts.rows != most + 2 || counts.cols != 2)
    throw std::invalid_argument("counts: expected shape (most + 2, 2)");
  if (out.rows.size != rows.size || out.item_ids.size != rows.size ||
      out.places.size != rows.size || out.scores.size != rows.size)
    throw std::invalid_argument("out: expected room for each pair");
}

}  // namespace

void order_pairs(const PairSizes& sizes, VectorView<const std::int32_t> rows,
                 VectorView<const std::int32_t> item_ids, std::int64_t most,
                 const OrderedPairs& out, MatrixView<std::int32_t> counts) {
  check_sizes(sizes, rows, item_ids, most, out, counts);
  const OnFirstDevice device;
  Workspace& ws = workspace();
  const Stream& stream = ws.stream;
  ws.small.start(sizes.cut_queries.size + 16);
  PairSizes there = sizes;
  there.cut_queries.data = ws.small.add(sizes.cut_queries.data, sizes.cut_queries.size);
  ws.small.send(stream);
  there.query_offsets = to_device(sizes.query_offsets, ws.query_offsets, stream);
  there.item_offsets = to_device(sizes.item_offsets, ws.item_offsets, stream);
  const VectorView<const std::int32_t> device_rows = to_device(rows, ws.rows, stream);
  const VectorView<const std::int32_t> device_items = to_device(item_ids, ws.item_ids, stream);

  const std::int64_t n_keys = padded_for_sort(rows.size), n_found = 1 + 2 * (most + 2);
  ws.keys.reserve(n_keys);
  ws.found.reserve(n_found);
  ws.found_here.reserve(n_found);
  fill_zero(ws.found.data(), n_found, stream);
  launch(pair_keys_kernel, blocks_for(n_keys, kThreads), dim3(kThreads), 0, stream, there,
         device_rows, device_items.data, most, n_keys, ws.keys.data(), ws.found.data());
  copy(static_cast<const int*>(ws.found.data()), ws.found_here.data(), n_found, stream);
  sort_all_keys(ws.keys.data(), n_keys, stream);
  launch(take_in_order_kernel, blocks_for(rows.size, kThreads), dim3(kThreads), 0, stream,
         static_cast<const Key*>(ws.keys.data()), device_rows.data, device_items.data, out);
  stream.wait();
  const int* found = ws.found_here.data();
  if (found[0] != 0) {
    const std::int64_t j = kRight - found[0];
    check_number(fetch(device_rows.data + j, stream), sizes.query_offsets.size - 1, "rows");
    check_number(fetch(device_items.data + j, stream), sizes.item_offsets.size - 1, "items");
    throw std::runtime_error("order_pairs: the arrays changed while they were read");
  }
  std::copy_n(found + 1, n_found - 1, counts.data);
}

void place_logits(VectorView<const float> logits, VectorView<const std::int32_t> places,
                  VectorView<float> scores) {
  place_any(logits, places, scores);
}

void place_logits(VectorView<const std::uint16_t> logits, VectorView<const std::int32_t> places,
                  VectorView<float> scores) {
  place_any(logits, places, scores);
}

}  // namespace cexnn::cuda
