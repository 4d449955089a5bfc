// dz = dy * f'(saved) and the column sums of dz, reading and writing every element once.
//
// A block takes a tile of columns and a part of the rows (grid: tiles x parts). Each thread sums
// its own columns over every (threads / lanes)-th row; the warps' sums meet in shared memory. With
// several parts the blocks' sums are partials in the workspace, one row of them a part, and a
// second launch sums that matrix with the same kernel.
//
// Sums are trees: 4 rows, 16 such groups, all of those; then the lanes and warps of a block, then
// the parts the same way. The launcher keeps each level at some 64 terms, so that the rounding
// error of a million rows is about that of a few hundred.
//
// Four rows at a time: four or eight 16-byte loads on their way before the first is used. That
// takes 60 registers in float32 and 105 in 16-bit types (150 with GELU, whose eight erf's are as
// many chains): two to four blocks of 256 threads on a multiprocessor.
#pragma once

#include "activation_backward.h"
#include "activation_functors.h"
#include "columns.h"

MLP_NAMESPACE_BEGIN

constexpr int kRowGroup = 4, kRowGroups = 16;

// Where a block's sums go: to `sum`, or if there are several parts to `partials`.
template <class T, class Sum>
struct ColumnSums {
  ActivationBackwardArgs<T> args;  // without args.sum
  Sum* sum;
  ComputeType<T>* partials;
  int64_t rows_per_part;
  int lanes;
};

template <class F, class T, class Sum, int N, int THREADS>
class ColumnSumsOfBlock {
  using C = ComputeType<T>;
  static constexpr bool kReadsSaved = !std::is_same_v<F, Identity>;

 public:
  MLP_DEVICE explicit ColumnSumsOfBlock(const ColumnSums<T, Sum>& p)
      : p_(p),
        lane_(threadIdx.x & (p.lanes - 1)),
        height_(THREADS / p.lanes),
        column_((static_cast<int64_t>(blockIdx.x) * p.lanes + lane_) * N) {}

  MLP_DEVICE void run() {
    const int64_t begin = blockIdx.y * p_.rows_per_part;
    const int64_t behind = begin + p_.rows_per_part;
    int64_t end = behind < p_.args.rows ? behind : p_.args.rows;
    if (column_ >= p_.args.columns) end = begin;
    C total[N] = {};
    for (int64_t m = begin + threadIdx.x / p_.lanes; m < end;) {
      C span[N] = {};
      for (int group = 0; group < kRowGroups && m < end; ++group, m += kRowGroup * height_) {
        add_group(m, end, span);
      }
      MLP_UNROLL
      for (int j = 0; j < N; ++j) total[j] += span[j];
    }
    if (p_.sum) reduce(total);
  }

 private:
  // Rows that are not there read as 0, of which every f' makes 0.
  MLP_DEVICE void add_group(int64_t m, int64_t end, C (&span)[N]) const {
    Chunk<T, N> dy[kRowGroup] = {}, saved[kRowGroup] = {};
    MLP_UNROLL
    for (int r = 0; r < kRowGroup; ++r) {
      const int64_t row = m + r * height_;
      if (row >= end) continue;
      dy[r] = load_chunk<T, N>(p_.args.dy + row * p_.args.ld_dy + column_);
      if constexpr (kReadsSaved) {
        saved[r] = load_chunk<T, N>(p_.args.saved + row * p_.args.ld_saved + column_);
      }
    }
    MLP_UNROLL
    for (int j = 0; j < N; ++j) {
      C dz[kRowGroup];
      MLP_UNROLL
      for (int r = 0; r < kRowGroup; ++r) {
        dz[r] = to_compute(dy[r].get(j));
        if constexpr (kReadsSaved) dz[r] = derived<F>(dz[r], to_compute(saved[r].get(j)));
        dy[r].set(j, from_compute<T>(dz[r]));
      }
      span[j] += (dz[0] + dz[1]) + (dz[2] + dz[3]);
    }
    if (!p_.args.dz) return;
    MLP_UNROLL
    for (int r = 0; r < kRowGroup; ++r) {
      const int64_t row = m + r * height_;
      if (row < end) store_chunk(p_.args.dz + row * p_.args.ld_dz + column_, dy[r]);
    }
  }

  // The sums of the warp's rows, by lane; then of the warps, a column a thread.
  MLP_DEVICE void reduce(C (&total)[N]) const {
    constexpr int kWarps = THREADS / 32;
    MLP_UNROLL
    for (int j = 0; j < N; ++j) {
      for (int d = p_.lanes; d < 32; d *= 2) total[j] += __shfl_xor_sync(~0u, total[j], d);
    }
    C* const shared = shared_memory<C>();
    const int warp = threadIdx.x / 32, width = p_.lanes * N;
    if (static_cast<int>(threadIdx.x & 31) < p_.lanes) {
      MLP_UNROLL
      for (int j = 0; j < N; ++j) shared[warp * width + lane_ * N + j] = total[j];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += THREADS) {
      const int64_t column = static_cast<int64_t>(blockIdx.x) * width + i;
      if (column >= p_.args.columns) continue;
      C sum(0);
      MLP_UNROLL
      for (int w = 0; w < kWarps; ++w) sum += shared[w * width + i];
      if (gridDim.y > 1) {
        p_.partials[blockIdx.y * p_.args.columns + column] = sum;
      } else {
        p_.sum[column] = from_compute<Sum>(sum);
      }
    }
  }

  const ColumnSums<T, Sum>& p_;
  const int lane_, height_;
  const int64_t column_;  // the first of this thread's
};

template <class F, class T, class Sum, int N, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    activation_backward_kernel(const __grid_constant__ ColumnSums<T, Sum> p) {
  ColumnSumsOfBlock<F, T, Sum, N, THREADS>(p).run();
}

MLP_NAMESPACE_END
