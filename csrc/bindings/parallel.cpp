#include "parallel.h"

#include <ATen/Parallel.h>
#include <c10/util/ParallelGuard.h>

#include <algorithm>
#include <atomic>
#include <exception>

#include "barrier.h"
#include "crowding.h"

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
  using Duration = Crowding::Clock::duration;

  int phases, tasks;
  const std::function<void(int, int)>& body;
  Barrier barrier{};
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr error{};
  int members = 1;                            // known once it runs
  std::atomic<Duration> longest{Duration()};  // of the waits of a member, in sum
  Duration of_caller{};                       // its waits
  Crowding::Clock::time_point caller_done{};

  void run_member(int member, int team) {
    const c10::ParallelGuard guard(true);
    Duration waited{};
    for (int phase = 0; phase < phases; ++phase) {
      if (phase > 0) waited += barrier.wait(team);
      if (failed.test()) continue;  // no phase works on what another failed to make
      try {
        for (int task = member; task < tasks; task += team) body(phase, task);
      } catch (...) {
        if (!failed.test_and_set()) error = std::current_exception();
      }
    }
    if (member == 0) {
      members = team;
      of_caller = waited;
      caller_done = Crowding::Clock::now();
    } else {
      for (Duration known = longest; known < waited;) longest.compare_exchange_weak(known, waited);
    }
  }

  // The caller's account of it, when all are done.
  void tell(Crowding& crowding, Crowding::Clock::time_point begin) const {
    const auto end = Crowding::Clock::now();
    const Duration waited = of_caller + (end - caller_done);
    crowding.learn(begin, end, members, waited, std::max(waited, longest.load()));
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
  static thread_local Crowding crowding;
  if (tasks <= 1 || available_threads() == 1 || crowding.alone(Crowding::Clock::now)) {
    for (int phase = 0; phase < phases; ++phase) {
      for (int task = 0; task < tasks; ++task) body(phase, task);
    }
    return;
  }
  at::internal::lazy_init_num_threads();
  Region region{phases, tasks, body};
  const auto begin = Crowding::Clock::now();
  // 0 = the whole team: libgomp stops and restarts threads when the team's size changes
  // (pytorch/pytorch#32008), which costs more than letting some of them pass through.
  GOMP_parallel(enter, &region, 0, 0);
  region.tell(crowding, begin);
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
