// Matrix products with their epilogues: layouts, tiles, tails, split K, precision, what is not
// finite; every case against float64.
#include "../../csrc/cuda/gemm_bf16.cu"
#include "../../csrc/cuda/gemm_epilogue.cuh"
#include "../../csrc/cuda/gemm_f16.cu"
#include "../../csrc/cuda/gemm_f32.cu"
#include "../../csrc/cuda/gemm_kernel.cuh"
#include "../../csrc/cuda/gemm_reduce.cuh"
#include "../../csrc/cuda/gemm_tf32.cu"
#include "check.h"
#include "gemm_reference.h"

namespace mlp_ext::cuda {
namespace {

using namespace check;

enum class Epilogue { none, bias, both, only_activated, backward, backward_sum, forward_sum };

struct Problem {
  int64_t M, N, K;
  const char* layout;  // of A and B: N where consecutive elements lie along K of A, N of B
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
  const auto matrix = [&] { return Buffer<T>(std::max<int64_t>(0, (q.M - 1) * ld + q.N), q.offset); };
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
  expect(gemm(g, q.precision, kH100, bytes > 0 ? workspace.data() : nullptr, nullptr) ==
             cudaSuccess,
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

template <class T>
void run_product(const char* type, const char* plan, const Problem& q) {
  setenv("MLP_EXT_FORCE", plan, 1);
  run_case(text("%s-%s-%s-M%d_N%d_K%d-%s-%s-pad%d-offset%d%s", type, plan, q.layout, int(q.M),
                int(q.N), int(q.K), text_of(q.epilogue), kActivationNames[int(q.activation)], q.pad,
                q.offset, q.precision == Precision::tf32 ? "-tf32" : ""),
           [&] { return product<T>(q); });
  unsetenv("MLP_EXT_FORCE");
}

// Every layout, tile and type, at sizes that end inside tiles, packs and stages.
template <class T>
void layouts(const char* type, Precision precision, double tolerance) {
  for (const char* layout : {"NT", "NN", "TN", "TT"}) {
    for (const char* plan : {"64x64,1", "128x32,2", "32x128,1", "128x128,1"}) {
      if (plan[2] != 'x' || layout[0] == 'T') {
        if (layout[0] == 'T' && layout[1] == 'T' && plan[0] != '6') continue;
      }
      const bool odd = plan[0] == '3' || plan[0] == '6';
      run_product<T>(type, plan,
                     {odd ? 37 : 136, odd ? 136 : 37, odd ? 75 : 40, layout, Epilogue::none,
                      Activation::none, odd ? 0 : 4, 0, precision, tolerance});
      if (plan[0] == '1') continue;
      run_product<T>(type, plan,
                     {33, 40, 72, layout, Epilogue::none, Activation::none, 0, 0, precision,
                      tolerance});
    }
  }
}

}  // namespace
}  // namespace mlp_ext::cuda

int main() {
  using namespace mlp_ext::cuda;
  layouts<float>("f32", Precision::full, 0);
  layouts<float>("f32", Precision::tf32, 4e-3);
  layouts<mlp_ext::BFloat16>("bf16", Precision::full, 0);
  layouts<mlp_ext::Float16>("f16", Precision::full, 0);
  return finish();
}
