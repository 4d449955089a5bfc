// Matrix products with their epilogues: layouts, tiles, tails, split K, precision, what is not
// finite; every case against float64.
#include "../../csrc/cuda/gemm/gemm_bf16.cu"
#include "../../csrc/cuda/gemm/gemm_epilogue.cuh"
#include "../../csrc/cuda/gemm/gemm_f16.cu"
#include "../../csrc/cuda/gemm/gemm_f32.cu"
#include "../../csrc/cuda/gemm/gemm_kernel.cuh"
#include "../../csrc/cuda/gemm/gemm_reduce.cuh"
#include "../../csrc/cuda/gemm/gemm_tf32.cu"
#include <array>
#include "check.h"
#include "gemm_reference.h"

namespace mlp_ext::cuda {
namespace {

using namespace check;

enum class Epilogue { none, bias, both, only_activated, backward, backward_sum, forward_sum };

struct Problem {
  int64_t M = 0, N = 0, K = 0;
  const char* layout =
      nullptr;  // of A and B: N where consecutive elements lie along K of A, N of B
  Epilogue epilogue = Epilogue::none;
  Activation activation = Activation::none;
  int pad = 0;     // elements behind each row
  int offset = 0;  // elements behind an aligned address
  Precision precision = Precision::full;
  double tolerance = 0;  // 0: of the type
};

template <class T>
std::string product(const Problem& q, const std::function<void(Operands<T>&)>& change = {}) {
  Operands<T> x(q.M, q.N, q.K, q.layout, q.pad, q.offset);
  if (change) change(x);
  GemmArgs<T> g = x.args();
  const int64_t ld = q.N + q.pad;
  const auto matrix = [&] {
    return Buffer<T>(std::max<int64_t>(0, (q.M - 1) * ld + q.N), q.offset);
  };
  Buffer<T> c = matrix(), activated = matrix(), sum(q.N);
  const auto bias = normal<T>(q.N, 3), saved = normal<T>(c.size(), 4, 1, q.offset);
  const Epilogue e = q.epilogue;
  const bool backward = e == Epilogue::backward || e == Epilogue::backward_sum;
  g.activation = q.activation;
  if (e != Epilogue::only_activated) g.c = c.data(), g.ldc = ld;
  if (e != Epilogue::none && !backward) g.bias = bias.data();
  if (e == Epilogue::both || e == Epilogue::only_activated) {
    g.activated = activated.data(), g.ld_activated = ld;
  }
  if (backward) g.saved = saved.data(), g.ld_saved = ld;
  if (e == Epilogue::backward_sum || e == Epilogue::forward_sum) g.column_sum = sum.data();

  const size_t bytes = gemm_workspace(g, q.precision, kH100);
  Buffer<float> workspace(bytes / sizeof(float));
  expect(
      gemm(g, q.precision, kH100, bytes > 0 ? workspace.data() : nullptr, nullptr) == cudaSuccess,
      "launched");
  expect(workspace.intact(), "the workspace is as large as it says");

  const Reference r = reference(x, g);
  const double tolerance = q.tolerance > 0 ? q.tolerance : std::max(4 * kEpsilon<T>, 1e-6);
  const double floor = std::sqrt(double(q.K)) + 1;
  std::string bits;
  if (g.c) compare(c, r.c, q.N, ld, tolerance, floor, "c"), bits += bytes_of(c);
  if (g.activated) {
    compare(activated, r.activated, q.N, ld, tolerance, floor, "activated");
    bits += bytes_of(activated);
  }
  if (g.column_sum) {
    expect_close(sum, r.column_sum, tolerance, floor * std::sqrt(double(q.M)), "column_sum");
    bits += bytes_of(sum);
  }
  return bits;
}

const char* text_of(Epilogue e) {
  constexpr const char* kNames[] = {"none",     "bias",         "both",       "only-activated",
                                    "backward", "backward-sum", "forward-sum"};
  return kNames[int(e)];
}

void run_product_with(const std::string& name, const char* plan,
                      const std::function<std::string()>& body) {
  force_products(plan);
  run_case(name, body);
  force_products("");
}

// In the first schedule alone: for long sums, whose values no schedule changes.
void run_once(const std::string& name, const char* plan, const std::function<std::string()>& body) {
  std::string bits;
  run_product_with(name, plan, [&] {
    if (bits.empty()) bits = body();
    return bits;
  });
}

template <class T>
void run_product(const char* type, const char* plan, const Problem& q) {
  run_product_with(
      text("%s-%s-%s-M%d_N%d_K%d-%s-%s-pad%d-offset%d%s", type, plan, q.layout, int(q.M), int(q.N),
           int(q.K), text_of(q.epilogue), kActivationNames[int(q.activation)], q.pad, q.offset,
           q.precision == Precision::tf32 ? "-tf32" : ""),
      plan, [&] { return product<T>(q); });
}

// Every layout and tile, at sizes that end inside tiles, packs and stages.
template <class T>
void layouts(const char* type, Precision precision, double tolerance) {
  Problem q{};
  q.precision = precision, q.tolerance = tolerance;
  for (const char* layout : {"NT", "NN", "TN", "TT"}) {
    q.layout = layout;
    q.M = 40, q.N = 72, q.K = 100, q.pad = 0;  // whole packs
    run_product<T>(type, "64x64,1", q);
    q.M = 33, q.N = 37, q.K = 75, q.pad = 2;  // none
    run_product<T>(type, "64x64,2", q);
    if (layout[0] == 'T' && layout[1] == 'T') continue;  // the others have this tile alone
    q.M = 70, q.N = 31, q.K = 36, q.pad = 4;
    run_product<T>(type, "128x32,1", q);
    q.M = 16, q.N = 136, q.K = 72, q.pad = 0;
    run_product<T>(type, "32x128,1", q);
    if (precision == Precision::tf32) continue;  // the same kernel but for one function
    q.M = 136, q.N = 100, q.K = 40, q.pad = 0;
    run_product<T>(type, "128x128,1", q);
  }
}

// Pointers and leading dimensions that no pack fits, one element at a time; single rows and
// columns.
template <class T>
void shapes(const char* type) {
  for (const char* layout : {"NT", "NN", "TN"}) {
    Problem q{17, 12, 40, layout, Epilogue::bias};
    q.offset = 1, q.pad = 8;
    run_product<T>(type, "64x64,1", q);
    for (const auto& [M, N, K] : {std::array<int, 3>{1, 9, 5}, {9, 1, 5}, {5, 9, 1}, {1, 1, 1}}) {
      run_product<T>(type, "64x64,1", {M, N, K, layout, Epilogue::forward_sum, Activation::tanh});
    }
  }
  // K = 0 gives the epilogue of zeros; no rows, column sums of zero; no columns, nothing.
  run_product<T>(type, "64x64,2", {5, 9, 0, "NT", Epilogue::both, Activation::sigmoid});
  run_product<T>(type, "64x64,1", {0, 9, 5, "NT", Epilogue::backward_sum});
  run_product<T>(type, "64x64,1", {7, 0, 5, "NT", Epilogue::backward_sum});
  // More rows of tiles than a group of them has.
  run_product<T>(type, "32x128,1", {300, 130, 4, "NT", Epilogue::backward_sum, Activation::relu});
}

template <class T>
void epilogues(const char* type) {
  for (int a = 0; a < kActivationCount; ++a) {
    for (const Epilogue e : {Epilogue::bias, Epilogue::both, Epilogue::backward}) {
      Problem q{9, 14, 8, "NT", e, Activation(a)};
      q.pad = a % 3;  // 2: packs of C
      run_product<T>(type, a % 2 ? "64x64,1" : "64x64,2", q);
    }
  }
  for (const char* plan : {"64x64,1", "32x128,3"}) {
    for (const Epilogue e :
         {Epilogue::only_activated, Epilogue::backward_sum, Epilogue::forward_sum}) {
      run_product<T>(type, plan, {70, 66, 8, "NN", e, Activation::gelu});
    }
  }
}

// Parts of K: fewer and more than there are steps.
void splits() {
  for (const char* plan : {"64x64,2", "64x64,7", "128x128,3"}) {
    run_product<float>("f32", plan, {20, 40, 170, "TN", Epilogue::bias});
  }
  run_product<mlp_ext::BFloat16>("bf16", "64x64,3", {20, 40, 200, "TN", Epilogue::backward_sum});
}

// Errors of sums over K = 4096, or 256, relative to the norm of the result; one float32 fma after
// another has 1.1e-6 (2.8e-7). The figures are those of the model of tensor cores in ptx/mma.h.
template <class T>
void accuracy(const char* type, Precision precision, int K, double most) {
  run_once(text("accuracy-%s%s-K%d", type, precision == Precision::tf32 ? "-tf32" : "", K),
           // Two parts: the workspace has their sums in float32, whatever T is.
           "64x64,2", [=] {
             Operands<T> x(32, 32, 2 * K, "NT", 0, 0);
             GemmArgs<T> g = x.args();
             Buffer<T> c(32 * 32);
             g.c = c.data(), g.ldc = 32;
             Buffer<float> parts(gemm_workspace(g, precision, kH100) / sizeof(float)), sum(32 * 32);
             gemm(g, precision, kH100, parts.data(), nullptr);
             Operands<T> half(32, 32, K, "NT", 0, 0);
             for (int i = 0; i < 32; ++i) {
               for (int k = 0; k < K; ++k)
                 half.a_at(i, k) = x.a_at(i, k), half.b_at(k, i) = x.b_at(k, i);
             }
             std::memcpy(sum.data(), parts.data(), 32 * 32 * sizeof(float));
             const std::vector<double> exact = sums(half);
             const double error = relative_error(sum, exact);
             for (int i = 0; i < 32 * 32; ++i) {
               float s = 0;
               for (int k = 0; k < K; ++k) {
                 s = std::fma(float(value_of(half.a_at(i / 32, k))),
                              float(value_of(half.b_at(k, i % 32))), s);
               }
               sum[i] = s;
             }
             const double of_fma = relative_error(sum, exact);
             if (std::getenv("SIMT_VERBOSE")) {
               std::printf("%s: %.3g, one fma after another %.3g\n", label.c_str(), error, of_fma);
             }
             if (error > most) fail("relative error %.3g, allowed %.3g", error, most);
             if (std::is_same_v<T, float> && precision == Precision::full && error > 2 * of_fma) {
               fail("relative error %.3g, of float32 arithmetic %.3g", error, of_fma);
             }
             return bytes_of(parts);
           });
}

// Inf and NaN in rows and columns, zeros and powers of two (whose low parts are zero) on the other
// side, numbers next to the largest, sums that overflow: as IEEE arithmetic has them.
template <class T>
void not_finite(const char* type, const char* plan, Precision precision = Precision::full) {
  run_product_with(text("not-finite-%s-%s-%d", type, plan, int(precision)), plan, [=] {
    Problem q{40, 24, 40, "NN", Epilogue::none};
    q.precision = precision, q.tolerance = precision == Precision::tf32 ? 4e-3 : 0;
    return product<T>(q, [&](Operands<T>& x) {
      // Overflow of a sum in a tensor core is not tested: what it gives is not documented.
      const double inf = INFINITY, largest = std::is_same_v<T, Float16> ? 65504 : 1e38;
      for (int n = 0; n < 24; ++n)
        x.b_at(5, n) = rounded<T>(n % 3 == 0 ? 0 : n % 3 == 1 ? 1 : -1.7);
      x.a_at(1, 5) = rounded<T>(inf);
      x.a_at(2, 5) = rounded<T>(-inf);
      x.a_at(3, 7) = rounded<T>(NAN);
      x.a_at(4, 0) = x.a_at(4, 1) = rounded<T>(inf);
      x.b_at(9, 11) = rounded<T>(inf);
      x.a_at(33, 9) = rounded<T>(0);
      for (int k = 0; k < 40; ++k) x.a_at(6, k) = rounded<T>(k == 5 ? largest : 0);
      if (precision == Precision::full && std::is_same_v<T, float>) {
        x.a_at(6, 5) = rounded<T>(std::numeric_limits<float>::max());
      }
    });
  });
}

// What the cost model must not get wrong, whatever its rates become.
constexpr GemmKind kFull{4, 3}, kHalf{2, 1};
constexpr GemmPlan kSquare = gemm_plan(kH100, kFull, 4096, 4096, 4096);
static_assert(kSquare.tile == 0 && kSquare.split == 1, "large: the largest tile, whole K");
constexpr GemmPlan kWeightGradient = gemm_plan(kH100, kFull, 256, 256, 65536);
static_assert(kWeightGradient.split >= 8, "few tiles, long K: all multiprocessors at work");
static_assert(gemm_plan(kH100, kHalf, 256, 256, 65536).split >= 8, "in 16 bits too");
static_assert(kGemmTiles[gemm_plan(kH100, kFull, 65536, 10, 256).tile].n == 32, "few columns");
static_assert(kGemmTiles[gemm_plan(kH100, kFull, 10, 256, 65536).tile].m == 32, "few rows");
static_assert(gemm_plan(kH100, kFull, 65536, 256, 256).split == 1, "many tiles");
static_assert(gemm_plan(kA100, kFull, 1, 1, 1).split == 1 &&
              gemm_plan(kA100, kFull, 5, 5, 0).split == 1);
// Devices whose blocks may have less shared memory than the largest tile's stages.
constexpr DeviceInfo kSmall{75, 40, 64 << 10};
static_assert(gemm_plan(kSmall, kFull, 4096, 4096, 4096).tile != 0);

void refused() {
  for (const char* plan : {"64x63,1", "64x64", "64x64,0", "64x64,65536", "64x64,1x", ",1"}) {
    run_case(text("refused-%s", plan), [plan] {
      bool threw = false;
      try {
        force_products(plan);
      } catch (const std::invalid_argument&) {
        threw = true;
      }
      expect(threw, "refused");
      expect(forced_text().empty(), "nothing is forced");
      return std::string();
    });
  }
}

}  // namespace
}  // namespace mlp_ext::cuda

