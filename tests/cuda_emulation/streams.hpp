// What is put on streams, until somebody waits.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <mutex>
#include <string>

namespace cuda_emulation {

using Work = std::function<void()>;

using Lock = std::lock_guard<std::recursive_mutex>;
extern std::recursive_mutex device_mutex;  // over all of the device
extern std::string last_message;           // of the work that failed

// Whether a graph under way keeps the calling thread from allocating and freeing: its own, or one
// that another thread records in the global mode while this one is in that mode, too.
bool recording_forbids();

bool is_capturing(cudaStream_t stream);
cudaError_t put(cudaStream_t stream, Work work);
cudaError_t drain_all();  // all streams, to their ends

}  // namespace cuda_emulation
