#include "cpu_kernels.h"

#include <vector>

#include "parallel.h"
#include "workspace.h"

namespace mlp_ext {

namespace {

template <class T>
T* packing_workspace() {
  return thread_workspace_of<T>(Purpose::kPacking, compute_kernels<T>().gemm_workspace);
}

}  // namespace

template <class T>
void run_stack(step::StackForward<T>& plan) {
  const int threads = threads_for(plan.work());
  plan.cut_for(threads);
  parallel_phases(plan.phases(), threads,
                  [&](int phase, int thread) { plan.run(phase, thread, packing_workspace<T>()); });
}

template <class T>
void run_stack(step::StackBackward<T>& plan) {
  const int threads = threads_for(plan.work());
  plan.cut_for(threads);
  T* const shared = thread_workspace_of<T>(Purpose::kTeam, plan.shared_workspace());
  parallel_phases(plan.phases(), threads, [&](int phase, int thread) {
    plan.run(phase, thread, packing_workspace<T>(), shared);
  });
}

template <class T>
void run_plan(step::TrainStep<T>& plan) {
  const int threads = threads_for(plan.work());
  plan.cut_for(threads);
  T* const shared = thread_workspace_of<T>(Purpose::kTeam, plan.shared_workspace());
  parallel_phases(plan.phases(), threads, [&](int phase, int thread) {
    plan.run(phase, thread, packing_workspace<T>(), shared);
  });
}

template <class T>
double run_cross_entropy(const cpu::CrossEntropyArgs<T>& args, int64_t rows) {
  const auto& k = compute_kernels<T>();
  const int threads = threads_for(rows * (args.classes / step::kElementsPerWork + 10));
  std::vector<double> sums(threads);
  parallel(threads, [&](int task) {
    sums[task] = k.cross_entropy(args, step::part_of(rows, 1, threads, task));
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

template void run_stack<BFloat16>(step::StackForward<BFloat16>&);
template void run_stack<BFloat16>(step::StackBackward<BFloat16>&);

#define MLP_INSTANTIATE(T)                             \
  template void run_stack<T>(step::StackForward<T>&);  \
  template void run_stack<T>(step::StackBackward<T>&); \
  template void run_plan<T>(step::TrainStep<T>&);      \
  template double run_cross_entropy<T>(const cpu::CrossEntropyArgs<T>&, int64_t);
MLP_INSTANTIATE(float)
MLP_INSTANTIATE(double)
#undef MLP_INSTANTIATE

}  // namespace mlp_ext
