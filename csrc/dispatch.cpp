#include "dispatch.hpp"

#include <stdexcept>

namespace cexnn {
namespace {

// Calls on_cpu or on_cuda: the only switch on the device.
template <typename OnCpu, typename OnCuda>
auto on(Device device, const OnCpu& on_cpu, const OnCuda& on_cuda) {
  switch (device) {
    case Device::cpu:
      return on_cpu();
    case Device::cuda:
      if (!cuda::available())
        throw std::runtime_error("device 'cuda': no CUDA device, or a build without CUDA");
      return on_cuda();
  }
  throw std::invalid_argument("device: expected cpu or cuda");
}

}  // namespace

Device device_named(const std::string& name) {
  if (name == "cpu") return Device::cpu;
  if (name == "cuda") return Device::cuda;
  throw std::invalid_argument("device: expected 'cpu' or 'cuda', got '" + name + "'");
}

Ranking ranking_named(const std::string& name) {
  if (name == "with_offsets") return Ranking::with_offsets;
  if (name == "without_offsets") return Ranking::without_offsets;
  if (name == "both") return Ranking::both;
  throw std::invalid_argument(
      "ranking: expected 'with_offsets', 'without_offsets' or 'both', got '" + name + "'");
}

void ridge(Device device, const RidgeProblem& problem, int num_threads, MatrixView<float> out) {
  on(device, [&] { cpu::ridge(problem, num_threads, out); }, [&] { cuda::ridge(problem, out); });
}

std::unique_ptr<AlsSolver> make_als_solver(Device device, const AlsProblem& problem,
                                           int num_threads) {
  return on(
      device, [&] { return cpu::make_als_solver(problem, num_threads); },
      [&] { return cuda::make_als_solver(problem); });
}

std::unique_ptr<Searcher> make_searcher(Device device, MatrixView<const float> item_factors,
                                        VectorView<const float> item_offsets,
                                        const CompactItems& compact) {
  return on(
      device, [&] { return cpu::make_searcher(item_factors, item_offsets, compact); },
      [&] { return cuda::make_searcher(item_factors, item_offsets, compact); });
}

void pack_pairs(Device device, const TokenLists& queries, const TokenLists& items,
                VectorView<const std::int32_t> rows, VectorView<const std::int32_t> item_ids,
                const PairFormat& format, std::int64_t max_length,
                MatrixView<std::int64_t> input_ids, MatrixView<std::int64_t> attention_mask,
                MatrixView<std::int64_t> token_type_ids) {
  on(
      device,
      [&] {
        cpu::pack_pairs(queries, items, rows, item_ids, format, max_length, input_ids,
                        attention_mask, token_type_ids);
      },
      [&] {
        cuda::pack_pairs(queries, items, rows, item_ids, format, max_length, input_ids,
                         attention_mask, token_type_ids);
      });
}

}  // namespace cexnn
