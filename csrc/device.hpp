// Where the numerical work runs.
#pragma once

namespace cexnn {

enum class Device { cpu, cuda };

namespace cuda {
// Whether this build has CUDA code and a device to run it on. Never throws.
bool available() noexcept;
}  // namespace cuda

}  // namespace cexnn
