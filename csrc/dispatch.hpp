// The one place that chooses between cpu and cuda. The contracts are those of als.hpp,
// searcher.hpp and pack.hpp; num_threads are the CPU's.
#pragma once

#include <memory>
#include <string>

#include "als.hpp"
#include "device.hpp"
#include "pack.hpp"
#include "searcher.hpp"

namespace cexnn {

// "cpu" or "cuda"; anything else is std::invalid_argument.
Device device_named(const std::string& name);

// By the name of the enumerator; anything else is std::invalid_argument.
Ranking ranking_named(const std::string& name);

void ridge(Device device, const RidgeProblem& problem, int num_threads, MatrixView<float> out);

std::unique_ptr<AlsSolver> make_als_solver(Device device, const AlsProblem& problem,
                                           int num_threads);

std::unique_ptr<Searcher> make_searcher(Device device, MatrixView<const float> item_factors,
                                        VectorView<const float> item_offsets,
                                        const CompactItems& compact);

void pack_pairs(Device device, const TokenLists& queries, const TokenLists& items,
                VectorView<const std::int32_t> rows, VectorView<const std::int32_t> item_ids,
                const PairFormat& format, std::int64_t max_length,
                MatrixView<std::int64_t> input_ids, MatrixView<std::int64_t> attention_mask,
                MatrixView<std::int64_t> token_type_ids);

}  // namespace cexnn
