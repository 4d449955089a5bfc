// Threads: torch's own intra-op pool, one region a call.
#pragma once

#include <cstdint>
#include <functional>

namespace mlp_ext {

// How many threads a region may use here and now: torch.get_num_threads(), or 1 inside another
// parallel region.
int available_threads();

// Calls body(task) once for each task in [0, tasks), on up to available_threads() threads, and
// returns when all are done. An exception thrown by a task is rethrown here.
void parallel(int tasks, const std::function<void(int)>& body);

// How many of the available threads `work` (in units of about a nanosecond of one core) is worth:
// below kWorkPerThread each, waking one up costs more than it brings.
constexpr int64_t kWorkPerThread = 20'000;
int threads_for(int64_t work);

}  // namespace mlp_ext
