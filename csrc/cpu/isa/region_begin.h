// Opens the target region of one ISA. A file in targets/ defines MLP_ISA (the namespace) and
// MLP_TARGET (the compiler's feature string, absent for the baseline), includes this, then the
// ISA's Vec and the kernels, then region_end.h.
//
// Why it is done so, and what keeps it safe:
//  - no per-file compiler flags and no -march: one ordinary extension build carries every ISA;
//  - everything in the region sits in an unnamed namespace, so no template instance compiled for a
//    wide ISA can be picked by the linker for a narrow one;
//  - std and intrinsics headers come before the region (here), so their inline functions are never
//    compiled for the region's target;
//  - no lambdas inside: GCC does not pass the region's target on to them;
//  - the tables are constexpr: nothing compiled for the ISA runs at import.
// No include guard: each target file includes it once.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../../common/activation_kind.h"
#include "../../common/function.h"
#include "../../common/half.h"
#include "../../common/loss_kind.h"
#include "../kernel_table.h"

#define MLP_NAMESPACE_BEGIN         \
  namespace mlp_ext::cpu::MLP_ISA { \
  namespace {
#define MLP_NAMESPACE_END \
  }                       \
  }
#define MLP_INLINE inline __attribute__((always_inline))

#define MLP_PRAGMA(text) _Pragma(#text)
#define MLP_PRAGMA_EXPANDED(text) MLP_PRAGMA(text)

#if defined(__clang__)
#define MLP_UNROLL _Pragma("clang loop unroll(full)")
#define MLP_KEEP_LOOP _Pragma("clang loop unroll(disable)")
#define MLP_UNROLL_BY_4 _Pragma("clang loop unroll_count(4)")
#else
#define MLP_UNROLL _Pragma("GCC unroll 32")
#define MLP_KEEP_LOOP _Pragma("GCC unroll 1")
#define MLP_UNROLL_BY_4 _Pragma("GCC unroll 4")
#endif

#if defined(MLP_TARGET)
#if defined(__clang__)
MLP_PRAGMA_EXPANDED(clang attribute push(__attribute__((target(MLP_TARGET))), apply_to = function))
#else
MLP_PRAGMA(GCC push_options)
MLP_PRAGMA_EXPANDED(GCC target(MLP_TARGET))
// GCC's own AVX-512 headers pass a deliberately undefined register: PR 105593, mended in GCC 13.
MLP_PRAGMA(GCC diagnostic ignored "-Wmaybe-uninitialized")
MLP_PRAGMA(GCC diagnostic ignored "-Wuninitialized")
#endif
#endif
