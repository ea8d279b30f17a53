// Which kernels to use on x86-64.
#include <cpuid.h>

#include <cstdlib>
#include <cstring>

#include "kernels.hpp"

namespace cexnn::cpu {
namespace {

bool has_f16c() {  // Clang 14 does not know it by name
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
}
bool has_avx512vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

const Kernels& choose() {
  __builtin_cpu_init();
  const Kernels* best = &plain::table();
  const char* wanted = std::getenv("CEXNN_SIMD");
  if (wanted != nullptr && std::strcmp(wanted, best->name) == 0) return *best;
  if (has_avx2()) best = &avx2::table();
  if (wanted != nullptr && std::strcmp(wanted, best->name) == 0) return *best;
  if (has_avx512()) best = &avx512::table();
  if (wanted != nullptr && std::strcmp(wanted, best->name) == 0) return *best;
  if (has_avx512vnni()) best = &avx512vnni::table();
  return *best;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace cexnn::cpu
