// Plans and kernels over threads: on how many of them, and with what workspace.
#pragma once

#include <type_traits>
#include <vector>

#include "../cpu/dispatch.h"
#include "../step/partition.h"
#include "parallel.h"
#include "workspace.h"

namespace mlp_ext {

using cpu::compute_kernels;

// Runs one of the plans of csrc/step on as many threads as its work is worth.
template <class Plan>
void run_plan(Plan& plan) {
  using T = typename Plan::Scalar;
  const int threads = threads_for(plan.work());
  plan.cut_for(threads);
  T* const shared = thread_workspace_of<T>(Purpose::kTeam, plan.shared_workspace());
  const int64_t packing = plan.workspace();
  parallel_phases(plan.phases(), threads, [&](int phase, int thread) {
    plan.run(phase, thread, thread_workspace_of<T>(Purpose::kPacking, packing), shared);
  });
}

// Returns the sum of the losses of all rows.
template <class T>
double run_cross_entropy(const cpu::CrossEntropyArgs<T>& args, int64_t rows) {
  const auto& k = compute_kernels<T>(cpu::kernels());
  const int threads = threads_for(rows * (args.classes / step::kElementsPerWork + 10));
  std::vector<double> sums(threads);
  parallel(threads, [&](int task) {
    sums[task] = k.cross_entropy(args, step::part_of(rows, 1, threads, task));
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace mlp_ext
