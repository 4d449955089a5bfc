// From GemmArgs to launches: the plan, the workspace's parts, the kernel of a type, precision, tile
// and layout. Included by one .cu for each type and precision, which instantiates 13 products.
#pragma once

#include "gemm_force.h"
#include "gemm_kernel.cuh"
#include "gemm_reduce.cuh"

MLP_NAMESPACE_BEGIN

constexpr int64_t kMostBlocks = 0x7fffffff;

template <class T, Precision P>
constexpr GemmKind kKind{int(sizeof(T)), kSplits<T, P> ? 3 : 1};

// Where a stride counts nothing, as there is one k, it is the other that decides.
constexpr bool k_major(int64_t row_stride, int64_t k_stride, int64_t K) {
  return k_stride == 1 ? !(K == 1 && row_stride == 1) : K == 1 && row_stride != 1;
}
template <class T>
bool a_is_k_major(const GemmArgs<T>& g) {
  return k_major(g.a_row, g.a_col, g.K);
}
template <class T>
bool b_is_k_major(const GemmArgs<T>& g) {
  return k_major(g.b_col, g.b_row, g.K);
}

struct Workspace {
  int64_t ld_parts = 0, parts = 0, row_blocks = 0, column_parts = 0;  // floats
};

template <class T>
Workspace workspace_of(const GemmArgs<T>& g, GemmPlan plan) {
  Workspace w;
  w.ld_parts = ceil_div(g.N, 4) * 4;
  if (plan.split > 1) w.parts = plan.split * g.M * w.ld_parts;
  w.row_blocks = ceil_div(g.M, plan.split > 1 ? kPartRows : kGemmTiles[plan.tile].m);
  if (g.column_sum && w.row_blocks > 1) w.column_parts = w.row_blocks * g.N;
  return w;
}

template <class T, Precision P, class Tile, Major A, Major B>
cudaError_t launch_tile(const GemmParams<T>& p, cudaStream_t stream) {
  return launch(gemm_kernel<T, P, Tile, A, B>, dim3(p.tiles_m * p.tiles_n, unsigned(p.split)),
                Tile::kThreads, size_t(kGemmStages) * (Tile::kM + Tile::kN) * kLine, stream, p);
}

template <class T, Precision P, Major A, Major B>
cudaError_t launch_layout(int tile, const GemmParams<T>& p, cudaStream_t stream) {
  switch (tile) {
    case 0:
      return launch_tile<T, P, TileOf<0, 4>, A, B>(p, stream);
    case 1:
      return launch_tile<T, P, TileOf<1, 2>, A, B>(p, stream);
    case 2:
      return launch_tile<T, P, TileOf<2, 1>, A, B>(p, stream);
    default:
      return launch_tile<T, P, TileOf<3, 4>, A, B>(p, stream);
  }
}

template <class T>
bool four_at_once(const void* p, int64_t ld) {
  return reinterpret_cast<uintptr_t>(p) % (4 * sizeof(T)) == 0 && ld % 4 == 0;
}

template <class T, Precision P>
GemmPlan plan_of(const GemmArgs<T>& g, const DeviceInfo& device) {
  GemmPlan plan = choose_plan(device, kKind<T, P>, g.M, g.N, g.K);
  // The layout that no layer has is there in one tile.
  if (!a_is_k_major(g) && b_is_k_major(g)) plan.tile = 1;
  return plan;
}

template <class T, Precision P>
size_t workspace_bytes(const GemmArgs<T>& g, const DeviceInfo& device) {
  if (g.M == 0 || g.N == 0) return 0;
  const Workspace w = workspace_of(g, plan_of<T, P>(g, device));
  return size_t(w.parts + w.column_parts) * sizeof(float);
}

template <class T, Precision P>
cudaError_t multiply_and_finish(const GemmArgs<T>& args, const DeviceInfo& device, void* workspace,
                                cudaStream_t stream) {
  GemmParams<T> p{};
  p.g = args;
  GemmArgs<T>& g = p.g;
  if (!g.c) g.c = g.activated, g.ldc = g.ld_activated, g.activated = nullptr;
  const auto sum_columns = [&](int64_t row_blocks) {
    if (!g.column_sum || row_blocks == 1 || g.N == 0) return cudaSuccess;
    return launch(sum_column_parts<T>, unsigned(ceil_div(g.N, 32)), 32 * kColumnLanes,
                  32 * kColumnLanes * sizeof(float), stream, p.column_parts, row_blocks, g.N,
                  g.column_sum);
  };
  if (g.M == 0 || g.N == 0) return sum_columns(0);

  const GemmPlan plan = plan_of<T, P>(g, device);
  const bool a_k = a_is_k_major(g), b_k = b_is_k_major(g);
  if ((!a_k && g.a_row != 1 && g.M != 1) || (!b_k && g.b_col != 1 && g.N != 1)) {
    return cudaErrorInvalidValue;
  }
  const GemmTile& tile = kGemmTiles[plan.tile];
  const Workspace w = workspace_of(g, plan);
  const int64_t tiles_m = ceil_div(g.M, tile.m), tiles_n = ceil_div(g.N, tile.n);
  const int64_t sum_blocks = w.row_blocks * ceil_div(g.N, kPartColumns);
  if (tiles_m > kMostBlocks / tiles_n || sum_blocks > kMostBlocks) {
    return cudaErrorInvalidConfiguration;
  }
  p.tiles_m = unsigned(tiles_m), p.tiles_n = unsigned(tiles_n);
  p.a_in_chunks = packs<T>(g.a, a_k ? g.a_row : g.a_col);
  p.b_in_chunks = packs<T>(g.b, b_k ? g.b_col : g.b_row);
  p.c_in_packs = four_at_once<T>(g.c, g.ldc);
  p.activated_in_packs = four_at_once<T>(g.activated, g.ld_activated);
  p.saved_in_packs = four_at_once<T>(g.saved, g.ld_saved);
  constexpr int64_t kDepth = kLine / int64_t(sizeof(T));
  p.split = plan.split;
  p.part_k = ceil_div(ceil_div(g.K, kDepth), plan.split) * kDepth;
  p.ld_parts = w.ld_parts;
  if (w.parts > 0) p.parts = static_cast<float*>(workspace);
  if (w.column_parts > 0) p.column_parts = static_cast<float*>(workspace) + w.parts;

  cudaError_t error = a_k   ? b_k ? launch_layout<T, P, Major::k, Major::k>(plan.tile, p, stream)
                                  : launch_layout<T, P, Major::k, Major::mn>(plan.tile, p, stream)
                      : b_k ? launch_tile<T, P, TileOf<1, 2>, Major::mn, Major::k>(p, stream)
                            : launch_layout<T, P, Major::mn, Major::mn>(plan.tile, p, stream);
  if (error == cudaSuccess && p.parts) {
    error = launch(sum_parts<T>, unsigned(sum_blocks), kPartThreads,
                   kPartRows * kPartColumns * sizeof(float), stream, p);
  }
  if (error == cudaSuccess) error = sum_columns(w.row_blocks);
  return error;
}

MLP_NAMESPACE_END
