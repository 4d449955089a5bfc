// Threads: torch's own intra-op pool, one region a call.
#pragma once

#include <cstdint>
#include <functional>

namespace mlp_ext {

// How many threads a region may use here and now: torch.get_num_threads(), or 1 inside another
// parallel region.
int available_threads();

// Calls body(phase, task) for each phase in [0, phases), one after the other, and within a phase
// once for each task in [0, tasks), on up to available_threads() threads. A phase starts when all
// tasks of the one before are done. A task has the same thread in every phase, and task 0 the
// caller's. An exception thrown by a task is rethrown here; the phases after it do not run.
void parallel_phases(int phases, int tasks, const std::function<void(int, int)>& body);

// One phase.
void parallel(int tasks, const std::function<void(int)>& body);

// How many of the available threads `work` (in units of about a nanosecond of one core) is worth:
// below kWorkPerThread each, waking one up costs more than it brings.
constexpr int64_t kWorkPerThread = 8'000;
int threads_for(int64_t work);

}  // namespace mlp_ext
