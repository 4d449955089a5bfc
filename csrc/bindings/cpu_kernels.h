// Plans and kernels over threads: on how many of them, and with what workspace.
#pragma once

#include <algorithm>
#include <functional>
#include <type_traits>
#include <vector>

#include "../cpu/dispatch.h"
#include "../step/partition.h"
#include "parallel.h"
#include "workspace.h"

namespace mlp_ext {

using cpu::compute_kernels;

// Runs the phases [first, end) of a plan that is cut for `threads`.
template <class Plan>
void run_phases(Plan& plan, int threads, int first, int end) {
  using T = typename Plan::Scalar;
  T* const shared = thread_workspace_of<T>(Purpose::kTeam, plan.shared_workspace());
  const int64_t packing = plan.workspace();
  parallel_phases(end - first, threads, [&](int phase, int thread) {
    plan.run(first + phase, thread, thread_workspace_of<T>(Purpose::kPacking, packing), shared);
  });
}

// Runs one of the plans of csrc/step on as many threads as its work is worth.
template <class Plan>
void run_plan(Plan& plan) {
  const int threads = threads_for(plan.work());
  plan.cut_for(threads);
  run_phases(plan, threads, 0, plan.phases());
}

// A training step, with calls between its phases, by this thread: of host_loss() in place of the
// plan's loss, and of exchange() between gradients and update. Either may be empty.
template <class Plan>
void run_plan(Plan& plan, const std::function<void()>& host_loss,
              const std::function<void()>& exchange) {
  const int threads = threads_for(plan.work());
  plan.cut_for(threads);
  int done = 0;
  const auto run_up_to = [&](int phase) {
    run_phases(plan, threads, done, phase);
    done = phase;
  };
  if (host_loss) run_up_to(plan.loss_phase()), host_loss();
  if (exchange) run_up_to(plan.gradient_phases()), exchange();
  run_up_to(plan.phases());
}

// Returns the sum of the losses of all rows: `rows` of each of `images`, whose elements follow one
// another. What is null in `args` is left out.
template <class T>
double run_cross_entropy(const cpu::CrossEntropyArgs<T>& args, int64_t images, int64_t rows) {
  const auto& k = compute_kernels<T>(cpu::kernels());
  const int64_t all = images * rows;
  const int threads = threads_for(all * (args.classes / step::kElementsPerWork + 5));
  std::vector<double> sums(threads, 0.0);
  parallel(threads, [&](int task) {
    const step::Range part = step::part_of(all, 16, threads, task);
    for (int64_t begin = part.begin; begin < part.end;) {
      const int64_t image = begin / rows, first = image * rows;
      const int64_t end = std::min(part.end, first + rows), elements = first * args.classes;
      cpu::CrossEntropyArgs<T> p = args;
      p.logits += elements;
      if (p.target) p.target += first;
      if (p.probabilities) p.probabilities += elements;
      if (p.grad) p.grad += elements;
      if (p.row_loss) p.row_loss += first;
      sums[task] += k.cross_entropy(p, {begin - first, end - first});
      begin = end;
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

// Returns the sum of the losses of all elements.
template <class T>
double run_elementwise_loss(const cpu::ElementwiseLossArgs<T>& args, int64_t rows) {
  const auto& k = compute_kernels<T>(cpu::kernels());
  const int threads = threads_for(rows * args.columns / step::kElementsPerWork);
  std::vector<double> sums(threads);
  parallel(threads, [&](int task) {
    sums[task] = k.elementwise_loss(args, step::part_of(rows, 64, threads, task));
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace mlp_ext
