// Softmax cross-entropy by the place of a row: in the registers of some lanes (up to 1024 classes),
// over a block (more), or as one of many that lie side by side (images), a thread each.
//
//   classes     lanes a row   elements a lane (float32)      16-byte accesses where rows are
//   aligned 1..4             1              4 5..128        2 to 32           4 several rows a warp
//   ..1024          32           8, 16, 32
//   more        a block of 512, online softmax: each thread joins what it has read so far with the
//               next 8 elements; the row is read again, from a cache, for the gradient
//
// At most 32 elements of a row in registers, 256 threads a block. Launches for sum and mean begin
// with target_weights_kernel, whose parts each block here adds up for itself: the scale of the
// gradient is known without a turn to the host, and in one order.
#pragma once

#include "../elementwise/columns.h"
#include "cross_entropy_row.h"
#include "loss_sum.h"

MLP_NAMESPACE_BEGIN

constexpr int kRowThreads = 256, kBlockThreads = 512;

template <class T>
struct CrossEntropyLaunch {
  CrossEntropyArgs<T> args;
  LossWorkspace* workspace;  // null for `none`
  WeightParts weights;       // of the targets, for a mean over class indices
  int lanes;
};

// The parts of the sum of the targets' weights; and the workspace made ready.
template <class T>
__global__ void __launch_bounds__(kRowThreads, 1)
    target_weights_kernel(const __grid_constant__ CrossEntropyLaunch<T> p) {
  if (blockIdx.x == 0 && threadIdx.x == 0) p.workspace->finished = 0;
  if (!p.weights.parts) return;
  const CrossEntropyArgs<T>& a = p.args;
  const int64_t rows = a.images * a.rows, step = static_cast<int64_t>(gridDim.x) * kRowThreads;
  double sum = 0;
  for (int64_t row = blockIdx.x * int64_t{kRowThreads} + threadIdx.x; row < rows; row += step) {
    const int64_t target = read_once(a.target + row);
    if (target == a.ignore_index) continue;
    if (target < 0 || target >= a.classes) {
      sum = kNan<double>;
    } else {
      sum += a.weight ? static_cast<double>(to_compute(a.weight[target])) : 1.0;
    }
  }
  sum = sum_of_block<kRowThreads>(sum, shared_memory<double>());
  if (threadIdx.x == 0) p.weights.parts[blockIdx.x] = sum;
}

template <int THREADS, class T>
MLP_DEVICE double scale_of_launch(const CrossEntropyLaunch<T>& p, double* shared) {
  return scale_of<THREADS>(p.args.reduction, p.args.images * p.args.rows, p.weights, shared);
}

// The sum over the rows, or for `none` nothing more.
template <int THREADS, class T>
MLP_DEVICE void finish_rows(const CrossEntropyLaunch<T>& p, double loss, double scale,
                            double* shared) {
  if (p.args.reduction != Reduction::none) {
    finish_loss<THREADS>(loss, scale, p.workspace, p.args.loss, shared);
  }
}

// One element of the gradient.
template <class C>
MLP_DEVICE C gradient(const RowResult<C>& r, bool counts, bool is_target, C power, C u) {
  if (!counts) return C(0);
  return is_target ? r.at_target : r.factor * power - r.less * u;
}

