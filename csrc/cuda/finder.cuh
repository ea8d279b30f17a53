// The launches that find the best items of queries on the device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "item_store.cuh"
#include "launch.cuh"
#include "panels.cuh"
#include "rank.cuh"
#include "runtime.cuh"
#include "scan.cuh"
#include "scan_bulk.cuh"
#include "sort.cuh"
#include "workspace.cuh"

namespace cexnn::cuda {

// Most that one pass over the items keeps of a query: beyond, all scores are sorted.
constexpr int kMostKept = 3584;
// Queries from which on the matrix units take them side by side.
constexpr std::int64_t kManyQueries = 4;

// A room for keys that n_kept are well chosen in, with kScanTile to spare.
inline int room_for(int n_kept) {
  int room = 1024;
  while (room < n_kept + kScanTile) room *= 2;
  return room;
}

// Finds among items of one type. `Exact` says by what answers are ranked where T is not float, and
// where the matrix units are used.
template <typename T>
class Finder {
 public:
  Finder(const Rows<T>& items, const Adjustments& adjust, const Exact& exact)
      : items_(items), adjust_(adjust), exact_(exact) {}

  // One pass over the items for each query. Unsure ones only where T is not float.
  void scan(Workspace& ws, Queries queries, std::int64_t n_queries, Answers out) const {
    constexpr bool kRough = !std::is_same_v<T, float>;
    constexpr std::int64_t kKeysAtOnce = std::int64_t{1} << 25;
    const auto n_kept = static_cast<int>(kRough ? with_spare(out.k) : out.k);
    const int room = room_for(n_kept);
    const std::int64_t n_blocks = scan_blocks(n_queries), keys_a_query = n_blocks * n_kept;
    const std::int64_t step =
        std::min(n_queries, std::clamp<std::int64_t>(kKeysAtOnce / keys_a_query, 1, 65535));
    ws.keys.reserve(step * keys_a_query);
    for (std::int64_t q = 0; q < n_queries; q += step) {
      const Selection select{ws.keys.data(),  n_kept,           room, kRough, exact_,
                             part_of(out, q), ws.arrived.data()};
      launch_scan(ws, dim3(unsigned(n_blocks), unsigned(std::min(step, n_queries - q))),
                  part_of(queries, q), select);
    }
  }

  bool can_scan(int k) const { return with_spare(k) <= kMostKept; }

  // Two rows of one query are one pass over the items in a batch, two in a scan.
  bool can_batch(const Queries& queries, std::int64_t n_queries, int k) const {
    const bool many = n_queries >= kManyQueries || queries.paired != 0;
    return many && items_.chunks > 0 && with_spare(k) <= kListRoom / 4 &&
           device_properties().instructions >= 80 && columns(n_queries) > 0;
  }

  // The queries side by side on the matrix units; some may remain unsure.
  void batch(Workspace& ws, Queries queries, std::int64_t n_queries, Answers out) const {
    const std::int64_t n_kept = with_spare(out.k);
    const int units = panel_units_a_row<T>(items_.chunks);
    ws.counts.reserve(2 * n_queries);
    ws.list_floats.reserve(2 * n_queries + 1);
    ws.packed.reserve(n_queries * units);
    ws.keys.reserve(n_queries * kListRoom);
    const Lists lists{ws.keys.data(), ws.counts.data(), ws.list_floats.data(),
                      ws.counts.data() + n_queries};
    const PackedQueries packed{ws.packed.data(), ws.list_floats.data() + n_queries,
                               ws.list_floats.data() + 2 * n_queries, units};
    // Each range brings about so many candidates that the list is half full: those kept, for each
    // time that the range is longer than all before it.
    const std::int64_t growth = (kListRoom / 2 - n_kept) / n_kept;
    std::int64_t begin = 0, end = kListRoom / 2;
    launch(pack_queries_kernel, dim3(unsigned(n_queries)), dim3(32), 0, ws.stream, queries,
           std::is_same_v<T, float> ? exact_.largest_size : nullptr, packed, lists,
           static_cast<int>(std::min(end, items_.n)));
    for (bool last = false; !last; begin = end, end += growth * end) {
      last = end >= items_.n;
      end = std::min(end, items_.n);
      scan_panels(ws, begin, end, n_queries, packed, lists);
      launch(cut_lists_kernel, dim3(unsigned(n_queries)), dim3(kRankThreads),
             kListRoom * sizeof(Key), ws.stream, lists, static_cast<int>(n_kept), last, exact_,
             queries, out);
    }
  }

 private:
  static Queries part_of(Queries queries, std::int64_t q) {
    queries.first += q;
    return queries;
  }
  static Answers part_of(Answers out, std::int64_t q) {
    return {out.ids + q * out.k, out.approx + q * out.k, out.unsure + q, out.k};
  }

