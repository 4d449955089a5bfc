// One optimizer step over a list of tensors: each thread loads 16 bytes of every stream, applies
// the rule of common/optimizer_rules.h to each element, stores. Bound by memory beyond the caches:
// Adam in float32 moves 28 bytes a parameter.
//
// The rule itself is a kernel parameter, made from its options on the host. Where the step count or
// the learning rate is on the device, count_up runs before with a thread a tensor: it counts, and
// makes the rules in memory; the double precision of bias corrections is so paid for once a tensor.
#pragma once

#include "../../common/optimizer_schedule.h"
#include "multi_tensor.cuh"
#include "optimizers.h"
#include "../vec.h"

#include "../../common/optimizer_rules.h"  // in terms of vec.h

MLP_NAMESPACE_BEGIN

template <class Rule>
struct StepParameters {
  TensorList<StepTensor> list;
  Rule rule;
  const Rule* rules;  // one a tensor, in place of `rule`; or null
  StepScaling scaling;
};

// The value that takes the step: the master weight, or the parameter where that is not the master's
// rounding.
template <class S>
MLP_DEVICE float current_weight(float master, float param) {
  return to_compute(from_compute<S>(master)) == param ? master : param;
}

// One step of N elements from element i on.
template <int N, class S, class W, class Rule>
MLP_DEVICE void update(const StepTensor& tensor, int64_t i, const Rule& rule,
                       const float* grad_scale) {
  using C = ComputeType<S>;
  using V = Vec<C>;
  constexpr bool kHasMaster = !std::is_same_v<S, W>;
  constexpr int kStates = Rule::kStates, kAlways = Rule::kAlways;
  S* const param = static_cast<S*>(tensor.param) + i;
  S* const grad = static_cast<S*>(tensor.grad) + i;
  C x[N], g[N], state[kMostStates][N] = {};
  load<N>(param, x);
  load<N>(grad, g);
  MLP_UNROLL
  for (int s = 0; s < kStates; ++s) {
    if (s < kAlways || tensor.states[s]) load<N>(static_cast<W*>(tensor.states[s]) + i, state[s]);
  }
  if constexpr (kHasMaster) {
    float master[N];
    load<N>(tensor.master + i, master);
    MLP_UNROLL
    for (int j = 0; j < N; ++j) x[j] = current_weight<S>(master[j], x[j]);
  }
  if (grad_scale) {
    const C inverse = 1 / static_cast<C>(*grad_scale);  // exact: GradScaler's are powers of two
    MLP_UNROLL
    for (int j = 0; j < N; ++j) g[j] *= inverse;
    store<N>(grad, g);
  }
  MLP_UNROLL
  for (int j = 0; j < N; ++j) {
    V value(x[j]), of[kMostStates] = {V(state[0][j]), V(state[1][j]), V(state[2][j])};
    rule(value, V(g[j]), of[0], of[1], of[2]);
    x[j] = value.v;
    MLP_UNROLL
    for (int s = 0; s < kStates; ++s) state[s][j] = of[s].v;
  }
  MLP_UNROLL
  for (int s = 0; s < kStates; ++s) {
    if (s < kAlways || tensor.states[s]) store<N>(static_cast<W*>(tensor.states[s]) + i, state[s]);
  }
  if constexpr (kHasMaster) store<N>(tensor.master + i, x);
  store<N>(param, x);
}

// The addresses of all of the tensor's streams.
MLP_DEVICE uintptr_t addresses_of(const StepTensor& t) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(t.param) | reinterpret_cast<uintptr_t>(t.grad) |
                   reinterpret_cast<uintptr_t>(t.master);
  MLP_UNROLL
  for (int s = 0; s < kMostStates; ++s) bits |= reinterpret_cast<uintptr_t>(t.states[s]);
  return bits;
}

// Registers for two blocks a multiprocessor, 54 to 110 in use: with fewer ptxas spills in one
// kernel or another. 512 threads with 64 bytes each on their way (Adam) are more than the 20 KB a
// multiprocessor that an H100's bandwidth times its latency comes to (an estimate).
template <template <class> class RuleOf, class S, class W>
__global__ void __launch_bounds__(kMultiTensorThreads, 2)
    optimizer_step_kernel(const __grid_constant__ StepParameters<RuleOf<Vec<ComputeType<S>>>> p) {
  if (p.scaling.found_inf && *p.scaling.found_inf != 0) return;
  constexpr int N = kPack<S>;
  const Chunk chunk = chunk_of_block(p.list);
  const StepTensor& tensor = p.list.tensors[chunk.tensor];
  const auto rule = p.rules ? p.rules[chunk.tensor] : p.rule;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t packed = is_aligned(addresses_of(tensor)) ? chunk.n / N * N : 0;
  // Unrolled, they take more registers than there are at float64.
  _Pragma("unroll 1") for (int64_t i = thread * N; i < packed; i += kMultiTensorThreads * N) {
    update<N, S, W>(tensor, chunk.first + i, rule, p.scaling.grad_scale);
  }
  _Pragma("unroll 1") for (int64_t i = packed + thread; i < chunk.n; i += kMultiTensorThreads) {
    update<1, S, W>(tensor, chunk.first + i, rule, p.scaling.grad_scale);
  }
}

template <class Args, class Rule>
struct CountParameters {
  Args args;
  DeviceScalar lr;
  const float* found_inf;
  Rule* rules;
  int count;
  bool counts;
  StepCounters counters[kMostTensors];
};

MLP_DEVICE double read_scalar(const void* p, bool in_double) {
  return in_double ? *static_cast<const double*>(p) : *static_cast<const float*>(p);
}
MLP_DEVICE void write_scalar(void* p, bool in_double, double value) {
  if (in_double) {
    *static_cast<double*>(p) = value;
  } else {
    *static_cast<float*>(p) = static_cast<float>(value);
  }
}

// Counts up, and makes the rules that the step is to apply. A thread a tensor.
template <class Args, class Rule>
__global__ void __launch_bounds__(kMostTensors)
    count_up(const __grid_constant__ CountParameters<Args, Rule> p) {
  if (p.found_inf && *p.found_inf != 0) return;
  const int i = static_cast<int>(threadIdx.x);
  if (i >= p.count) return;
  Args args = p.args;
  if (p.lr.value) args.lr = read_scalar(p.lr.value, p.lr.in_double);
  if (p.counts) {
    const StepCounters& at = p.counters[i];
    Counters now;
    now.step = read_scalar(at.step, at.step_in_double) + 1;
    if (at.mu_product) {
      now.mu_product = read_scalar(at.mu_product, at.mu_in_double);
      now.mu_in_float = !at.mu_in_double;
    }
    at_step(args, now);
    write_scalar(at.step, at.step_in_double, now.step);
    if (at.mu_product) write_scalar(at.mu_product, at.mu_in_double, now.mu_product);
  }
  p.rules[i] = Rule(args);
}

MLP_NAMESPACE_END
