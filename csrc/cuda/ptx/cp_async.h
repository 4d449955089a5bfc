// cp.async: copies from global to shared memory that a thread starts, groups, and waits for. A
// thread sees its own copies after the wait; others' after a block barrier besides.
#pragma once

#include "../simt.h"

MLP_NAMESPACE_BEGIN

#if defined(__CUDACC__)

// Copies the first `bytes` of SIZE (4, 8 or 16) and zeroes the rest; both addresses are aligned to
// SIZE. 16 bytes go past L1.
template <int SIZE>
MLP_DEVICE void cp_async(void* shared, const void* global, int bytes) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (SIZE == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(SIZE),
                 "r"(bytes)
                 : "memory");
  }
}

MLP_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most LEFT of the committed groups are under way.
template <int LEFT>
MLP_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

#else

template <int SIZE>
void cp_async(void* shared, const void* global, int bytes) {
  simt::copy_later(shared, global, SIZE, bytes);
}
inline void cp_async_commit() { simt::close_copy_group(); }
template <int LEFT>
void cp_async_wait() {
  simt::wait_for_copies(LEFT);
}

#endif

MLP_NAMESPACE_END
