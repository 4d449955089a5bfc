// An operand's tile in shared memory, and its way there from global memory.
//
// A stage holds R rows (of M or N) x 128 bytes of K, in 16-byte chunks whose places are permuted so
// that neither copies nor fragment loads (gemm_fragments.cuh) have bank conflicts, without padding:
// 3 stages of 128 + 128 rows are 96 KB, which all devices from capability 8.0 on grant.
//
//   Major::k   consecutive k lie side by side in memory (X, W of the forward pass): line i holds
//              row i, 8 chunks; chunk c lies at c ^ (i % 8). ldmatrix reads one chunk of each of 8
//              rows at a time: 8 different places of a 128-byte line.
//   Major::mn  consecutive rows lie side by side (dY and X of a weight gradient, W of an input
//              gradient): line k holds R elements. float32 fragments are read by single words, of
//              8 rows i and 4 lines k: chunk c of line k lies at c ^ 2 (k % 4), so that the four
//              lines' 8 words lie in different quarters of the 32 banks. 16-bit fragments are read
//              by ldmatrix.trans, one chunk of 8 lines: c ^ (k % 8), or where a line is 64 bytes
//              c ^ (k / 2 % 4).
#pragma once

#include "../pack.h"
#include "../ptx/cp_async.h"

MLP_NAMESPACE_BEGIN

enum class Major { k, mn };

constexpr int kLine = 128;  // bytes of K a stage

template <class T, Major MAJOR, int R, int THREADS>
struct Stager {
  static constexpr int kDepth = kLine / int(sizeof(T));                        // k a stage
  static constexpr int kInLine = (MAJOR == Major::k ? kDepth : R) / kPack<T>;  // chunks
  static constexpr int kLines = MAJOR == Major::k ? R : kDepth;

  const T* p;      // the operand
  const T* tile;   // where the tile begins in it, at k = 0
  int64_t ld;      // elements between lines
  int rows;        // of the tile that exist
  bool in_chunks;  // lines begin on 16 bytes

  MLP_DEVICE static int swizzle(int line) {
    if (MAJOR == Major::k) return line % 8;
    if (sizeof(T) == 4) return line % 4 * 2;
    return R * sizeof(T) >= 128 ? line % 8 : line / 2 % 4;
  }
  MLP_DEVICE static int place(int line, int chunk) {
    return line * (kInLine * 16) + (chunk ^ swizzle(line)) * 16;
  }

  // How many elements from `at` in a line on exist, at most `most`; `depth` of K do.
  MLP_DEVICE int existing(int depth, int line, int at, int most) const {
    const int left = MAJOR == Major::k ? depth - at : rows - at;
    if (line >= (MAJOR == Major::k ? rows : depth) || left <= 0) return 0;
    return left < most ? left : most;
  }
  MLP_DEVICE const T* source(int64_t k0, int line, int at) const {
    return MAJOR == Major::k ? tile + line * ld + k0 + at : tile + (k0 + line) * ld + at;
  }

  // Begins to copy the stage of K from k0 to k_end at most; what lies outside becomes zero.
  MLP_DEVICE void copy(unsigned char* stage, int64_t k0, int64_t k_end) const {
    const int depth = k_end - k0 < kDepth ? int(k_end - k0) : kDepth;
    if (in_chunks) {
      constexpr int kStep = THREADS / kInLine;
      static_assert(THREADS % kInLine == 0 && kLines % kStep == 0, "whole lines");
      const int chunk = int(threadIdx.x) % kInLine, line = int(threadIdx.x) / kInLine;
      const T* from = source(k0, line, chunk * kPack<T>);
      const int64_t stride = kStep * ld;
      MLP_UNROLL
      for (int i = 0; i < kLines / kStep; ++i, from += stride) {
        const int n = existing(depth, line + i * kStep, chunk * kPack<T>, kPack<T>);
        cp_async<16>(stage + place(line + i * kStep, chunk), n > 0 ? from : p, n * int(sizeof(T)));
      }
      return;
    }
    constexpr int kAcross = kInLine * kPack<T>;
    static_assert(kLines * kAcross % (4 * THREADS) == 0, "whole turns");
#pragma unroll 4
    for (int i = 0; i < kLines * kAcross / THREADS; ++i) {
      const int e = int(threadIdx.x) + i * THREADS, line = e / kAcross, at = e % kAcross;
      const bool exists = existing(depth, line, at, 1) > 0;
      unsigned char* to = stage + place(line, at / kPack<T>) + at % kPack<T> * int(sizeof(T));
      if constexpr (sizeof(T) == 4) {
        cp_async<4>(to, exists ? source(k0, line, at) : p, exists ? 4 : 0);
      } else {
        *reinterpret_cast<T*>(to) = exists ? *source(k0, line, at) : T{0};
      }
    }
  }
};

MLP_NAMESPACE_END
