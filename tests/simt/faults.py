"""Faults to plant in kernels and in the stand-in: see test_planted_bugs.py."""

GEMM = ("run_gemm", "csrc/cuda/gemm/gemm_kernel.cuh")
PRODUCT = ("run_gemm", "csrc/cuda/gemm/gemm_product.cuh")
EPILOGUE = ("run_gemm", "csrc/cuda/gemm/gemm_epilogue.cuh")
PRIMITIVES = ("run_primitives", "tests/simt/run_primitives.cpp")
CROSS_ENTROPY = ("run_cross_entropy", "csrc/cuda/losses/cross_entropy.cuh")
ELEMENTWISE = ("run_elementwise_loss", "csrc/cuda/losses/elementwise_loss.cuh")
FUSED = "run_fused_mlp"
LIBRARY = ("run_lt_gemm", "csrc/cuda/cublaslt/lt_gemm.cpp")
MASK = ("run_relu_mask", "csrc/cuda/elementwise/relu_mask.cuh")
BACKWARD = ("run_activation", "csrc/cuda/elementwise/activation_backward.cuh")
# (program, file, what stands there, what is planted) by what is wrong, and the flavour of
# host_build.py that sees it, where that is not the plain one.
FAULTS = {
    "no-wait-for-a-copy": (*PRIMITIVES, "  cp_async_wait<0>();\n", ""),
    "an-exited-lane": (
        *PRIMITIVES,
        "fa[4], fb[2];\n  for",
        "fa[4], fb[2];\n  if (threadIdx.x == 9) return;\n  for",
    ),
    "a-store-behind-the-shared-memory": (
        *PRIMITIVES,
        "    shared[threadIdx.x] =",
        "    shared[threadIdx.x + 1] =",
    ),
    "a-barrier-that-not-all-reach": (
        *PRIMITIVES,
        "    __syncthreads();\n    y[",
        "    if (threadIdx.x < 32) __syncthreads();\n    y[",
    ),
    "a-wrong-fragment": (
        "run_primitives",
        "csrc/cuda/ptx/mma.h",
        "4 * (2 * q + 1) + owner",
        "4 * (q + 1) + owner",
    ),
    "a-race-between-two-barriers": (
        *PRIMITIVES,
        "  const float first = shared[other];\n  __syncthreads();\n",
        "  const float first = shared[other];\n",
        "thread",
    ),
    "blocks-that-add-without-atomics": (
        *PRIMITIVES,
        "atomicAdd(sum, blockIdx.x)",
        "*sum += blockIdx.x",
        "thread",
    ),
    # The activation's backward pass and bias gradient.
    "rows-of-the-next-part": (
        *BACKWARD,
        "behind < p_.args.rows ? behind",
        "behind < p_.args.rows ? behind + 1",
    ),
    "rows-behind-the-last": (*BACKWARD, "if (row < end) store_chunk", "store_chunk"),
    "columns-behind-the-last": (
        *BACKWARD,
        "if (column_ >= p_.args.columns) end",
        "if (begin < 0) end",
    ),
    "sums-of-columns-behind-the-last": (
        *BACKWARD,
        "if (column >= p_.args.columns) continue;",
        "",
    ),
    "a-warp-left-out-of-the-sum": (*BACKWARD, "w < kWarps", "w < kWarps - 1"),
    "lanes-that-are-not-summed": (
        *BACKWARD,
        "int d = p_.lanes; d < 32",
        "int d = p_.lanes; d < 16",
    ),
    "a-pack-of-an-unaligned-row": (
        "run_activation",
        "csrc/cuda/elementwise/columns.h",
        "columns % kColumns<T> == 0 && packs<T>(p, ld)",
        "columns % kColumns<T> == 0 && (p || ld)",
    ),
    # The losses.
    "sums-of-blocks-without-a-fence": (
        "run_cross_entropy",
        "csrc/cuda/losses/loss_sum.h",
        "    __threadfence();\n    is_last",
        "    is_last",
        "thread",
    ),
    "sums-over-classes-behind-the-last": (
        *CROSS_ENTROPY,
        "if (!exists || c >= classes) continue;",
        "if (!exists) continue;",
    ),
    "a-gradient-behind-the-last-class": (
        *CROSS_ENTROPY,
        "if (c >= classes) continue;",
        "if (c > classes) continue;",
    ),
    "ignored-rows-in-the-mean": (
        *CROSS_ENTROPY,
        "    if (target == a.ignore_index) continue;\n",
        "",
    ),
    "a-counter-that-nobody-resets": (
        *CROSS_ENTROPY,
        "p.workspace->finished = 0;",
        "p.workspace->finished = 1;",
    ),
    "a-pixel-of-the-wrong-image": (
        *CROSS_ENTROPY,
        "image * a.rows * a.classes +",
        "image * a.rows +",
    ),
    "a-maximum-that-smoothing-misses": (
        "run_cross_entropy",
        "csrc/cuda/losses/cross_entropy_row.h",
        "s.uz + s.u * shift",
        "s.uz",
    ),
    "digits-of-a-confident-row": (
        "run_cross_entropy",
        "csrc/cuda/losses/cross_entropy_row.h",
        "at_target == C(1) ?",
        "at_target < C(0) ?",
    ),
    "a-sum-before-the-last-was-read": (
        "run_cross_entropy",
        "csrc/cuda/losses/loss_sum.h",
        "  __syncthreads();  // an earlier",
        "  // an earlier",
    ),
    "a-sum-before-all-warps-have-theirs": (
        "run_cross_entropy",
        "csrc/cuda/losses/loss_sum.h",
        "= mine;\n  __syncthreads();",
        "= mine;",
    ),
    "the-last-element": (*ELEMENTWISE, "last < p.args.n)", "last < p.args.n - 1)"),
    "a-weight-of-the-next-row": (
        *ELEMENTWISE,
        "column + 1 < p.columns ? column + 1 : 0",
        "column + 1 < p.columns ? column + 1 : column",
    ),
    "what-lies-before-the-first-pack": (
        "run_elementwise_loss",
        "csrc/cuda/elementwise/scale.cuh",
        "if (thread < head)",
        "if (thread < head - 1)",
    ),
    "a-bias-of-the-wrong-column": (
        "run_activation",
        "csrc/cuda/elementwise/activation.cuh",
        "p.bias[column + j]",
        "p.bias[column]",
    ),
    "a-chunk-of-the-wrong-tensor": (
        "run_optimizer_lists",
        "csrc/cuda/optimizers/multi_tensor.cuh",
        "list.first_block[middle] <= block",
        "list.first_block[middle] < block",
    ),
    "a-chunk-beyond-its-tensor": (
        "run_optimizer_lists",
        "csrc/cuda/optimizers/multi_tensor.cuh",
        "left < list.chunk ? left : list.chunk",
        "left < 0 ? left : list.chunk",
    ),
    "a-step-that-skips-the-tail": (
        "run_optimizer_lists",
        "csrc/cuda/optimizers/optimizers.cuh",
        "i = packed + thread",
        "i = packed + thread + 1",
    ),
    "packs-of-an-unaligned-stream": (
        "run_optimizer_lists",
        "csrc/cuda/optimizers/optimizers.cuh",
        "is_aligned(addresses_of(tensor)) ?",
        "is_aligned(0) ?",
    ),
    "rules-of-the-launch-before": (
        "run_optimizer_lists",
        "csrc/cuda/optimizers/optimizers_launch.cuh",
        "p.rules = rules + first;\n    if",
        "p.rules = rules;\n    if",
    ),
    "counters-of-the-launch-before": (
        "run_optimizer_lists",
        "csrc/cuda/optimizers/optimizers_launch.cuh",
        "std::copy(counters + first, counters + first + p.count",
        "std::copy(counters, counters + p.count",
    ),
    "a-count-despite-found-inf": (
        "run_optimizer_lists",
        "csrc/cuda/optimizers/optimizers.cuh",
        "count_up(const __grid_constant__ CountParameters<Args, Rule> p) {\n"
        "  if (p.found_inf && *p.found_inf != 0) return;\n",
        "count_up(const __grid_constant__ CountParameters<Args, Rule> p) {\n",
    ),
    "partial-sums-left-out": (
        "run_clip_norm",
        "csrc/cuda/optimizers/clip_norm.cuh",
        "i < p.partials; i += kMultiTensorThreads",
        "i < p.partials && i < kMultiTensorThreads; i += kMultiTensorThreads",
    ),
    "partial-sums-over-those-of-the-launch-before": (
        "run_clip_norm",
        "csrc/cuda/optimizers/clip_norm.cu",
        "    p.partial += blocks;\n",
        "",
    ),
    "gemm-a-stage-read-too-early": (*GEMM, "cp_async_wait<kAhead - 1>", "cp_async_wait<kAhead>"),
    "gemm-a-tile-twice": (*GEMM, "left < kGroup ? left : kGroup", "left * 0 + kGroup"),
    "gemm-inf-stays-nan": (
        *GEMM,
        "if (__syncthreads_or(!finite))",
        "if (__syncthreads_or(!finite) > 1)",
    ),
    "gemm-no-low-parts": (
        *PRODUCT,
        "mma_tf32(part[i], a_hi[i / NT], b_lo[i % NT]);",
        "(void)b_lo[i % NT];",
    ),
    "gemm-k-past-its-end": ("run_gemm", "csrc/cuda/gemm/gemm_stage.cuh", "? depth - at", "? most"),
    "gemm-the-saved-of-another-row": (
        *EPILOGUE,
        "saved_at(r + kAhead * kLanes)",
        "saved_at(r + kLanes)",
    ),
    "gemm-a-part-left-out": (*EPILOGUE, "part < sums.count;", "part < sums.count - (part > 0);"),
    "gemm-rows-outside": (*EPILOGUE, "g.M - m0 < ROWS ? int(g.M - m0) : ROWS", "ROWS"),
    # The fused MLP.
    "accumulators-in-the-wrong-slots": (
        FUSED,
        "csrc/cuda/fused_mlp/fused_mlp_fragments.cuh",
        "i % 2 * 2 + i / 2;",
        "i;",
    ),
    "a-product-that-is-left-out": (
        FUSED,
        "csrc/cuda/fused_mlp/fused_mlp_fragments.cuh",
        "mma_tf32(c, a[half].high, b[half].low);",
        "",
    ),
    "no-promotion": (
        FUSED,
        "csrc/cuda/fused_mlp/fused_mlp_fragments.cuh",
        "if constexpr (S::kPromotes) {",
        "if constexpr (false) {",
    ),
    "infinity-becomes-nan": (
        FUSED,
        "csrc/cuda/fused_mlp/fused_mlp_product.cuh",
        "__any_sync(~0u, !finite(c))",
        "__any_sync(~0u, false)",
    ),
    "infinity-becomes-nan-in-a-gradient": (
        FUSED,
        "csrc/cuda/fused_mlp/fused_mlp_gradient.cuh",
        "__any_sync(~0u, !gradient.all_finite())",
        "__any_sync(~0u, false)",
    ),
    "nan-from-columns-that-are-not-there": (
        FUSED,
        "csrc/cuda/fused_mlp/fused_mlp_tiles.cuh",
        "if (columns == 8 * TILES) return;",
        "if (columns >= 1) return;",
    ),
    "the-slot-that-is-being-read": (
        FUSED,
        "csrc/cuda/fused_mlp/fused_mlp_forward.cuh",
        "slot ^= slots - 1;",
        "",
    ),
    "weights-that-are-not-waited-for": (
        FUSED,
        "csrc/cuda/fused_mlp/fused_mlp_backward.cuh",
        "cp_async_wait<0>();\n      __syncthreads();  // the weights",
        "__syncthreads();  // the weights",
    ),
    "partial-gradients-of-the-last-rows-alone": (
        FUSED,
        "csrc/cuda/fused_mlp/fused_mlp_backward.cuh",
        "first == int64_t{blockIdx.x} * rows_of_block",
        "true",
    ),
    "a-group-of-warps-left-out": (
        FUSED,
        "csrc/cuda/fused_mlp/fused_mlp_plan.h",
        "return blocks * groups;",
        "return blocks;",
    ),
    # cuBLASLt's products.
    "a-mask-of-any-length": (*LIBRARY, "rounded_up(g.N, kLtMaskBits)", "rounded_up(g.N, 8)"),
    "a-mask-in-the-workspace-of-the-library": (*LIBRARY, "mask + product.mask_bytes", "mask"),
    "a-workspace-that-is-not-asked-for": (
        *LIBRARY,
        "std::max(product.scratch_bytes, product.plan.workspace)",
        "product.scratch_bytes",
    ),
    "an-alignment-that-is-not-there": (*LIBRARY, "<uintptr_t>(p) | 16", "<uintptr_t>(p) % 1 | 16"),
    "a-layout-that-is-not-transposed": (*LIBRARY, "transposed = 1, ld", "transposed = 0, ld"),
    "a-bias-in-the-middle": (*LIBRARY, "(vector) % kLtVectorAlign != 0", "(vector) == 1"),
    "bits-in-the-wrong-order": (*MASK, "<< (i + j)", "<< (7 - i - j)"),
    "bits-of-columns-behind-the-last": (*MASK, "if (column >= p.columns) continue;", ""),
    "a-plan-of-another-product": (
        "run_lt_gemm",
        "csrc/cuda/cublaslt/lt_plan.cpp",
        "plans.of.find(problem)",
        "plans.of.begin()",
    ),
}