// PER elements a lane, N at a time: class (i * lanes + lane) * N + j is x[i * N + j].
template <class T, int PER, int N, bool PROBABILITIES>
__global__ void __launch_bounds__(kRowThreads, 1)
    cross_entropy_rows_kernel(const __grid_constant__ CrossEntropyLaunch<T> p) {
  using C = ComputeType<T>;
  const CrossEntropyArgs<T>& a = p.args;
  double* const shared = shared_memory<double>();
  const double scale = scale_of_launch<kRowThreads>(p, shared);
  const RowTerms<T> terms(a, scale);
  const int lanes = p.lanes, lane = threadIdx.x & (lanes - 1), height = kRowThreads / lanes;
  const int classes = static_cast<int>(a.classes);
  double loss = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * height; first < a.rows;
       first += static_cast<int64_t>(gridDim.x) * height) {
    const int64_t row = first + threadIdx.x / lanes;
    const bool exists = row < a.rows;
    const T* const logits = a.logits + row * a.ld_logits;
    const T* const q = PROBABILITIES ? a.probabilities + row * a.ld_probabilities : nullptr;
    C x[PER];
    RowSums<C> sums = no_classes<C>();
    MLP_UNROLL
    for (int i = 0; i < PER / N; ++i) {
      const int c = (i * lanes + lane) * N;
      Chunk<T, N> chunk{};
      if (exists && c < classes) chunk = load_chunk<T, N>(logits + c);
      MLP_UNROLL
      for (int j = 0; j < N; ++j) {
        x[i * N + j] = c < classes ? to_compute(chunk.get(j)) : kLowest<C>;
        sums.max = x[i * N + j] > sums.max ? x[i * N + j] : sums.max;
      }
    }
    const RowTarget<T> target = exists ? RowTarget<T>(a, row, logits) : RowTarget<T>();
    for (int d = 1; d < lanes; d *= 2) {
      const C other = __shfl_xor_sync(~0u, sums.max, d);
      sums.max = other > sums.max ? other : sums.max;
    }
    MLP_UNROLL
    for (int i = 0; i < PER / N; ++i) {
      const int c = (i * lanes + lane) * N;
      if (!exists || c >= classes) continue;
      Chunk<T, N> chunk{};
      if constexpr (PROBABILITIES) chunk = load_chunk<T, N>(q + c);
      MLP_UNROLL
      for (int j = 0; j < N; ++j) {
        const C z = x[i * N + j] - sums.max, power = exp_of(z);
        x[i * N + j] = power;
        if (c + j != target.index) sums.rest += power;
        if (!terms.has_u) continue;
        const C u = terms.template u<PROBABILITIES>(c + j, to_compute(chunk.get(j)));
        sums.u += u;
        sums.uz += u * z;
      }
    }
    const RowResult<C> r = result_of(terms, target, joined_lanes(sums, lanes, terms.has_u));
    if (!exists) continue;
    if (lane == 0) {
      loss += static_cast<double>(r.loss);
      if (a.reduction == Reduction::none) a.loss[row] = from_compute<T>(r.loss);
    }
    if (!a.grad) continue;
    MLP_UNROLL
    for (int i = 0; i < PER / N; ++i) {
      const int c = (i * lanes + lane) * N;
      if (c >= classes) continue;
      Chunk<T, N> chunk{};
      C grad[N];
      if constexpr (PROBABILITIES) chunk = load_chunk<T, N>(q + c);
      MLP_UNROLL
      for (int j = 0; j < N; ++j) {
        const C u =
            terms.has_u ? terms.template u<PROBABILITIES>(c + j, to_compute(chunk.get(j))) : C(0);
        grad[j] = gradient(r, target.counts, c + j == target.index, x[i * N + j], u);
      }
      store_values(a.grad + row * a.ld_grad + c, grad);
    }
  }
  finish_rows<kRowThreads>(p, loss, scale, shared);
}

// `sums` and the next classes c, c + stride, ..., at most M of them below `end`.
template <bool PROBABILITIES, int M, class T, class C>
MLP_DEVICE RowSums<C> with_classes(RowSums<C> sums, const RowTerms<T>& terms, const C (&x)[M],
                                   const C (&q)[M], int64_t c, int64_t stride, int64_t end,
                                   int64_t target) {
  RowSums<C> next = no_classes<C>();
  MLP_UNROLL
  for (int k = 0; k < M; ++k) {
    if (c + k * stride < end) next.max = x[k] > next.max ? x[k] : next.max;
  }
  // The powers of -inf are 0 beside whatever comes later.
  const C shift = next.max == kLowest<C> ? C(0) : next.max;
  MLP_UNROLL
  for (int k = 0; k < M; ++k) {
    if (c + k * stride >= end) continue;
    const C z = x[k] - shift;
    if (c + k * stride != target) next.rest += exp_of(z);
    if (!terms.has_u) continue;
    const C u = terms.template u<PROBABILITIES>(c + k * stride, q[k]);
    next.u += u;
    next.uz += u * z;
  }
  return joined(sums, next);
}

