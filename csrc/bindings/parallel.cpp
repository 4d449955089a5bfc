#include "parallel.h"

#include <ATen/Parallel.h>
#include <c10/util/ParallelGuard.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

// What `#pragma omp parallel` compiles to under GCC, called by name: libgomp.so.1 is the library
// that torch has loaded, so these are torch's threads with any compiler. (clang's -fopenmp would
// bring up LLVM's runtime and a second pool beside it.)
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned num_threads, unsigned flags);
int omp_get_thread_num();
int omp_get_num_threads();
}

namespace mlp_ext {

namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Where the members of a team meet before any goes on. They come from work of about equal length,
// so they spin; but if the others do not come they may be waiting for this core. (GOMP_barrier
// would be met by the whole pool, also by the threads that have no task.)
class Barrier {
 public:
  void wait(int members) {
    const int turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    int spins = 0;
    while (turn_.load(std::memory_order_acquire) == turn) {
      if (spins < kSpins) {
        ++spins;
        relax();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 10'000;  // a few hundred microseconds

  std::atomic<int> arrived_{0}, turn_{0};
};

struct Region {
  int phases, tasks;
  const std::function<void(int, int)>& body;
  Barrier barrier{};
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr error{};

  void run_member(int member, int members) {
    const c10::ParallelGuard guard(true);
    for (int phase = 0; phase < phases; ++phase) {
      if (phase > 0) barrier.wait(members);
      if (failed.test()) continue;  // no phase works on what another failed to make
      try {
        for (int task = member; task < tasks; task += members) body(phase, task);
      } catch (...) {
        if (!failed.test_and_set()) error = std::current_exception();
      }
    }
  }
};

void enter(void* argument) {
  Region& region = *static_cast<Region*>(argument);
  // The team may be smaller than what was asked for: who takes part is known only here.
  const int members = std::min(omp_get_num_threads(), region.tasks);
  const int member = omp_get_thread_num();
  if (member < members) region.run_member(member, members);
}

}  // namespace

int available_threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void parallel_phases(int phases, int tasks, const std::function<void(int, int)>& body) {
  if (tasks <= 1 || available_threads() == 1) {
    for (int phase = 0; phase < phases; ++phase) {
      for (int task = 0; task < tasks; ++task) body(phase, task);
    }
    return;
  }
  at::internal::lazy_init_num_threads();
  Region region{phases, tasks, body};
  // 0 = the whole team: libgomp stops and restarts threads when the team's size changes
  // (pytorch/pytorch#32008), which costs more than letting some of them pass through.
  GOMP_parallel(enter, &region, 0, 0);
  if (region.error) std::rethrow_exception(region.error);
}

void parallel(int tasks, const std::function<void(int)>& body) {
  parallel_phases(1, tasks, [&body](int, int task) { body(task); });
}

int threads_for(int64_t work) {
  if (work < 2 * kWorkPerThread) return 1;
  return static_cast<int>(std::min<int64_t>(available_threads(), work / kWorkPerThread));
}

}  // namespace mlp_ext
