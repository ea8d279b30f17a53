// Which kernels to use on x86-64.
#include <cstdlib>
#include <cstring>

#include "kernels.hpp"

namespace cexnn::cpu {
namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
}

const Kernels& choose() {
  __builtin_cpu_init();
  const Kernels* best = &plain::table();
  const char* wanted = std::getenv("CEXNN_SIMD");
  if (wanted != nullptr && std::strcmp(wanted, best->name) == 0) return *best;
  if (has_avx2()) best = &avx2::table();
  if (wanted != nullptr && std::strcmp(wanted, best->name) == 0) return *best;
  if (has_avx512()) best = &avx512::table();
  return *best;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace cexnn::cpu
