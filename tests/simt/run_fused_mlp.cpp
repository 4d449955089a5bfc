// The fused MLP: widths, depths, rows, types, leading dimensions, activations, and what does not
// fit in shared memory at once.
#include "../../csrc/cuda/fused_mlp/fused_mlp_backward.cu"
#include "../../csrc/cuda/fused_mlp/fused_mlp_forward.cu"
#include "../../csrc/cuda/fused_mlp/fused_mlp_reduce.cuh"
#include "fused_mlp_case.h"

namespace {

using namespace check;
using namespace mlp_ext::cuda;

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

// From end to end, against float64 all the way. PyTorch's own float32 errors on such stacks (the
// CPU's, mean of 20 seeds) are in the columns; twice those are allowed.
struct Accuracy {
  int64_t width;
  int layers;
  int64_t rows;
  double y, dx, dw, db;
};
constexpr Accuracy kAccuracy[] = {
    {16, 4, 100, 1.4e-7, 1.2e-7, 2.0e-7, 1.4e-7},
    {32, 4, 100, 1.6e-7, 1.7e-7, 2.3e-7, 1.7e-7},
    {64, 2, 64, 1.8e-7, 1.8e-7, 1.8e-7, 1.7e-7},
    {128, 2, 16, 2.5e-7, 2.5e-7, 2.2e-7, 2.2e-7},
};

std::string end_to_end(const Accuracy& a) {
  Stack stack = uniform(a.width, a.width, a.width, a.layers, a.rows);
  stack.device.multiprocessors = 2;
  FusedCase<float> c(stack, Precision::full);
  c.run_forward();
  std::vector<Values> inputs, saved;
  Values value = c.dense(c.x, stack.rows, a.width);
  for (int l = 0; l < stack.layers(); ++l) {
    inputs.push_back(value);
    value = c.activated(l, c.pre_activation(l, value));
    saved.push_back(value);
  }
  c.run_backward();
  const auto g = c.gradients(inputs, saved);
  const auto within = [](double error, double of_torch, const char* what) {
    if (!(error <= 2 * of_torch)) fail("%s: error %.3g, PyTorch's %.3g", what, error, of_torch);
  };
  within(relative_error(c.y.back(), value), a.y, "y");
  within(relative_error(c.dx, g.dx), a.dx, "dx");
  for (int l = 0; l < stack.layers(); ++l) {
    within(relative_error(c.dw[l], g.dw[l]), a.dw, "dw");
    within(relative_error(c.db[l], g.db[l]), a.db, "db");
  }
  return bytes_of(c.dx);
}

// Forward alone, in shared memory that holds `slots` layers' weights; nothing is saved but y.
template <class T>
std::string streamed(Stack stack, int slots) {
  const int width = fused_padded_width(stack.widths.data(), stack.layers());
  stack.device.most_shared = sizeof(float) * width * stack.layers() +
                             slots * sizeof(T) * width * fused_weight_stride<T>(width);
  FusedCase<T> c(stack, Precision::full);
  c.run_forward(/*save=*/false);
  Values value = c.dense(c.x, stack.rows, stack.widths[0]);
  for (int l = 0; l < stack.layers(); ++l) {
    value = c.activated(l, c.pre_activation(l, value));
    for (double& element : value) element = c.as_stored(element);
  }
  c.expect_matrix(c.y.back(), value, stack.widths.back(),
                  stack.layers() * tolerance<T>(Precision::full), "y");
  return bytes_of(c.y.back());
}

// What is not asked for is not touched; what is, is the same.
template <class T>
std::string in_part(const Stack& stack) {
  FusedCase<T> all(stack, Precision::full), part(stack, Precision::full);
  all.run_forward(), part.run_forward();
  all.run_backward();
  const auto untouched = [](const Buffer<T>& b) {
    for (size_t i = 0; i < b.size(); ++i) {
      if (!std::isnan(b.at(i))) return false;
    }
    return b.intact();
  };
  for (int wanted = 0; wanted < 8; ++wanted) {
    const bool dx = wanted & 1, dw = wanted & 2, db = wanted & 4;
    for (auto* list : {&part.dw, &part.db}) {
      for (auto& b : *list) b.poison();
    }
    part.dx.poison();
    part.run_backward(dx, dw, db);
    expect(dx ? part.dx.same_bits(all.dx) : untouched(part.dx), "dx in part");
    for (int l = 0; l < stack.layers(); ++l) {
      expect(dw ? part.dw[l].same_bits(all.dw[l]) : untouched(part.dw[l]), "dw in part");
      expect(db ? part.db[l].same_bits(all.db[l]) : untouched(part.db[l]), "db in part");
    }
  }
  // One layer's weight frozen: the layer below has what its derivative reads from elsewhere.
  auto args = part.backward_args(true, true, true);
  for (int l = 0; l < stack.layers(); ++l) part.dw[l].poison();
  args.layer[1].dw = nullptr;
  Buffer<float> workspace(fused_mlp_backward_workspace(args, stack.device) / sizeof(float));
  expect(fused_mlp_backward(args, Precision::full, stack.device, workspace.data(), nullptr) ==
             cudaSuccess,
         "launches");
  expect(untouched(part.dw[1]) && part.dw[0].same_bits(all.dw[0]) && part.dx.same_bits(all.dx),
         "a frozen weight");
  return bytes_of(part.dx);
}

// Infinity and NaN go where float64 arithmetic takes them, and nowhere else.
template <class T>
std::string not_finite(const Stack& stack, Precision precision, bool in_weights) {
  FusedCase<T> c(stack, precision);
  const double inf = std::numeric_limits<double>::infinity();
  if (in_weights) {
    c.w[0][3] = rounded<T>(inf);
    c.w[1][c.ld(stack.widths[1]) * 2 + 1] = rounded<T>(NAN);
  } else {
    // Weights of one sign, so that infinity stays infinity from layer to layer.
    for (auto& w : c.w) {
      for (size_t i = 0; i < w.size(); ++i) w[i] = rounded<T>(std::fabs(w.at(i)));
    }
    c.x[1] = rounded<T>(inf), c.x[2 * c.ld(stack.widths[0])] = rounded<T>(-inf);
    c.x[5 * c.ld(stack.widths[0]) + 2] = rounded<T>(NAN);
    c.dy[3] = rounded<T>(inf), c.dy[9 * c.ld(stack.widths.back())] = rounded<T>(-inf);
    c.dy[11 * c.ld(stack.widths.back()) + 1] = rounded<T>(NAN);
  }
  c.run_forward();
  std::vector<Values> inputs, saved;
  const double most = tolerance<T>(precision);
  for (int l = 0; l < stack.layers(); ++l) {
    const int64_t out = stack.widths[l + 1];
    inputs.push_back(c.dense(c.input(l), stack.rows, stack.widths[l]));
    c.expect_matrix(c.y[l], c.activated(l, c.pre_activation(l, inputs[l])), out, 2 * most, "y");
    saved.push_back(c.dense(c.saved(l), stack.rows, out));
  }
  c.run_backward();
  const auto g = c.gradients(inputs, saved);
  c.expect_matrix(c.dx, g.dx, stack.widths[0], 3 * most, "dx");
  for (int l = 0; l < stack.layers(); ++l) {
    expect_close(c.dw[l], g.dw[l], 3 * most, root_mean_square(g.dw[l]) + 1e-30, "dw");
    expect_close(c.db[l], g.db[l], 3 * most, root_mean_square(g.db[l]) + 1e-30, "db");
  }
  return bytes_of(c.y.back());
}

std::string limits() {
  const Stack none = uniform(16, 16, 16, 2, 0);
  FusedCase<float> empty(none, Precision::full);
  empty.run_forward();
  empty.run_backward();
  for (int l = 0; l < 2; ++l) {
    for (size_t i = 0; i < empty.dw[l].size(); ++i) expect(empty.dw[l][i] == 0, "dw of no rows");
    for (size_t i = 0; i < empty.db[l].size(); ++i) expect(empty.db[l][i] == 0, "db of no rows");
  }
  const int64_t wide[] = {3, 129, 4}, nothing[] = {0, 16, 16}, narrow[] = {3, 128, 4};
  expect(!fused_mlp_forward_fits<float>(wide, 2, kH100), "129 columns do not fit");
  expect(!fused_mlp_backward_fits<float>(nothing, 2, kH100), "no columns do not fit");
  expect(fused_mlp_forward_fits<float>(narrow, 2, {120, 170, 99 << 10}), "128 on 99 kB, forward");
  expect(!fused_mlp_backward_fits<float>(narrow, 2, {120, 170, 99 << 10}), "128 on 99 kB, back");
  expect(fused_mlp_backward_fits<BFloat16>(narrow, 2, {120, 170, 99 << 10}), "bf16 on 99 kB");
  expect(fused_mlp_backward_fits<float>(narrow, 2, kA100), "128 on an A100");
  expect(!fused_mlp_forward_fits<float>(narrow, 2, {75, 40, 64 << 10}), "no tf32 before 8.0");
  const Stack too_wide = uniform(129, 16, 16, 1, 1);
  FusedCase<float> c(too_wide, Precision::full);
  expect(fused_mlp_forward(c.forward_args(true), Precision::full, kH100, nullptr) != cudaSuccess,
         "forward refuses");
  expect(fused_mlp_backward(c.backward_args(true, true, true), Precision::full, kH100, nullptr,
                            nullptr) != cudaSuccess,
         "backward refuses");
  return {};
}

Stack on(Stack stack, int multiprocessors) {
  stack.device.multiprocessors = multiprocessors;
  return stack;
}
Stack with_pad(Stack stack, int pad) {
  stack.pad = pad;
  return stack;
}

}  // namespace

