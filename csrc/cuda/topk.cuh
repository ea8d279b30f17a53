// The best of a stream of scored items, by a block of threads.
//
// A candidate is one 64-bit key: its score in the upper half, in bits that order as the number
// does, its id in the lower half, complemented. So the larger key is the better candidate, ties
// included, all keys differ, and what is selected does not depend on the order in which threads
// met it. Items above the bar, the k-th best so far, are appended to a buffer in shared memory;
// when that fills, its ids are looked up in the mask, it is sorted, and cut to the k best. Sorting
// n keys takes log2(n) (log2(n) + 1) / 2 steps of n / 2 compared pairs; a block that meets n items
// in random order appends k (1 + ln(n / k)) of them.
#pragma once

#include <cstdint>
#include <intrinsics.cuh>

namespace cexnn::cuda {

using Key = std::uint64_t;

constexpr Key kNone = 0;  // worse than any: its id is -1, its score NaN

__device__ inline Key key_of(float score, std::int32_t id) {
  const std::uint32_t bits = __float_as_uint(score + 0.0F);  // minus zero equals zero
  const std::uint32_t ordered = (bits >> 31) != 0U ? ~bits : bits | 0x80000000U;
  return Key{ordered} << 32 | ~static_cast<std::uint32_t>(id);
}

__device__ inline std::int32_t id_of(Key key) {
  return static_cast<std::int32_t>(~static_cast<std::uint32_t>(key));
}

__device__ inline float score_of(Key key) {
  const auto ordered = static_cast<std::uint32_t>(key >> 32);
  return __uint_as_float((ordered >> 31) != 0U ? ordered & 0x7FFFFFFFU : ~ordered);
}

constexpr float kMinusInfinity = -__builtin_huge_valf();

// What a score must exceed if the k-th best so far is `kth`. NaN and minus infinity never do.
__device__ inline float bar_of(Key kth) { return kth == kNone ? kMinusInfinity : score_of(kth); }

// A query's ids that must not be returned: a hash table with open addressing, -1 where free.
struct Mask {
  const std::int32_t* table = nullptr;
  std::uint32_t size = 0;  // a power of two, or zero: nothing is excluded

  __device__ static std::uint32_t place(std::int32_t id, std::uint32_t size) {
    return (static_cast<std::uint32_t>(id) * 2654435769U >> 7) & (size - 1);
  }

  __device__ bool contains(std::int32_t id) const {
    if (size == 0) return false;
    for (std::uint32_t at = place(id, size);; at = (at + 1) & (size - 1)) {
      if (table[at] == id) return true;
      if (table[at] < 0) return false;
    }
  }
};

// By a whole block, which clears the table first. Each probe reads 4 bytes; the table is half full.
__device__ inline void fill_mask(const std::int32_t* ids, std::int64_t n, std::int32_t* table,
                                 std::uint32_t size) {
  for (std::uint32_t at = threadIdx.x; at < size; at += blockDim.x) table[at] = -1;
  __syncthreads();
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    std::uint32_t at = Mask::place(ids[i], size);
    for (;;) {
      const int before = atomicCAS(&table[at], -1, ids[i]);
      if (before == -1 || before == ids[i]) break;
      at = (at + 1) & (size - 1);
    }
  }
}

// One comparison of a bitonic sort: keys[low] and keys[low + stride], which are numbers first + low
// and so on of the keys that are sorted together.
template <typename Index>
__device__ void order_pair(Key* keys, Index low, Index stride, std::int64_t first,
                           std::int64_t size) {
  const Key a = keys[low], b = keys[low + stride];
  if ((a < b) == (((first + low) & size) == 0)) {
    keys[low] = b;
    keys[low + stride] = a;
  }
}

// Sorts n keys, a power of two, the largest first. Every thread of the block calls it, with the
// keys visible to all; they are again when it returns. A step whose pairs lie within the 64 keys
// of a warp waits for that warp alone. Of a sort of more keys, of which these are the numbers
// `first` and following: what falls to them, for the sizes from `from` to `to`.
__device__ inline void sort_keys(Key* keys, int n, std::int64_t first, std::int64_t from,
                                 std::int64_t to) {
  for (std::int64_t size = from; size <= to; size *= 2) {
    const int widest = static_cast<int>(min(size, std::int64_t{n})) / 2;
    const int widest_next = static_cast<int>(min(2 * size, std::int64_t{n})) / 2;
    for (int stride = widest; stride > 0; stride /= 2) {
      for (int i = static_cast<int>(threadIdx.x); i < n / 2; i += static_cast<int>(blockDim.x))
        order_pair(keys, 2 * i - (i & (stride - 1)), stride, first, size);
      if (max(stride, stride > 1 ? stride / 2 : widest_next) > 32) {
        __syncthreads();
      } else {
        __syncwarp();
      }
    }
  }
  __syncthreads();
}

__device__ inline void sort_keys(Key* keys, int n) { sort_keys(keys, n, 0, 2, n); }

// The best k of what a block meets. `capacity`, a power of two, is the room for keys; between two
// calls of `cut` no more than capacity - k may be appended, and what is appended after a cut must
// have larger ids than what came before if it is compared by its score alone.
class BlockTop {
 public:
  struct Shared {
    int count;
    Key kth;
  };

  __device__ BlockTop(Shared& shared, Key* keys, int k, int capacity)
      : shared_(shared), keys_(keys), k_(k), capacity_(capacity) {
    if (threadIdx.x == 0) shared_ = {0, kNone};
    __syncthreads();
  }

  __device__ int count() const { return shared_.count; }
  __device__ Key kth() const { return shared_.kth; }
  __device__ Key operator[](int i) const { return keys_[i]; }
  __device__ Key* keys() const { return keys_; }

  // Every thread calls it: the n keys, at most the room there is, and nothing else.
  __device__ void load(const Key* from, int n) {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
      keys_[i] = from[i];
    if (threadIdx.x == 0) shared_.count = n;
    __syncthreads();
  }

  __device__ void append(Key key) { keys_[atomicAdd(&shared_.count, 1)] = key; }

  // Every thread calls it, after a barrier: leaves the best, sorted, and raises the bar.
  __device__ void cut(const Mask& mask) {
    const int n = shared_.count;
    int size = 2;
    while (size < n) size *= 2;
    for (int i = static_cast<int>(threadIdx.x); i < size; i += static_cast<int>(blockDim.x))
      if (i >= n || (keys_[i] != kNone && mask.contains(id_of(keys_[i])))) keys_[i] = kNone;
    __syncthreads();
    sort_keys(keys_, size);
    if (threadIdx.x == 0) shared_ = {n < k_ ? n : k_, n < k_ ? kNone : keys_[k_ - 1]};
    __syncthreads();
  }

  // Whether another `more` fit. Between this and the next append there must be a barrier.
  __device__ bool full(int more) const { return shared_.count + more > capacity_; }

 private:
  Shared& shared_;
  Key* keys_;
  int k_;
  int capacity_;
};

}  // namespace cexnn::cuda
