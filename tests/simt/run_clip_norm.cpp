// The 2-norm of a list of tensors, and their scaling to at most max_norm.
#include "../../csrc/cuda/optimizers/clip_norm.cu"
#include "check.h"

namespace mlp_ext::cuda {
namespace {

using namespace check;

constexpr DeviceInfo kSmall{80, 2, 163 << 10};

struct Case {
  std::vector<int64_t> sizes;
  double max_norm = 0.5, scale = 1, special = 0;
  const DeviceInfo* device = &kSmall;
};

template <class T>
std::string run(const Case& how) {
  std::vector<Buffer<T>> grads;
  std::vector<FlatTensor> tensors;
  long double exact = 0;
  std::vector<std::vector<double>> expected;
  for (size_t i = 0; i < how.sizes.size(); ++i) {
    grads.push_back(normal<T>(how.sizes[i], unsigned(5 + i), how.scale, i % 3 == 2 ? 1 : 0));
    if (how.special != 0 && i == 1) grads[i][how.sizes[i] / 2] = T(how.special);
    expected.emplace_back();
    for (int64_t j = 0; j < how.sizes[i]; ++j) {
      expected[i].push_back(grads[i].at(j));
      exact += static_cast<long double>(grads[i].at(j)) * grads[i].at(j);
    }
  }
  for (auto& g : grads) tensors.push_back({g.data(), static_cast<int64_t>(g.size())});
  const double root = static_cast<double>(std::sqrt(exact));
  const std::vector<Buffer<T>> before = [&] {
    std::vector<Buffer<T>> copies;
    for (auto& g : grads) copies.push_back(g.copy());
    return copies;
  }();
  const int64_t count = tensors.size();
  Buffer<T> norm(1);
  Buffer<double> workspace(clip_norm_workspace(tensors.data(), count, *how.device) /
                           sizeof(double));
  expect(clip_norm<T>(tensors.data(), count, how.max_norm, norm.data(), workspace.data(),
                      *how.device, nullptr) == cudaSuccess,
         "launched");
  if (!workspace.intact()) fail("a write outside of the workspace");
  expect_close(norm, {root}, 4 * kEpsilon<T>, 0, "norm");
  const double factor = how.max_norm / (root + 1e-6);
  std::string bytes = bytes_of(norm);
  for (int64_t i = 0; i < count; ++i) {
    if (factor >= 1) expect(grads[i].same_bits(before[i]), "left alone");
    for (double& value : expected[i]) value *= factor >= 1 ? 1 : factor;
    expect_close(grads[i], expected[i], 8 * kEpsilon<T>, 0, "grad");
    bytes += bytes_of(grads[i]);
  }
  return bytes;
}

void run_both(const std::string& name, const Case& how) {
  run_case(name + "-f32", [&] { return run<float>(how); });
  run_case(name + "-f64", [&] { return run<double>(how); });
}

}  // namespace
}  // namespace mlp_ext::cuda

int main() {
  using namespace mlp_ext::cuda;
  for (const int64_t n : {1, 2, 3, 4, 5, 31, 255, 1023, 1024, 1025, 4097}) {
    run_both(text("N%d", int(n)), {{n}});
  }
  const std::vector<int64_t> some = {5, 1030, 1, 0, 3071, 2048, 33};
  for (const double max_norm : {0.0, 1e-3, 1.0, 1e6, -1.0, double(INFINITY), double(NAN)}) {
    run_both(text("max%g", max_norm), {some, max_norm});
  }
  for (const double value : {double(NAN), double(INFINITY), double(-INFINITY)}) {
    run_both(text("has%g", value), {some, 0.5, 1, value});
  }
  run_case("squares-beyond-float32", [&] { return run<float>({some, 0.5, 1e30}); });
  run_case("squares-below-float32", [&] { return run<float>({some, 0.5, 1e-30}); });
  run_both("on-132-multiprocessors", {some, 0.5, 1, 0, &kH100});
  std::vector<int64_t> many;
  for (int i = 0; i < 2 * kMostTensors + 5; ++i) many.push_back(i % 9 == 4 ? 0 : 1 + i % 50);
  run_case("more-than-a-launch-holds", [&] { return run<float>({many}); });
  many.assign(kMostTensors, 0);
  many.push_back(7);
  run_both("a-launch-of-nothing", {many});
  // More blocks than a block has threads.
  many.assign(kMultiTensorThreads + 3, 1);
  run_case("many-partial-sums", [&] { return run<float>({many}); });
  return finish();
}
