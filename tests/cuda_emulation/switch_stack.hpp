// Stacks that a thread of the CPU changes between.
#pragma once

namespace cuda_emulation {

// Keeps the place reached on this stack at *save, and goes on at the place kept as `load`.
void switch_stack(void** save, void* load);

// The place to switch to for calling main() on the stack that ends at `top`, which is a multiple
// of 16. It must not return.
void* new_stack(char* top, void (*main)());

}  // namespace cuda_emulation
