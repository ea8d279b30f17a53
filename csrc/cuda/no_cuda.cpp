// What a build without CUDA has in place of its kernels.
#include <stdexcept>

#include "../als.hpp"
#include "../device.hpp"
#include "../device_arrays.hpp"
#include "../embedding_map.hpp"
#include "../known.hpp"
#include "../pack.hpp"
#include "../pair_order.hpp"
#include "../score_units.hpp"
#include "../searcher.hpp"

namespace cexnn::cuda {
namespace {

[[noreturn]] void refuse() { throw std::runtime_error("this build of cexnn has no CUDA kernels"); }

}  // namespace

bool available() noexcept { return false; }

std::shared_ptr<void> allocate(std::int64_t) { refuse(); }

void copy_bytes(const void*, void*, std::int64_t) { refuse(); }

std::int64_t free_memory() { refuse(); }

void wait_for_default_stream() { refuse(); }

void ridge(const RidgeProblem&, MatrixView<float>) { refuse(); }

std::unique_ptr<AlsSolver> make_als_solver(const AlsProblem&) { refuse(); }

std::unique_ptr<Searcher> make_searcher(MatrixView<const float>, VectorView<const float>,
                                        const CompactItems&) {
  refuse();
}

void append(const ScoredItems&, const ScoredItems&, MatrixView<std::int32_t>, MatrixView<float>) {
  refuse();
}

void standardise(MatrixView<const float>, MatrixView<float>) { refuse(); }

void draw_in(MatrixView<const float>, MatrixView<float>) { refuse(); }

void bend(const ScoreMap&, MatrixView<const float>, MatrixView<float>) { refuse(); }

void copy_strided(const StridedArray&, void*) { refuse(); }

void to_floats(const void*, int, std::int64_t, float*) { refuse(); }

void take_rows(const void*, std::int64_t, std::int64_t, VectorView<const std::int32_t>, void*) {
  refuse();
}

bool all_within(VectorView<const float>, float) { refuse(); }

void map_embeddings(MatrixView<const float>, const EmbeddingMap&, MatrixView<float>) { refuse(); }

void order_pairs(const PairSizes&, VectorView<const std::int32_t>, VectorView<const std::int32_t>,
                 std::int64_t, const OrderedPairs&, MatrixView<std::int32_t>) {
  refuse();
}

void place_logits(VectorView<const float>, VectorView<const std::int32_t>, VectorView<float>) {
  refuse();
}

void place_logits(VectorView<const std::uint16_t>, VectorView<const std::int32_t>,
                  VectorView<float>) {
  refuse();
}

void pack_pairs(const TokenLists&, const TokenLists&, VectorView<const std::int32_t>,
                VectorView<const std::int32_t>, const PairFormat&, std::int64_t,
                MatrixView<std::int64_t>, MatrixView<std::int64_t>, MatrixView<std::int64_t>) {
  refuse();
}

}  // namespace cexnn::cuda
