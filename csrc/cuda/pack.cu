#include <algorithm>
#include <limits>

#include "../pack_checks.hpp"
#include "launch.cuh"
#include "memory.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 32;
constexpr int kPairsPerBlock = kThreads / kLanes;

// TokenLists on the device.
struct Lists {
  const std::int64_t* offsets;
  const std::int32_t* ids;
  std::int64_t count;
  std::int64_t n_ids;
};

// PairFormat on the device: prefix, middle and suffix one after another.
struct Layout {
  const std::int32_t* constants;
  const std::int32_t* types;
  std::int64_t n_prefix, n_middle, n_suffix;
  std::int32_t query_type, item_type, pad_id, pad_type;
  std::int64_t max_length, width;
};

struct Outputs {
  std::int64_t* ids;
  std::int64_t* mask;
  std::int64_t* types;
};

// What is wrong, the first of it: 0 queries' ends, 1 items' ends, 2 + j pair j. The device keeps
// kRight minus it, the largest; 0 where nothing is.
constexpr long long kRight = std::numeric_limits<long long>::max();
constexpr std::int64_t kFirstPair = 2;

__device__ void report(long long* wrong, std::int64_t what) { atomicMax(wrong, kRight - what); }

struct Span {
  std::int64_t begin = 0;
  std::int64_t size = -1;  // negative: there is no such list
};

__device__ Span span_of(const Lists& lists, std::int64_t i) {
  Span span;
  if (i < 0 || i >= lists.count) return span;
  const std::int64_t begin = lists.offsets[i], end = lists.offsets[i + 1];
  if (begin < 0 || end < begin || end > lists.n_ids) return span;
  span.begin = begin;
  span.size = end - begin;
  return span;
}

__device__ bool ends_are_right(const Lists& lists) {
  return lists.offsets[0] == 0 && lists.offsets[lists.count] == lists.n_ids;
}

// A warp to a row, its lanes side by side along it.
__global__ void __launch_bounds__(kThreads)
    pack_kernel(Lists queries, Lists items, const std::int32_t* rows, const std::int32_t* item_ids,
                std::int64_t n_pairs, std::int64_t n_rows, Layout layout, Outputs out,
                long long* wrong) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    if (!ends_are_right(queries)) report(wrong, 0);
    if (!ends_are_right(items)) report(wrong, 1);
  }
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t n_constants = layout.n_prefix + layout.n_middle + layout.n_suffix;
  for (std::int64_t j = std::int64_t{blockIdx.x} * kPairsPerBlock + threadIdx.x / kLanes;
       j < n_rows; j += std::int64_t{gridDim.x} * kPairsPerBlock) {
    const std::int64_t pair = j < n_pairs ? j : n_pairs - 1;
    const Span query = span_of(queries, rows[pair]), item = span_of(items, item_ids[pair]);
    const std::int64_t room = layout.max_length - n_constants - query.size;
    const std::int64_t n_item = item.size < room ? item.size : room;
    const std::int64_t n_tokens = n_constants + query.size + n_item;
    if (query.size < 0 || item.size < 0 || room < 0 || n_tokens > layout.width) {
      if (lane == 0) report(wrong, kFirstPair + pair);
      continue;
    }
    const std::int64_t query_at = layout.n_prefix, middle_at = query_at + query.size;
    const std::int64_t item_at = middle_at + layout.n_middle, suffix_at = item_at + n_item;
    for (std::int64_t t = lane; t < layout.width; t += kLanes) {
      std::int32_t id = layout.pad_id, type = layout.pad_type;
      if (t < n_tokens) {
        if (t >= query_at && t < middle_at) {
          id = queries.ids[query.begin + t - query_at];
          type = layout.query_type;
        } else if (t >= item_at && t < suffix_at) {
          id = items.ids[item.begin + t - item_at];
          type = layout.item_type;
        } else {
          const std::int64_t skipped = t < query_at ? 0 : query.size + (t < item_at ? 0 : n_item);
          id = layout.constants[t - skipped];
          type = layout.types[t - skipped];
        }
      }
      const std::int64_t at = j * layout.width + t;
      out.ids[at] = id;
      out.mask[at] = t < n_tokens ? 1 : 0;
      out.types[at] = type;
    }
  }
}

// A thread's own, kept from call to call.
struct Workspace {
  Stream stream;
  Gathered small;
  DeviceBuffer<std::int64_t> query_offsets, item_offsets, ids, mask, types;
  DeviceBuffer<std::int32_t> query_ids, item_ids;
  DeviceBuffer<long long> wrong;
  PinnedBuffer<long long> wrong_here;

  Workspace() : wrong(1), wrong_here(1) {}
};

Lists on_the_device(const TokenLists& lists, DeviceBuffer<std::int64_t>& offsets,
                    DeviceBuffer<std::int32_t>& ids, const Stream& stream) {
  return {to_device(lists.offsets.data, lists.offsets.size, offsets, stream),
          to_device(lists.ids.data, lists.ids.size, ids, stream), lists.count(), lists.ids.size};
}

