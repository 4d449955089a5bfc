// A warp's operands from shared memory (gemm_stage.cuh) into registers, as mma.sync wants them.
//
// One load brings 16 rows (of M or N) x 32 bytes of K: one A fragment, or the B fragments of two
// neighbouring tiles of 8 columns, r[0], r[1] and r[2], r[3]. Both are four 8 x 16-byte matrices,
// which A takes in the order (rows 0-7, rows 8-15) of the first half of K, then of the second; B
// the other way round. So three ways of loading serve all cases:
//   Major::k              ldmatrix; a float32 is two 16-bit elements to it
//   Major::mn, 16 bits    ldmatrix.trans
//   Major::mn, float32    four loads of a word
// Places are one number a lane, computed once, then xor and plus constants: the permutations of
// gemm_stage.cuh touch no bits that a warp's first row or the step along K set by carries.
#pragma once

#include "gemm_stage.cuh"
#include "../ptx/ldmatrix.h"

MLP_NAMESPACE_BEGIN

enum class Operand { a, b };

template <class T, Major MAJOR, int R, Operand WHICH>
struct Fragments {
  static constexpr int kRowBytes = R * int(sizeof(T));  // of a line of Major::mn
  static constexpr bool kInWords = MAJOR == Major::mn && sizeof(T) == 4;
  // The permutation of gemm_stage.cuh.
  using Layout = Stager<T, MAJOR, R, 128>;

  int lane_place;

  // first: the warp's first row in the tile, a multiple of the rows it takes.
  MLP_DEVICE explicit Fragments(int first) {
    const int lane = int(threadIdx.x) % 32;
    if constexpr (kInWords) {
      const int g = lane / 4, q = lane % 4, row = first + g;
      lane_place = Layout::place(q, row / 4) + row % 4 * 4;
    } else {
      // This lane's line among 16, and which of two chunks beside each other.
      const bool lines_first = (MAJOR == Major::k) == (WHICH == Operand::a);
      const int line = lines_first ? lane % 16 : lane % 8 + lane / 16 * 8;
      const int half = lines_first ? lane / 16 : lane / 8 % 2;
      lane_place = MAJOR == Major::k ? Layout::place(first + line, half)
                                     : Layout::place(line, first / kPack<T> + half);
    }
  }

  // r: rows 16 block ... 16 block + 15 of the warp's, bytes 32 kk ... 32 kk + 31 of K.
  MLP_DEVICE void load(uint32_t (&r)[4], const unsigned char* stage, int block, int kk) const {
    if constexpr (MAJOR == Major::k) {
      ldmatrix<false>(r, stage + (lane_place ^ (kk * 32)) + block * 16 * kLine);
    } else if constexpr (!kInWords) {
      ldmatrix<true>(r, stage + (lane_place ^ (block * 32)) + kk * 16 * kRowBytes);
    } else {
      MLP_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int below = WHICH == Operand::a ? i % 2 : i / 2;   // 8 rows
        const int behind = WHICH == Operand::a ? i / 2 : i % 2;  // 4 k
        const int place = (lane_place ^ (below * 32 + block % 2 * 64)) + block / 2 * 128 +
                          (kk * 8 + behind * 4) * kRowBytes;
        r[i] = *reinterpret_cast<const uint32_t*>(stage + place);
      }
    }
  }
};

MLP_NAMESPACE_END
