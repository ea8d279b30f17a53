// Processors with one instruction set: the compiler's own target.
#include "kernels.hpp"

namespace cexnn::cpu {

const Kernels& kernels() { return plain::table(); }

}  // namespace cexnn::cpu
