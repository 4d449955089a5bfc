// Where the members of a team meet before any goes on.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

namespace mlp_ext {

// They come from work of about equal length, so they spin. If the others do not come, they may be
// waiting for this core: it is offered to them, and at last left. (GOMP_barrier would be met by the
// whole pool, also by the threads that have no task.)
class Barrier {
 public:
  using Clock = std::chrono::steady_clock;

  // Returns how long the others let this one wait after its spins: 0 nearly always.
  Clock::duration wait(int members) {
    const int turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      turn_.notify_all();  // no system call where nobody sleeps
      return {};
    }
    for (int spins = 0; spins < kSpins; ++spins) {
      if (turn_.load(std::memory_order_acquire) != turn) return {};
      relax();
    }
    const auto begin = Clock::now();
    auto waited = Clock::duration();
    while (turn_.load(std::memory_order_acquire) == turn) {
      if (waited < kOffered) {
        std::this_thread::yield();
      } else {
        turn_.wait(turn, std::memory_order_acquire);
      }
      waited = Clock::now() - begin;
    }
    return waited;
  }

 private:
  static constexpr int kSpins = 4'000;  // pauses of 10 to 60 ns
  static constexpr Clock::duration kOffered = std::chrono::milliseconds(1);

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::atomic<int> arrived_{0}, turn_{0};
};

}  // namespace mlp_ext