std::int64_t check_fetched(const TokenLists& lists, std::int64_t i, const char* name,
                           const Stream& stream) {
  check_number(i, lists.count(), name);
  const std::int64_t begin = fetch(lists.offsets.data + i, stream);
  const std::int64_t end = fetch(lists.offsets.data + i + 1, stream);
  check_span(begin, end, lists.ids.size, i, name);
  return end - begin;
}

void check_fetched_ends(const TokenLists& lists, const char* name, const Stream& stream) {
  check_ends(fetch(lists.offsets.data, stream), fetch(lists.offsets.data + lists.count(), stream),
             lists.ids.size, name);
}

// Throws what is wrong with what the kernel refused: it looks at the same numbers again, here.
[[noreturn]] void explain(std::int64_t what, const TokenLists& queries, const TokenLists& items,
                          const std::int32_t* rows, const std::int32_t* item_ids,
                          const Layout& layout, const Stream& stream) {
  if (what == 0) check_fetched_ends(queries, "queries", stream);
  if (what == 1) check_fetched_ends(items, "items", stream);
  if (what >= kFirstPair) {
    const std::int64_t j = what - kFirstPair;
    const std::int32_t row = fetch(rows + j, stream);
    const std::int64_t n_query = check_fetched(queries, row, "rows", stream);
    const std::int64_t n_item =
        check_fetched(items, fetch(item_ids + j, stream), "item_ids", stream);
    const std::int64_t n_fixed = layout.n_prefix + layout.n_middle + layout.n_suffix + n_query;
    check_length(n_fixed, layout.max_length, row);
    check_width(n_fixed + std::min(n_item, layout.max_length - n_fixed), layout.width, j);
  }
  throw std::runtime_error("pack_pairs: the arrays changed while they were read");
}

}  // namespace

void pack_pairs(const TokenLists& queries, const TokenLists& items,
                VectorView<const std::int32_t> rows, VectorView<const std::int32_t> item_ids,
                const PairFormat& format, std::int64_t max_length,
                MatrixView<std::int64_t> input_ids, MatrixView<std::int64_t> attention_mask,
                MatrixView<std::int64_t> token_type_ids) {
  check_shapes(queries, items, rows, item_ids, format, input_ids, attention_mask, token_type_ids);
  check_ends(format.constants, "constants");
  const OnFirstDevice device;
  thread_local Workspace space;
  const Stream& stream = space.stream;
  const TokenLists& constants = format.constants;
  space.small.start(4 * (rows.size + item_ids.size + constants.ids.size + format.types.size) + 64);
  const std::int32_t* device_rows = space.small.add(rows.data, rows.size);
  const std::int32_t* device_items = space.small.add(item_ids.data, item_ids.size);
  const Layout layout{space.small.add(constants.ids.data, constants.ids.size),
                      space.small.add(format.types.data, format.types.size),
                      checked_list(constants, 0, "constants").size,
                      checked_list(constants, 1, "constants").size,
                      checked_list(constants, 2, "constants").size,
                      format.query_type,
                      format.item_type,
                      format.pad_id,
                      format.pad_type,
                      max_length,
                      input_ids.cols};
  space.small.send(stream);
  const Lists query_lists = on_the_device(queries, space.query_offsets, space.query_ids, stream);
  const Lists item_lists = on_the_device(items, space.item_offsets, space.item_ids, stream);
  const std::int64_t n_rows = input_ids.rows, n = n_rows * input_ids.cols;
  const Outputs out{output_on_device(input_ids.data, n, space.ids),
                    output_on_device(attention_mask.data, n, space.mask),
                    output_on_device(token_type_ids.data, n, space.types)};

  const std::int64_t n_blocks = std::max<std::int64_t>(
      1, std::min<std::int64_t>((n_rows + kPairsPerBlock - 1) / kPairsPerBlock,
                                16 * device_properties().multiprocessors));
  fill_zero(space.wrong.data(), 1, stream);
  launch(pack_kernel, dim3(static_cast<unsigned>(n_blocks)), dim3(kThreads), 0, stream, query_lists,
         item_lists, device_rows, device_items, rows.size, n_rows, layout, out, space.wrong.data());
  copy(static_cast<const long long*>(space.wrong.data()), space.wrong_here.data(), 1, stream);
  deliver(static_cast<const std::int64_t*>(out.ids), input_ids.data, n, stream);
  deliver(static_cast<const std::int64_t*>(out.mask), attention_mask.data, n, stream);
  deliver(static_cast<const std::int64_t*>(out.types), token_type_ids.data, n, stream);
  stream.wait();
  const long long wrong = *space.wrong_here.data();
  if (wrong != 0) explain(kRight - wrong, queries, items, rows.data, item_ids.data, layout, stream);
}

}  // namespace cexnn::cuda