int main() {
  using namespace mlp_ext::cuda;
  using mlp_ext::Activation;
  using mlp_ext::BFloat16;
  using mlp_ext::Float16;
  // The quick ones first: planted faults are looked for until one fails.
  not_finite<float>("f32", "64x64,1");
  not_finite<float>("f32", "64x64,2");
  not_finite<float>("f32", "64x64,1", Precision::tf32);
  not_finite<BFloat16>("bf16", "64x64,1");
  not_finite<Float16>("f16", "64x64,1");
  shapes<float>("f32");
  shapes<BFloat16>("bf16");
  splits();
  epilogues<float>("f32");
  epilogues<Float16>("f16");
  layouts<float>("f32", Precision::full, 0);
  layouts<float>("f32", Precision::tf32, 4e-3);
  layouts<BFloat16>("bf16", Precision::full, 0);
  run_product<Float16>("f16", "64x64,1", {33, 40, 72, "NT", Epilogue::bias, Activation::relu});
  accuracy<float>("f32", Precision::full, 32, 1.3e-7);
  accuracy<float>("f32", Precision::full, 256, 1.7e-7);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // minutes, for no other access
  accuracy<float>("f32", Precision::full, 4096, 4.5e-7);
  accuracy<float>("f32", Precision::tf32, 4096, 5e-4);
  accuracy<BFloat16>("bf16", Precision::full, 4096, 1e-5);
#endif
  refused();
  return finish();
}