// A block a row; N elements at a time, two such a turn.
template <class T, int N, bool PROBABILITIES>
__global__ void __launch_bounds__(kBlockThreads, 1)
    cross_entropy_block_kernel(const __grid_constant__ CrossEntropyLaunch<T> p) {
  using C = ComputeType<T>;
  constexpr int kWarps = kBlockThreads / 32;
  const CrossEntropyArgs<T>& a = p.args;
  double* const shared = shared_memory<double>();
  RowSums<C>* const of_warps = reinterpret_cast<RowSums<C>*>(shared + kWarps);
  const double scale = scale_of_launch<kBlockThreads>(p, shared);
  const RowTerms<T> terms(a, scale);
  const int64_t begin = static_cast<int64_t>(threadIdx.x) * N;
  constexpr int64_t kStep = int64_t{kBlockThreads} * N;
  double loss = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const T* const logits = a.logits + row * a.ld_logits;
    const T* const q = PROBABILITIES ? a.probabilities + row * a.ld_probabilities : nullptr;
    const RowTarget<T> target(a, row, logits);
    RowSums<C> sums = no_classes<C>();
    for (int64_t c = begin; c < a.classes; c += kStep) {
      const Chunk<T, N> chunk = load_chunk<T, N>(logits + c);
      Chunk<T, N> of_q{};
      if constexpr (PROBABILITIES) of_q = load_chunk<T, N>(q + c);
      C x[N], probability[N];
      MLP_UNROLL
      for (int j = 0; j < N; ++j) {
        x[j] = to_compute(chunk.get(j)), probability[j] = to_compute(of_q.get(j));
      }
      sums =
          with_classes<PROBABILITIES>(sums, terms, x, probability, c, 1, a.classes, target.index);
    }
    sums = joined_lanes(sums, 32, terms.has_u);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sums;
    __syncthreads();
    if (threadIdx.x < 32) {
      sums = threadIdx.x < kWarps ? of_warps[threadIdx.x] : no_classes<C>();
      sums = joined_lanes(sums, 32, terms.has_u);
      if (threadIdx.x == 0) of_warps[kWarps] = sums;
    }
    __syncthreads();
    const RowResult<C> r = result_of(terms, target, of_warps[kWarps]);
    if (threadIdx.x == 0) {
      loss += static_cast<double>(r.loss);
      if (a.reduction == Reduction::none) a.loss[row] = from_compute<T>(r.loss);
    }
    if (!a.grad) continue;
    for (int64_t c = begin; c < a.classes; c += kStep) {
      const Chunk<T, N> chunk = load_chunk<T, N>(logits + c);
      Chunk<T, N> of_q{};
      C grad[N];
      if constexpr (PROBABILITIES) of_q = load_chunk<T, N>(q + c);
      MLP_UNROLL
      for (int j = 0; j < N; ++j) {
        const C power = exp_of(to_compute(chunk.get(j)) - r.max);
        const C u =
            terms.has_u ? terms.template u<PROBABILITIES>(c + j, to_compute(of_q.get(j))) : C(0);
        grad[j] = gradient(r, target.counts, c + j == target.index, power, u);
      }
      store_values(a.grad + row * a.ld_grad + c, grad);
    }
  }
  finish_rows<kBlockThreads>(p, loss, scale, shared);
}

// A thread a row, neighbours in neighbouring rows; kAtOnce classes on their way together. In
// float32 parts have sums of their own: of 1000 classes one after the other the loss was 1.3 eps
// off (rms; PyTorch's on the CPU 0.4: tests/test_numerics.py).
template <class T, bool PROBABILITIES>
__global__ void __launch_bounds__(kRowThreads, 1)
    cross_entropy_side_by_side_kernel(const __grid_constant__ CrossEntropyLaunch<T> p) {
  using C = ComputeType<T>;
  constexpr int kAtOnce = 8;
  constexpr int64_t kPart = 16 * kAtOnce;
  constexpr bool kParts = sizeof(C) == 4;
  const CrossEntropyArgs<T>& a = p.args;
  double* const shared = shared_memory<double>();
  const double scale = scale_of_launch<kRowThreads>(p, shared);
  const RowTerms<T> terms(a, scale);
  const int64_t stride = a.class_stride, rows = a.images * a.rows;
  double loss = 0;
  for (int64_t row = blockIdx.x * int64_t{kRowThreads} + threadIdx.x; row < rows;
       row += static_cast<int64_t>(gridDim.x) * kRowThreads) {
    const int64_t image = row / a.rows;
    const int64_t at = image * a.rows * a.classes + (row - image * a.rows);
    const RowTarget<T> target(a, row, a.logits + at);
    const auto sums_of = [&](int64_t begin, int64_t end) {
      RowSums<C> part = no_classes<C>();
      for (int64_t c = begin; c < end; c += kAtOnce) {
        C x[kAtOnce], q[kAtOnce];
        MLP_UNROLL
        for (int k = 0; k < kAtOnce; ++k) {
          const bool there = c + k < end;
          const int64_t element = at + (c + k) * stride;
          x[k] = there ? to_compute(a.logits[element]) : C(0);
          q[k] = PROBABILITIES && there ? to_compute(a.probabilities[element]) : C(0);
        }
        part = with_classes<PROBABILITIES>(part, terms, x, q, c, 1, end, target.index);
      }
      return part;
    };
    RowSums<C> sums = sums_of(0, kParts ? std::min(kPart, a.classes) : a.classes);
    for (int64_t c = kPart; kParts && c < a.classes; c += kPart) {
      sums = joined(sums, sums_of(c, std::min(c + kPart, a.classes)));
    }
    const RowResult<C> r = result_of(terms, target, sums);
    loss += static_cast<double>(r.loss);
    if (a.reduction == Reduction::none) a.loss[row] = from_compute<T>(r.loss);
    if (!a.grad) continue;
    for (int64_t c = 0; c < a.classes; ++c) {
      const int64_t element = at + c * stride;
      const C power = exp_of(to_compute(a.logits[element]) - r.max);
      const C q = PROBABILITIES ? to_compute(a.probabilities[element]) : C(0);
      const C u = terms.has_u ? terms.template u<PROBABILITIES>(c, q) : C(0);
      a.grad[element] = gradient(r, target.counts, c == target.index, power, u);
    }
  }
  finish_rows<kRowThreads>(p, loss, scale, shared);
}

MLP_NAMESPACE_END
