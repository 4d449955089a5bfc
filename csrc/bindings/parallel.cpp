#include "parallel.h"

#include <ATen/Parallel.h>
#include <c10/util/ParallelGuard.h>

#include <algorithm>
#include <atomic>
#include <exception>

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

struct Region {
  int tasks;
  const std::function<void(int)>* body;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr error;

  void run_share() {
    const c10::ParallelGuard guard(true);
    const int step = omp_get_num_threads();
    try {
      for (int task = omp_get_thread_num(); task < tasks; task += step) (*body)(task);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
  }
};

void enter(void* region) { static_cast<Region*>(region)->run_share(); }

}  // namespace

int available_threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void parallel(int tasks, const std::function<void(int)>& body) {
  if (tasks <= 1 || available_threads() == 1) {
    for (int task = 0; task < tasks; ++task) body(task);
    return;
  }
  at::internal::lazy_init_num_threads();
  Region region;
  region.tasks = tasks;
  region.body = &body;
  // 0 = the whole team: libgomp stops and restarts threads when the team's size changes
  // (pytorch/pytorch#32008), which costs more than letting some of them pass through.
  GOMP_parallel(enter, &region, 0, 0);
  if (region.error) std::rethrow_exception(region.error);
}

int threads_for(int64_t work) {
  if (work < 2 * kWorkPerThread) return 1;
  return static_cast<int>(std::min<int64_t>(available_threads(), work / kWorkPerThread));
}

}  // namespace mlp_ext
