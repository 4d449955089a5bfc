// The fused MLP: widths, depths, rows, types, leading dimensions, activations, and what does not
// fit in shared memory at once.
#include "../../csrc/cuda/fused_mlp_backward.cu"
#include "../../csrc/cuda/fused_mlp_forward.cu"
#include "../../csrc/cuda/fused_mlp_reduce.cuh"
#include "fused_mlp_case.h"

namespace {

using namespace check;

// Allowed |error| / (|expected| + root mean square) of one layer, and of gradients, which pass
// through several.
template <class T>
double tolerance(Precision precision) {
  if (sizeof(T) == 2) return 1.1 * kEpsilon<T>;
  return precision == Precision::full ? 6e-7 : 4e-3;
}

// Each layer's z and y from the input that the kernel gave it, and its gradients from what it
// saved: errors do not pile up from layer to layer, so they can be held tightly.
template <class T>
std::string both_ways(const Stack& stack, Precision precision) {
  FusedCase<T> c(stack, precision);
  c.run_forward();
  const double most = tolerance<T>(precision);
  std::vector<Values> inputs, saved;
  for (int l = 0; l < stack.layers(); ++l) {
    const int64_t in = stack.widths[l], out = stack.widths[l + 1];
    inputs.push_back(c.dense(c.input(l), stack.rows, in));
    const Values z = c.pre_activation(l, inputs[l]);
    if (c.keeps_z(l)) c.expect_matrix(c.z[l], z, out, most, "z");
    const Values from = c.keeps_z(l) ? c.dense(c.z[l], stack.rows, out) : z;
    c.expect_matrix(c.y[l], c.activated(l, from), out, 2 * most, "y");
    saved.push_back(c.dense(c.saved(l), stack.rows, out));
  }
  c.run_backward();
  const auto g = c.gradients(inputs, saved);
  std::string bytes = bytes_of(c.dx) + bytes_of(c.y.back());
  c.expect_matrix(c.dx, g.dx, stack.widths[0], 3 * most, "dx");
  for (int l = 0; l < stack.layers(); ++l) {
    expect_close(c.dw[l], g.dw[l], 3 * most, root_mean_square(g.dw[l]) + 1e-30, "dw");
    expect_close(c.db[l], g.db[l], 3 * most, root_mean_square(g.db[l]) + 1e-30, "db");
    bytes += bytes_of(c.dw[l]) + bytes_of(c.db[l]);
  }
  return bytes;
}

std::string name_of(const Stack& stack, const char* type) {
  std::string name = type;
  for (const int64_t width : stack.widths) name += "_" + std::to_string(width);
  return name + text("-M%lld", static_cast<long long>(stack.rows));
}

void every_type(const Stack& stack, const std::string& what = "") {
  run_case(name_of(stack, "full") + what, [&] { return both_ways<float>(stack, Precision::full); });
  run_case(name_of(stack, "tf32") + what, [&] { return both_ways<float>(stack, Precision::tf32); });
  run_case(name_of(stack, "bf16") + what,
           [&] { return both_ways<BFloat16>(stack, Precision::full); });
  run_case(name_of(stack, "f16") + what,
           [&] { return both_ways<Float16>(stack, Precision::full); });
}

}  // namespace

int main() {
  every_type(uniform(16, 16, 16, 1, 16));
  every_type(uniform(3, 16, 4, 3, 17));
  every_type(uniform(32, 32, 32, 2, 100));
  every_type(uniform(64, 64, 64, 2, 15));
  every_type(uniform(128, 128, 128, 1, 16));
  return finish();
}
