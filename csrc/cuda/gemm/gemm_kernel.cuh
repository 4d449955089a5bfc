// The product of a block: one tile of C over one part of K.
//
//   global --cp.async--> 3 stages in shared memory --> fragments --mma.sync--> registers
//          --> shared memory --> epilogue --> global        or --> parts in the workspace
//
// A warp takes 64 x 32 (tile 128x128) or 32 x 32 of the tile. With split operands
// (gemm_product.cuh) 64 x 32 are 64 registers of sums, 32 of sums begun anew, about 60 of
// fragments, and as many again of the next fragments, which the compiler loads and splits
// meanwhile: one block of 256 threads a multiprocessor. For 32 bytes of K a warp has 48 products
// beside some 150 other instructions (SASS). 128x128 has 96 KB of stages, the others 48 to 60 KB.
//
// Blocks take tiles in groups of 8 rows of tiles, column after column, so that those that run
// together share operands in L2.
#pragma once

#include "gemm_epilogue.cuh"
#include "gemm_product.cuh"
#include "heuristics.h"

MLP_NAMESPACE_BEGIN

// One of kGemmTiles, and how many warps lie side by side along N.
template <int INDEX, int WARPS_N>
struct TileOf {
  static constexpr int kM = kGemmTiles[INDEX].m, kN = kGemmTiles[INDEX].n;
  static constexpr int kThreads = kGemmTiles[INDEX].threads;
  static constexpr int kResident = kGemmTiles[INDEX].resident;
  static constexpr int kWarpsN = WARPS_N, kWarpsM = kThreads / 32 / WARPS_N;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  static_assert(kWarpM == 32 || kWarpM == 64, "gemm_fragments.cuh");
  static_assert(kWarpN == 32, "gemm_fragments.cuh");
  // The tile on its way to the epilogue: rows 8 banks apart, where a warp's 8 rows x 4 pairs of
  // columns meet all banks.
  static constexpr int kLd = kN + 8;
  static constexpr int kScratch = kM * kLd;  // where the epilogue's begins
  static_assert((kScratch + 4 * kThreads) * 4 <= kGemmStages * (kM + kN) * kLine, "reuses stages");
};

struct TilePlace {
  int64_t m, n;
};

MLP_DEVICE TilePlace tile_place(unsigned index, unsigned tiles_m, unsigned tiles_n) {
  constexpr unsigned kGroup = 8;
  const unsigned group = index / (kGroup * tiles_n), in_group = index % (kGroup * tiles_n);
  const unsigned left = tiles_m - group * kGroup, rows = left < kGroup ? left : kGroup;
  return {int64_t(group) * kGroup + in_group % rows, in_group / rows};
}

template <class T, Precision P, class Tile, Major A, Major B>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    gemm_kernel(const __grid_constant__ GemmParams<T> p) {
  constexpr int MT = Tile::kWarpM / 16, NT = Tile::kWarpN / 8, kDepth = kLine / int(sizeof(T));
  constexpr int kBytesA = Tile::kM * kLine, kStage = kBytesA + Tile::kN * kLine;
  const GemmArgs<T>& g = p.g;
  unsigned char* const shared = shared_memory<unsigned char>();
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warp_m = warp / Tile::kWarpsN * Tile::kWarpM, warp_n = warp % Tile::kWarpsN * 32;
  const TilePlace tile = tile_place(blockIdx.x, p.tiles_m, p.tiles_n);
  const int64_t m0 = tile.m * Tile::kM, n0 = tile.n * Tile::kN;
  const int64_t k0 = blockIdx.y * p.part_k;
  const int64_t k_end = k0 + p.part_k < g.K ? k0 + p.part_k : g.K;
  const int64_t steps = k_end > k0 ? (k_end - k0 + kDepth - 1) / kDepth : 0;

  const int rows = g.M - m0 < Tile::kM ? int(g.M - m0) : Tile::kM;
  const int columns = g.N - n0 < Tile::kN ? int(g.N - n0) : Tile::kN;
  const Stager<T, A, Tile::kM, Tile::kThreads> stage_a{
      g.a, g.a + m0 * g.a_row, A == Major::k ? g.a_row : g.a_col, rows, p.a_in_chunks};
  const Stager<T, B, Tile::kN, Tile::kThreads> stage_b{
      g.b, g.b + n0 * g.b_col, B == Major::k ? g.b_col : g.b_row, columns, p.b_in_chunks};
  const Fragments<T, A, Tile::kM, Operand::a> of_a(warp_m);
  const Fragments<T, B, Tile::kN, Operand::b> of_b(warp_n);
  float sum[MT][NT][4] = {};
  // Copies are kAhead steps before their products; the first kAhead turns have none of these.
  constexpr int kAhead = kGemmStages - 1;
  int read = 0, write = 0;
#pragma unroll 1
  for (int64_t step = -kAhead; step < steps; ++step) {
    if (step >= 0) {
      cp_async_wait<kAhead - 1>();
      __syncthreads();  // this stage is there for all, and the one before it read by all
    }
    if (step + kAhead < steps) {
      unsigned char* const stage = shared + write * kStage;
      const int64_t k = k0 + (step + kAhead) * kDepth;
      stage_a.copy(stage, k, k_end);
      stage_b.copy(stage + kBytesA, k, k_end);
      write = write + 1 == kGemmStages ? 0 : write + 1;
    }
    cp_async_commit();
    if (step < 0) continue;
    const unsigned char* const stage = shared + read * kStage;
    multiply_stage<T, P, MT, NT>(sum, of_a, of_b, stage, stage + kBytesA);
    read = read + 1 == kGemmStages ? 0 : read + 1;
  }
  cp_async_wait<0>();

  // Of sum[0][0][0] in the tile.
  const int my_m = warp_m + lane / 4, my_n = warp_n + lane % 4 * 2;
  if constexpr (kSplits<T, P>) {
    bool finite = true;
    MLP_UNROLL
    for (int i = 0; i < MT * NT * 4; ++i) {
      finite &= fabsf(sum[i / 4 / NT][i / 4 % NT][i % 4]) < 3e38f;
    }
    // Also the barrier before the stages are written over.
    if (__syncthreads_or(!finite)) exact_sums<MT, NT>(sum, g, m0 + my_m, n0 + my_n, k0, k_end);
  } else {
    __syncthreads();
  }

  float* const sums = p.parts ? nullptr : reinterpret_cast<float*>(shared);
  MLP_UNROLL
  for (int i = 0; i < MT * NT * 2; ++i) {
    const int mt = i / 2 / NT, nt = i / 2 % NT, below = i % 2;
    const int m = my_m + mt * 16 + below * 8, n = my_n + nt * 8;
    const Pack<float, 2> pair{sum[mt][nt][2 * below], sum[mt][nt][2 * below + 1]};
    if (sums) {
      *reinterpret_cast<Pack<float, 2>*>(sums + m * Tile::kLd + n) = pair;
    } else if (m0 + m < g.M && n0 + n < p.ld_parts) {
      float* const part = p.parts + (blockIdx.y * g.M + m0 + m) * p.ld_parts + n0 + n;
      *reinterpret_cast<Pack<float, 2>*>(part) = pair;
    }
  }
  if (!sums) return;
  __syncthreads();
  finish<T, Tile::kM, Tile::kN, Tile::kThreads>(p, Addends{sums, Tile::kLd, 1, 0}, m0, n0,
                                                sums + Tile::kScratch, tile.m);
}

MLP_NAMESPACE_END
