// A place where a fiber goes on: ucontext's, and between fibers of an ordinary build setjmp's,
// which unlike swapcontext asks the kernel for nothing (the sanitizers know swapcontext alone).
#pragma once

#include <csetjmp>
#include <cstddef>
#include <ucontext.h>

namespace simt {

class Context {
 public:
  // The next switch to it calls `enter` on the stack.
  void begin(void (*enter)(), void* stack, size_t size) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack, context_.uc_stack.ss_size = size;
    context_.uc_link = nullptr;
    makecontext(&context_, enter, 0);
    has_left_ = false;
  }
  // Goes on at `next`; returns when another fiber switches to this.
  void leave_for(Context& next) {
#if defined(SIMT_ASAN) || defined(SIMT_TSAN)
    swapcontext(&context_, &next.context_);
#else
    has_left_ = true;
    if (_setjmp(here_) != 0) return;
    if (next.has_left_) _longjmp(next.here_, 1);
    setcontext(&next.context_);
#endif
  }

 private:
  ucontext_t context_;
  jmp_buf here_;
  bool has_left_ = false;
};

}  // namespace simt
