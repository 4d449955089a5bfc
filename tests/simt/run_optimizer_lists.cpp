// Multi-tensor optimizer steps, what does not depend on the rule: lists of no to many tensors, what
// GradScaler gives, NaN and infinities. Two rules only, so that it compiles fast.
#include "../../csrc/cuda/optimizers/optimizers_launch.cuh"
#include "optimizer_parameters.h"

namespace mlp_ext::cuda {
namespace {

void special_values() {
  auto adam = with_betas(with<AdamArgs>(0.03125, 0, false), 0.9, 0.999, 1e-8);
  adam.amsgrad = true;
  const auto adamax = with_betas(with<AdamaxArgs>(0.03125, 0, false), 0.9, 0.999, 1e-8);
  for (const double value : {double(NAN), double(INFINITY), double(-INFINITY)}) {
    How how;
    how.special = value;
    run_case(text("adam-%g", value), [&] { return run<AdamArgs, float, float>(adam, how); });
    run_case(text("adam-f16-%g", value), [&] { return run<AdamArgs, Float16, float>(adam, how); });
    run_case(text("adamax-%g", value), [&] { return run<AdamaxArgs, float, float>(adamax, how); });
  }
}

// More tensors than a launch takes.
void many() {
  const auto adam = with_betas(with<AdamArgs>(0.03125, 0.1, false), 0.9, 0.999, 1e-8);
  for (const int count : {kMostTensors - 1, kMostTensors, kMostTensors + 1, 2 * kMostTensors + 3}) {
    for (const bool on_device : {false, true}) {
      How how;
      how.on_device = on_device;
      how.sizes.clear();
      for (int i = 0; i < count; ++i) how.sizes.push_back(i % 9 == 4 ? 0 : 1 + i % 7);
      if (count > kMostTensors) how.sizes.back() = 2500;
      run_case(text("%d-tensors-%d", count, on_device),
               [&] { return run<AdamArgs, float, float>(adam, how); });
    }
  }
  How none;
  none.sizes = {0, 0};
  run_case("empty", [&] { return run<AdamArgs, float, float>(adam, none); });
  none.sizes.clear();
  run_case("no-tensors", [&] { return run<AdamArgs, float, float>(adam, none); });
}

// What GradScaler gives: a scale to divide by, and whether to leave everything as it is.
template <class S, class W>
std::string scaled(float found_inf) {
  const auto adam = with_betas(with<AdamArgs>(0.03125, 0.1, true), 0.9, 0.999, 1e-8);
  Parameter<S, W> p(adam, 8, 2051, 3, 0, 0);
  const Parameter<S, W> before(adam, 8, 2051, 3, 0, 0);
  Buffer<float> scale(1), found(1), step(1);
  Buffer<double> workspace(optimizer_workspace(1) / sizeof(double));
  scale[0] = 64, found[0] = found_inf, step[0] = 7;
  for (size_t i = 0; i < p.grad.size(); ++i) p.grad[i] = rounded<S>(p.grad.at(i) * 64);
  const Buffer<S> scaled_grad = p.grad.copy();
  const StepTensor tensor = p.tensor();
  const StepCounters counters{step.data(), nullptr, false, false};
  const auto error = optimizer_step_on_device<AdamArgs, S, W>(adam, &tensor, &counters, 1, {},
                                                              {scale.data(), found.data()},
                                                              workspace.data(), kSmall, nullptr);
  expect(error == cudaSuccess, "launched");
  if (found_inf != 0) {
    expect(step[0] == 7 && p.bytes() == before.bytes() && p.grad.same_bits(scaled_grad),
           "left alone");
  } else {
    p.check();
    expect(step[0] == 8 && p.grad.same_bits(before.grad), "counted, and the gradient unscaled");
  }
  return p.bytes();
}

void scaling() {
  for (const float found_inf : {0.0f, 1.0f, 2.0f}) {
    run_case(text("scaled-f32-%g", found_inf), [=] { return scaled<float, float>(found_inf); });
    run_case(text("scaled-f16-%g", found_inf), [=] { return scaled<Float16, float>(found_inf); });
    run_case(text("scaled-f64-%g", found_inf), [=] { return scaled<double, double>(found_inf); });
  }
}

void chunks() {
  run_case("chunks", [] {
    expect(even_chunk(0, 132) == kChunkUnit && even_chunk(1, 132) == kChunkUnit, "at least a unit");
    expect(even_chunk(1'000'000, 132) == 2048, "a million parameters on an H100");
    expect(even_chunk(int64_t{1} << 33, 132) % kChunkUnit == 0, "aligned");
    return std::string();
  });
}

}  // namespace
}  // namespace mlp_ext::cuda

int main() {
  using namespace mlp_ext::cuda;
  special_values(), many(), scaling(), chunks();
  return finish();
}