  // Blocks of each query: those of up to kSideBySide queries fill the device together, so that what
  // one reads from memory lies in the cache for the others.
  std::int64_t scan_blocks(std::int64_t n_queries) const {
    constexpr std::int64_t kSideBySide = 8;
    const std::int64_t at_once = 2 * device_properties().multiprocessors,
                       n_tiles = (items_.n + kScanTile - 1) / kScanTile;
    return std::max<std::int64_t>(1, std::min(n_tiles, at_once / std::min(n_queries, kSideBySide)));
  }

  void launch_scan(Workspace& ws, dim3 grid, const Queries& queries,
                   const Selection& select) const {
    const auto key_bytes = select.capacity * static_cast<std::int64_t>(sizeof(Key));
    const BulkScan<T> bulk = bulk_scan_for<T>(items_.chunks);
    const bool can = device_properties().instructions >= 90 && items_.chunks > 0;
    if (!can || bulk.kernel == nullptr) {
      launch(scan_kernel_for<T>(items_.chunks), grid, dim3(kScanThreads),
             static_cast<std::size_t>(key_bytes), ws.stream, items_, adjust_, queries, select);
      return;
    }
    // As many stages as two blocks of a multiprocessor have room for.
    constexpr std::int64_t kBeside = 2048;  // of a block: static arrays, and what the device takes
    const std::int64_t stage_bytes =
        bulk.items_a_stage * items_.chunks * static_cast<std::int64_t>(sizeof(uint4));
    const std::int64_t room = device_properties().shared_bytes_a_block / 2 - kBeside - key_bytes;
    const auto n_stages = std::clamp<std::int64_t>(room / stage_bytes, 2, kMostStages);
    launch_early(bulk.kernel, grid, dim3(kScanThreads),
                 static_cast<std::size_t>(key_bytes + n_stages * stage_bytes), ws.stream, items_,
                 adjust_, queries, select, static_cast<int>(n_stages));
  }

  static std::int64_t with_spare(std::int64_t k) {
    return std::is_same_v<T, std::int8_t> ? k + k / 4 + 32 : k + 32;
  }

  std::int64_t panel_bytes(int n_columns) const {
    constexpr std::int64_t kUnit = sizeof(uint4);
    return (32 * n_columns * panel_units_a_row<T>(items_.chunks) +
            kSlices * kPanelItems * kSliceUnits) *
           kUnit;
  }

  // Of panel_kernel: the widest panel that the queries fill and shared memory holds, or 0.
  int columns(std::int64_t n_queries) const {
    const auto fits = [&](int n) {
      const std::int64_t static_bytes = 1024 + 3072 * n;
      return panel_bytes(n) + static_bytes <= device_properties().shared_bytes_a_block;
    };
    if (n_queries > 128 && fits(8)) return 8;
    if (n_queries > 32 && fits(4)) return 4;
    return fits(1) ? 1 : 0;
  }

  void scan_panels(Workspace& ws, std::int64_t begin, std::int64_t end, std::int64_t n_queries,
                   const PackedQueries& packed, const Lists& lists) const {
    const int n_columns = columns(n_queries);
    const auto n_panels = (n_queries + 32 * n_columns - 1) / (32 * n_columns);
    const std::int64_t n_tiles = (end - begin + kPanelItems - 1) / kPanelItems;
    const std::int64_t n_blocks = std::min<std::int64_t>(
        n_tiles, std::max<std::int64_t>(1, device_properties().multiprocessors / n_panels));
    const auto kernel = n_columns == 8   ? panel_kernel<T, 8>
                        : n_columns == 4 ? panel_kernel<T, 4>
                                         : panel_kernel<T, 1>;
    launch(kernel, dim3(unsigned(n_blocks), unsigned(n_panels)), dim3(kPanelThreads),
           static_cast<std::size_t>(panel_bytes(n_columns)), ws.stream, items_, begin, end, adjust_,
           n_queries, packed, lists);
  }

  Rows<T> items_;
  Adjustments adjust_;
  Exact exact_;
};

// Any number of answers: every item's key, sorted. n log2(n)^2 / 2 pairs compared, most of them in
// shared memory.
inline void sort_all(Workspace& ws, const Exact& exact, Queries queries, std::int64_t n_queries,
                     Answers out) {
  constexpr int kThreads = 256;
  const Rows<float>& items = exact.items;
  const std::int64_t n_keys = padded_for_sort(items.n);
  ws.keys.reserve(n_keys);
  Key* keys = ws.keys.data();
  for (std::int64_t q = 0; q < n_queries; ++q) {
    launch(all_keys_kernel, blocks_for(n_keys * lanes_of(items.chunks), kThreads), dim3(kThreads),
           0, ws.stream, items, exact.offsets, queries, q, n_keys, keys);
    sort_all_keys(keys, n_keys, ws.stream);
    launch(write_sorted_kernel, blocks_for(std::max(out.k, 1), kThreads), dim3(kThreads), 0,
           ws.stream, keys, n_keys, q, out);
  }
}

}  // namespace cexnn::cuda
