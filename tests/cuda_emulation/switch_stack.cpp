#include "switch_stack.hpp"

// Pushes what a call must preserve, leaves the stack at *save, goes on with the one at load.
extern "C" void cuda_emulation_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.globl cuda_emulation_switch
.hidden cuda_emulation_switch
.type cuda_emulation_switch,@function
cuda_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulation_switch,.-cuda_emulation_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl cuda_emulation_switch
.hidden cuda_emulation_switch
.type cuda_emulation_switch,@function
cuda_emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size cuda_emulation_switch,.-cuda_emulation_switch
)");
#else
#error "the emulation knows how to switch stacks on x86-64 and on aarch64 only"
#endif

namespace cuda_emulation {

void switch_stack(void** save, void* load) { cuda_emulation_switch(save, load); }

void* new_stack(char* top, void (*main)()) {
  auto** at = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
  *--at = nullptr;  // as if main had been called from nowhere
  *--at = reinterpret_cast<void*>(main);
  at -= 6;
#else
  at -= 20;
  at[11] = reinterpret_cast<void*>(main);  // x30
#endif
  return at;
}

}  // namespace cuda_emulation