int main() {
  if (kUnderThreadSanitizer) {
    // Each barrier once: weights through one slot and two, gradients of two groups of rows.
    for (const int slots : {1, 2}) {
      run_case(text("streamed-through-%d", slots),
               [&] { return streamed<float>(on(uniform(5, 16, 7, 3, 260), 1), slots); });
    }
    run_case("looping",
             [] { return both_ways<BFloat16>(on(uniform(5, 16, 7, 2, 130), 1), Precision::full); });
    return finish();
  }
  // Widths: of a template, odd, narrower than a k-group; rows on both sides of a warp's 16.
  every_type(uniform(16, 16, 16, 1, 16));
  every_type(uniform(3, 17, 4, 3, 17));
  for (const int slots : {1, 2}) {
    const Stack stack = on(uniform(5, 16, 7, 4, 150), 1);
    const std::string what = text("streamed-through-%d", slots);
    run_case(what + "-full", [&] { return streamed<float>(stack, slots); });
    run_case(what + "-bf16", [&] { return streamed<BFloat16>(stack, slots); });
  }
  // Blocks that come by several groups of rows, and have several partial sums.
  every_type(on(uniform(16, 16, 16, 2, 300), 1), "-looping");
  for (const bool in_weights : {false, true}) {
    const Stack stack = uniform(18, 24, 5, 3, 20);
    const std::string what = in_weights ? "not-finite-weights" : "not-finite-rows";
    run_case(what + "-full", [&] { return not_finite<float>(stack, Precision::full, in_weights); });
    run_case(what + "-tf32", [&] { return not_finite<float>(stack, Precision::tf32, in_weights); });
    run_case(what + "-bf16",
             [&] { return not_finite<BFloat16>(stack, Precision::full, in_weights); });
  }
  run_case("limits", limits);
  for (const Accuracy& a : kAccuracy) {
    run_case(text("accuracy-%lld", static_cast<long long>(a.width)), [&] { return end_to_end(a); });
  }
  every_type(uniform(1, 16, 1, 2, 1));
  every_type(uniform(24, 32, 24, 2, 100));
  every_type(uniform(64, 64, 64, 1, 15));
  every_type(uniform(100, 40, 10, 2, 16));
  every_type(uniform(128, 128, 128, 1, 16));
  every_type(uniform(16, 16, 16, 8, 33));
  every_type(on(uniform(17, 32, 9, 2, 150), 1), "-looping");
  run_case("full-eight-warps-of-128",
           [] { return both_ways<float>(on(uniform(100, 16, 5, 2, 130), 1), Precision::full); });
  // Rows that no vector access fits, and some that a narrower one does.
  every_type(with_pad(uniform(17, 24, 5, 3, 33), 1), "-ld+1");
  every_type(with_pad(uniform(16, 32, 6, 2, 20), 2), "-ld+2");
  for (int i = 0; i < mlp_ext::kActivationCount; ++i) {
    Stack stack = uniform(20, 40, 20, 2, 20, static_cast<Activation>(i));
    stack.activations.back() = static_cast<Activation>(i);
    stack.bias = i % 2 == 0;
    const std::string what = mlp_ext::kActivationNames[i];
    run_case("full-" + what, [&] { return both_ways<float>(stack, Precision::full); });
    run_case("bf16-" + what, [&] { return both_ways<BFloat16>(stack, Precision::full); });
  }
  run_case("in-part-full", [] { return in_part<float>(uniform(9, 16, 5, 3, 20)); });
  run_case("in-part-f16", [] { return in_part<Float16>(uniform(9, 16, 5, 3, 20)); });
  return finish();
}
