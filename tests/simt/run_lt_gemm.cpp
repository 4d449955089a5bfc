// Products by cuBLASLt, whose place cublaslt_host.cpp takes: what it is asked, and what our kernels
// do beside it; every case against float64.
#include "../../csrc/cuda/cublaslt/lt_api.cpp"
#include "../../csrc/cuda/cublaslt/lt_gemm.cpp"
#include "../../csrc/cuda/cublaslt/lt_plan.cpp"
#include "../../csrc/cuda/elementwise/activation.cu"
#include "../../csrc/cuda/elementwise/activation_backward.cu"
#include "../../csrc/cuda/elementwise/relu_mask.cu"
#include "check.h"
#include "cublaslt_host.cpp"
#include "gemm_reference.h"

namespace mlp_ext::cuda {
namespace {

using namespace check;

Library library() { return {lt_functions(), nullptr}; }

struct Problem {
  int64_t M = 0, N = 0, K = 0;
  const char* layout = "NT";  // as in run_gemm.cpp
  Activation activation = Activation::none;
  bool bias = false, both = false, only_activated = false, saved = false, sum = false,
       row_sum = false;
  int pad = 0, offset = 0;
  Precision precision = Precision::full;
  cublasLtEpilogue_t expected = CUBLASLT_EPILOGUE_DEFAULT;  // of the library
};

template <class T>
std::string product(const Problem& q) {
  Operands<T> x(q.M, q.N, q.K, q.layout, q.pad, q.offset);
  GemmArgs<T> g = x.args();
  const int64_t ld = q.N + q.pad;
  const auto matrix = [&] { return Buffer<T>((q.M - 1) * ld + q.N, q.offset); };
  Buffer<T> c = matrix(), activated = matrix(), sum(q.N), row_sum(q.M);
  const auto bias = normal<T>(q.N, 3);
  auto saved = normal<T>(c.size(), 4, 1, q.offset);
  saved[c.size() / 2] = rounded<T>(NAN);  // whose derivative is 1
  g.activation = q.activation;
  if (!q.only_activated) g.c = c.data(), g.ldc = ld;
  if (q.bias) g.bias = bias.data();
  if (q.both || q.only_activated) g.activated = activated.data(), g.ld_activated = ld;
  if (q.saved) g.saved = saved.data(), g.ld_saved = ld;
  if (q.sum) g.column_sum = sum.data();

  LtGemm<T> planned;
  T* const sums_of_a = q.row_sum ? row_sum.data() : nullptr;
  const bool possible = lt_gemm_plan(g, sums_of_a, q.precision, kH100, library(), planned);
  expect(possible, "the library has it");
  Buffer<unsigned char> workspace(planned.workspace());
  lt_host::products = 0;
  if (possible) {
    const LtResult result = lt_gemm(planned, kH100, library(), workspace.data(), nullptr);
    expect(result.error == cudaSuccess && result.status == CUBLAS_STATUS_SUCCESS, "run");
  }
  expect(workspace.intact(), "the workspace is as large as it says");
  expect(lt_host::products == 1, "the library was called once");
  expect(lt_host::last_epilogue == q.expected, "with the epilogue expected");
  const bool tf32 = std::is_same_v<T, float> && q.precision == Precision::tf32;
  expect(lt_host::last_compute == (std::is_same_v<T, double> ? CUBLAS_COMPUTE_64F
                                   : tf32                    ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                             : CUBLAS_COMPUTE_32F),
         "and the arithmetic");

  const Reference r = reference(x, g);
  const double tolerance = std::max(4 * kEpsilon<T>, 1e-15), floor = std::sqrt(double(q.K)) + 1;
  std::string bits;
  if (g.c) compare(c, r.c, q.N, ld, tolerance, floor, "c"), bits += bytes_of(c);
  if (g.activated) {
    compare(activated, r.activated, q.N, ld, tolerance, floor, "activated");
    bits += bytes_of(activated);
  }
  if (q.sum) {
    expect_close(sum, r.column_sum, tolerance, floor * std::sqrt(double(q.M)), "column_sum");
    bits += bytes_of(sum);
  }
  if (q.row_sum) {
    std::vector<double> expected(q.M);
    for (int64_t m = 0; m < q.M; ++m) {
      for (int64_t k = 0; k < q.K; ++k) expected[m] += value_of(x.a_at(m, k));
    }
    expect_close(row_sum, expected, tolerance, floor, "row_sum");
    bits += bytes_of(row_sum);
  }
  return bits;
}

template <class T>
void run_product(const Problem& q) {
  run_case(
      text("%s-%s-M%d_N%d_K%d-%s-%s%s%s%s%s%s-pad%d-offset%d", kName<T>, q.layout, int(q.M),
           int(q.N), int(q.K), kActivationNames[int(q.activation)], q.bias ? "-bias" : "",
           q.both ? "-both" : "", q.only_activated ? "-activated" : "", q.saved ? "-saved" : "",
           q.sum ? "-sum" : "", q.row_sum ? "-row-sum" : "", q.pad, q.offset),
      [&] { return product<T>(q); });
}

template <class T>
void layouts() {
  for (const char* layout : {"NT", "NN", "TN", "TT"}) {
    run_product<T>({.M = 9, .N = 21, .K = 13, .layout = layout});
    run_product<T>({.M = 8, .N = 16, .K = 24, .layout = layout, .pad = 8});
    run_product<T>({.M = 7, .N = 5, .K = 3, .layout = layout, .pad = 3, .offset = 1});
    run_product<T>({.M = 1, .N = 5, .K = 3, .layout = layout});
    run_product<T>({.M = 5, .N = 1, .K = 3, .layout = layout, .pad = 1});
    run_product<T>({.M = 5, .N = 4, .K = 1, .layout = layout});
    run_product<T>({.M = 1, .N = 1, .K = 1, .layout = layout});
  }
}

template <class T>
void forward_passes() {
  for (int a = 0; a < kActivationCount; ++a) {
    Problem q{.M = 6, .N = 16, .K = 5, .activation = Activation(a)};
    q.pad = a % 3 * 4;
    run_product<T>(q);
    q.both = true;
    run_product<T>(q);
    q.bias = true, q.expected = CUBLASLT_EPILOGUE_BIAS;
    run_product<T>(q);
    q.both = false;
    run_product<T>(q);
    q.only_activated = true;
    run_product<T>(q);
  }
}

template <class T>
void backward_passes() {
  for (int a = 0; a < kActivationCount; ++a) {
    Problem q{.M = 40, .N = 24, .K = 5, .layout = "NN", .activation = Activation(a), .saved = true};
    const bool relu = q.activation == Activation::relu;
    for (const bool sum : {false, true}) {
      q.sum = sum;
      if (relu) q.expected = sum ? CUBLASLT_EPILOGUE_DRELU_BGRAD : CUBLASLT_EPILOGUE_DRELU;
      run_product<T>(q);
    }
  }
  // Rows of the mask that end inside a byte, and behind a multiple of 128 bits.
  for (const int N : {1, 7, 127, 128, 129, 300}) {
    run_product<T>({.M = 11,
                    .N = N,
                    .K = 4,
                    .layout = "NN",
                    .activation = Activation::relu,
                    .saved = true,
                    .sum = true,
                    .pad = N % 3,
                    .offset = N % 2,
                    .expected = CUBLASLT_EPILOGUE_DRELU_BGRAD});
  }
  // What the library lacks follows behind its product: for K = 1, and where it has no such
  // epilogue.
  Problem q{
      .M = 11, .N = 24, .K = 1, .layout = "NN", .activation = Activation::relu, .saved = true};
  run_product<T>(q);
  q.sum = true;
  run_product<T>(q);
  lt_host::lacking = CUBLASLT_EPILOGUE_DRELU_BGRAD, q.K = 6;
  run_product<T>(q);
  lt_host::lacking = cublasLtEpilogue_t(0);
  run_product<T>({.M = 300, .N = 10, .K = 4, .layout = "NN", .sum = true});
}

template <class T>
void weight_gradients() {
  for (const char* layout : {"TN", "NN"}) {
    Problem q{.M = 12, .N = 9, .K = 30, .layout = layout, .row_sum = true};
    q.expected = CUBLASLT_EPILOGUE_BGRADB;
    run_product<T>(q);
  }
}

template <class Change>
void refuses(const char* name, Change change) {
  run_case(text("refused-%s", name), [&] {
    Operands<float> x(4, 4, 4, "NT", 0, 0);
    Buffer<float> c(16), vector(8);
    GemmArgs<float> g = x.args();
    g.c = c.data(), g.ldc = 4;
    float* row_sum = nullptr;
    change(g, vector.data(), row_sum);
    LtGemm<float> planned;
    expect(!lt_gemm_plan(g, row_sum, Precision::full, kH100, library(), planned), "refused");
    return bytes_of(c);
  });
}

void refused() {
  using G = GemmArgs<float>;
  refuses("no-k", [](G& g, float*, float*&) { g.K = 0; });
  refuses("no-rows", [](G& g, float*, float*&) { g.M = 0; });
  refuses("rows-that-overlap", [](G& g, float*, float*&) { g.a_row = 2; });
  refuses("no-unit-stride", [](G& g, float*, float*&) { g.b_row = 2, g.b_col = 2; });
  refuses("bias-in-the-middle", [](G& g, float* v, float*&) { g.bias = v + 1; });
  refuses("bias-and-sum", [](G& g, float* v, float*&) { g.bias = v, g.column_sum = v; });
  refuses("two-sums", [](G& g, float* v, float*& row_sum) { g.column_sum = v, row_sum = v + 4; });
  // It would be written over before it is read.
  refuses("saved-in-c", [](G& g, float*, float*&) {
    g.saved = g.c, g.ld_saved = 4, g.activation = Activation::tanh;
  });
  refuses("row-sum-of-one", [](G& g, float* v, float*& row_sum) { g.M = 1, row_sum = v; });
  run_case("refused-without-a-library", [] {
    Operands<float> x(4, 4, 4, "NT", 0, 0);
    Buffer<float> c(16);
    GemmArgs<float> g = x.args();
    g.c = c.data(), g.ldc = 4;
    LtGemm<float> planned;
    expect(!lt_gemm_plan<float>(g, nullptr, Precision::full, kH100, {}, planned), "refused");
    return bytes_of(c);
  });
}

// A refusal at the call is remembered, and nothing is written; a failure is told, and is none.
void refused_at_the_call() {
  run_case("refused-at-the-call", [] {
    static int depth = 200;
    for (const cublasStatus_t status :
         {CUBLAS_STATUS_EXECUTION_FAILED, CUBLAS_STATUS_NOT_SUPPORTED}) {
      ++depth;
      Operands<float> x(4, 4, depth, "NT", 0, 0);
      Buffer<float> c(16);
      GemmArgs<float> g = x.args();
      g.c = c.data(), g.ldc = 4, g.activation = Activation::relu;
      const auto plan = [&](LtGemm<float>& planned) {
        return lt_gemm_plan<float>(g, nullptr, Precision::full, kH100, library(), planned);
      };
      LtGemm<float> planned, again;
      expect(plan(planned), "the library has it");
      Buffer<unsigned char> workspace(planned.workspace());
      lt_host::ending = status;
      const LtResult result = lt_gemm(planned, kH100, library(), workspace.data(), nullptr);
      expect(result.status == status && result.error == cudaSuccess, "the status is handed on");
      const bool refused = status == CUBLAS_STATUS_NOT_SUPPORTED;
      expect(result.refused() == refused && plan(again) != refused, "a refusal is remembered");
      for (int i = 0; i < 16; ++i) expect(std::isnan(c.at(i)), "nothing is written");
    }
    return std::string();
  });
}

// The heuristic is asked once a problem; another alignment is another problem.
void plans_are_kept() {
  run_case("plans-are-kept", [] {
    static int depth = 100;  // a problem that no schedule before has asked
    ++depth;
    Operands<float> x(4, 4, depth, "NT", 0, 0), shifted(4, 4, depth, "NT", 0, 1);
    Buffer<float> c(16);
    const auto ask = [&](Operands<float>& operands) {
      GemmArgs<float> g = operands.args();
      g.c = c.data(), g.ldc = 4;
      LtGemm<float> planned;
      const int before = lt_host::questions;
      lt_gemm_plan<float>(g, nullptr, Precision::full, kH100, library(), planned);
      return lt_host::questions - before;
    };
    expect(ask(x) == 1 && ask(x) == 0, "asked once");
    expect(ask(shifted) == 1 && ask(shifted) == 0 && ask(x) == 0, "once for each alignment");
    return std::string();
  });
}

// What the cost model must not get wrong, whatever its rates become.
constexpr GemmKind kHalf{2, 1}, kTf32{4, 1};
constexpr bool faster(GemmKind kind, int64_t M, int64_t N, int64_t K, int passes = 0) {
  return library_is_faster(kH100, kind, M, N, K, {passes, 2.0 * double(M) * double(N) * passes},
                           {});
}
static_assert(faster(kHalf, 8192, 8192, 8192, 1) && faster(kTf32, 8192, 8192, 8192, 1), "large");
static_assert(faster(kHalf, 4096, 1024, 1024), "a wide layer at a large batch");
static_assert(!faster(kHalf, 256, 256, 256) && !faster(kTf32, 512, 64, 64), "small ones are ours");
static_assert(!faster(kHalf, 65536, 128, 64, 3), "passes over a large matrix cost more");

}  // namespace
}  // namespace mlp_ext::cuda

int main() {
  using namespace mlp_ext::cuda;
  using mlp_ext::BFloat16;
  using mlp_ext::Float16;
  refused();
  refused_at_the_call();
  plans_are_kept();
  layouts<float>(), layouts<double>(), layouts<BFloat16>();
  forward_passes<float>(), forward_passes<double>(), forward_passes<Float16>();
  backward_passes<float>(), backward_passes<double>(), backward_passes<BFloat16>();
  weight_gradients<float>(), weight_gradients<double>(), weight_gradients<BFloat16>();
  run_product<float>({.M = 9, .N = 21, .K = 13, .precision = Precision::tf32});
  return finish();
}
