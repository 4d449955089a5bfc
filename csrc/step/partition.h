// How work is cut among threads: estimates of what it costs, ranges, and grids over a matrix.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../cpu/kernel_table.h"

namespace mlp_ext::step {

using cpu::Range;

// Work is counted in units of about a nanosecond of one core. Multiply-adds of a GEMM: 16 lanes x
// 3.5 GHz x 90 % on a core with one AVX-512 FMA unit (Zen 4), twice that with two (Xeon).
constexpr int64_t kMultiplyAddsPerWork = 50;
// Elements that are read or written with little arithmetic, from L2 or L3.
constexpr int64_t kTouchedElementsPerWork = 10;
// Elements with some arithmetic each: a derivative, an exponential.
constexpr int64_t kElementsPerWork = 2;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Arithmetic, or for thin products the reading and writing of the operands.
inline int64_t gemm_work(int64_t M, int64_t N, int64_t K) {
  const int64_t touched = M * N + M * K + K * N;
  return std::max(M * N * K / kMultiplyAddsPerWork, touched / kTouchedElementsPerWork);
}

// Part `i` of `parts` of [0, n), cut at multiples of `unit`. The first, which is the caller's, is
// never smaller than another: by its work bindings/crowding.h tells what one thread would take.
inline Range part_of(int64_t n, int64_t unit, int64_t parts, int64_t i) {
  const int64_t units = ceil_div(n, unit);
  const auto begin = [&](int64_t part) { return ceil_div(units * part, parts) * unit; };
  return {std::min(n, begin(i)), std::min(n, begin(i + 1))};
}

struct Grid {
  int64_t rows = 1, columns = 1;

  Range m(int64_t M, int64_t row_tile, int64_t task) const {
    return part_of(M, row_tile, rows, task / columns);
  }
  Range n(int64_t N, int64_t column_tile, int64_t task) const {
    return part_of(N, column_tile, columns, task % columns);
  }
};

// How to cut an M x N product among `threads`: the cut whose largest part costs least, counting its
// tiles' products and the elements of A and B that the part has to pack (a packed element costs
// about what kPackCost multiply-adds do).
inline Grid choose_grid(int64_t M, int64_t N, int64_t row_tile, int64_t column_tile,
                        int64_t threads) {
  constexpr double kPackCost = 8;
  Grid best;
  double least = -1;
  for (int64_t rows = 1; rows <= threads; ++rows) {
    const int64_t columns = threads / rows;
    const double m = double(ceil_div(ceil_div(M, row_tile), rows) * row_tile);
    const double n = double(ceil_div(ceil_div(N, column_tile), columns) * column_tile);
    const double cost = m * n + kPackCost * (m + n);
    if (least < 0 || cost < least) {
      least = cost;
      best = {rows, columns};
    }
  }
  return best;
}

// Calls run(m, n) with the part of an M x N product that is the share of one of `threads`, if it
// has one, cut at the tiles of `kernels`.
template <class Kernels, class Run>
void run_part_of_grid(const Kernels& kernels, int64_t M, int64_t N, int64_t thread, int64_t threads,
                      const Run& run) {
  const Grid grid = choose_grid(M, N, kernels.row_tile, kernels.column_tile, threads);
  if (thread >= grid.rows * grid.columns) return;
  run(grid.m(M, kernels.row_tile, thread), grid.n(N, kernels.column_tile, thread));
}

// Calls visit(item, first, count) for the elements of `items` that are the share of one of
// `threads`, all items together being cut evenly.
template <class Items, class Length, class Visit>
void for_share_of_elements(const Items& items, const Length& length, int64_t thread,
                           int64_t threads, const Visit& visit) {
  constexpr int64_t kCutAt = 64;  // few cache lines are written to by two threads
  int64_t total = 0;
  for (const auto& item : items) total += length(item);
  const Range share = part_of(total, kCutAt, threads, thread);
  int64_t offset = 0;
  for (const auto& item : items) {
    const int64_t n = length(item);
    const int64_t first = std::max(share.begin, offset), last = std::min(share.end, offset + n);
    if (first < last) visit(item, first - offset, last - first);
    offset += n;
    if (offset >= share.end) break;
  }
}

}  // namespace mlp_ext::step
