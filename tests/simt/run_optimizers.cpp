// Multi-tensor optimizer steps: every rule, its options, every storage type, counters and learning
// rate from the host and on the device, lists of one to many tensors.
#include "../../csrc/cuda/optimizers.cu"
#include "optimizer_parameters.h"

namespace mlp_ext::cuda {
namespace {

// Few multiprocessors: chunks as long as on a GPU with a model of millions of parameters.
constexpr DeviceInfo kSmall{80, 2, 163 << 10};

struct How {
  bool on_device = false;  // counters and learning rate
  bool in_double = false;  // are stored so there
  double t = 7, special = 0;
  std::vector<int64_t> sizes = {5, 1, 0, 1023, 4096, 8, 3077, 17};
};

template <class Args, class S, class W>
std::string run(Args args, const How& how) {
  std::vector<Parameter<S, W>> parameters;
  std::vector<StepTensor> tensors;
  const int64_t count = how.sizes.size();
  // On the device every tensor has a count of its own.
  const auto t_of = [&](int64_t i) { return how.on_device ? how.t + i % 3 : how.t; };
  for (int64_t i = 0; i < count; ++i) {
    const int offset = i % 4 == 3 ? 0 : i % 3 == 2 ? 1 : 0;
    parameters.emplace_back(args, t_of(i), how.sizes[i], unsigned(11 + 7 * i), offset, how.special);
  }
  for (auto& p : parameters) tensors.push_back(p.tensor());
  cudaError_t error;
  if (!how.on_device) {
    Counters now;
    now.step = how.t;
    if constexpr (std::is_same_v<Args, NAdamArgs>) {
      now.mu_product = reference::mu_product(args, how.t - 1);
    }
    at_step(args, now);
    error = optimizer_step<Args, S, W>(args, tensors.data(), count, {}, kSmall, nullptr);
  } else {
    constexpr bool kCounts = !std::is_same_v<Args, SgdArgs>;
    Buffer<float> steps(count), products(count), lr(1);
    Buffer<double> wide_steps(count), wide_products(count), wide_lr(1);
    std::vector<StepCounters> counters(count);
    for (int64_t i = 0; i < count; ++i) {
      wide_steps[i] = steps[i] = float(t_of(i) - 1);
      counters[i] = {how.in_double ? static_cast<void*>(&wide_steps[i]) : &steps[i], nullptr,
                     how.in_double, how.in_double};
      if constexpr (std::is_same_v<Args, NAdamArgs>) {
        wide_products[i] = reference::mu_product(args, t_of(i) - 1);
        products[i] = float(wide_products[i]);
        counters[i].mu_product =
            how.in_double ? static_cast<void*>(&wide_products[i]) : &products[i];
      }
    }
    wide_lr[0] = args.lr, lr[0] = float(args.lr);
    const DeviceScalar of_lr{how.in_double ? static_cast<void*>(wide_lr.data()) : lr.data(),
                             how.in_double};
    args.lr = NAN;
    Buffer<double> workspace(optimizer_workspace(count) / sizeof(double));
    error = optimizer_step_on_device<Args, S, W>(args, tensors.data(),
                                                 kCounts ? counters.data() : nullptr, count, of_lr,
                                                 {}, workspace.data(), kSmall, nullptr);
    for (int64_t i = 0; i < count && kCounts; ++i) {
      const double found = how.in_double ? wide_steps[i] : steps[i];
      if (found != t_of(i)) fail("the step is %g and not %g", found, t_of(i));
      if constexpr (std::is_same_v<Args, NAdamArgs>) {
        const double product = how.in_double ? wide_products[i] : products[i];
        const double exact = reference::mu_product(args, t_of(i));
        if (std::fabs(product - exact) > 3e-7 * exact) fail("mu_product is %g", product);
      }
    }
  }
  expect(error == cudaSuccess, "launched");
  std::string bytes;
  for (auto& p : parameters) p.check(), bytes += p.bytes();
  return bytes;
}

template <class Args>
void run_all(const char* name, const Args& args) {
  run_case(text("%s-f32", name), [&] { return run<Args, float, float>(args, {}); });
  run_case(text("%s-f64", name), [&] { return run<Args, double, double>(args, {}); });
  run_case(text("%s-bf16", name), [&] { return run<Args, BFloat16, BFloat16>(args, {}); });
  run_case(text("%s-f16", name), [&] { return run<Args, Float16, Float16>(args, {}); });
  run_case(text("%s-bf16-master", name), [&] { return run<Args, BFloat16, float>(args, {}); });
  run_case(text("%s-f16-master", name), [&] { return run<Args, Float16, float>(args, {}); });
  run_case(text("%s-f32-on-device", name),
           [&] { return run<Args, float, float>(args, {true, false}); });
  run_case(text("%s-f64-on-device", name),
           [&] { return run<Args, double, double>(args, {true, true}); });
  run_case(text("%s-bf16-master-on-device-first-steps", name),
           [&] { return run<Args, BFloat16, float>(args, {true, true, 1}); });
}

// Learning rates are exact in float32.
template <class Args>
Args with(double lr, double weight_decay, bool maximize) {
  Args args;
  args.lr = lr, args.weight_decay = weight_decay, args.maximize = maximize;
  return args;
}

void sgd() {
  auto o = with<SgdArgs>(0.125, 0, false);
  run_all("sgd", o);
  o.momentum = 0.9, o.dampening = 0.3, o.weight_decay = 0.01;
  run_all("sgd-momentum", o);
  o.first = true;
  run_case("sgd-first", [&] { return run<SgdArgs, float, float>(o, {}); });
  o = with<SgdArgs>(0.125, 0.1, true);
  o.momentum = 0.8, o.nesterov = true;
  run_all("sgd-nesterov", o);
}

template <class Args>
Args with_betas(Args args, double beta1, double beta2, double eps) {
  args.beta1 = beta1, args.beta2 = beta2, args.eps = eps;
  return args;
}

void adam() {
  auto o = with_betas(with<AdamArgs>(0.03125, 0, false), 0.9, 0.999, 1e-8);
  run_all("adam", o);
  run_case("adam-late", [&] { return run<AdamArgs, double, double>(o, {true, true, 1e6}); });
  o.amsgrad = true, o.weight_decay = 0.1;
  run_all("adam-amsgrad", o);
  o = with_betas(with<AdamArgs>(0.03125, 0.25, true), 0.5, 0.9, 1e-3);
  o.decoupled = true;
  run_all("adamw", o);
}

void others() {
  auto adagrad = with<AdagradArgs>(0.125, 0.1, true);
  adagrad.lr_decay = 0.05, adagrad.eps = 1e-10;
  run_all("adagrad", adagrad);

  auto rmsprop = with<RMSpropArgs>(0.03125, 0.1, false);
  rmsprop.alpha = 0.9, rmsprop.eps = 1e-8;
  run_all("rmsprop", rmsprop);
  rmsprop.centered = true, rmsprop.maximize = true;
  run_all("rmsprop-centered", rmsprop);
  rmsprop.momentum = 0.5;
  run_all("rmsprop-centered-momentum", rmsprop);
  rmsprop.centered = false;
  run_all("rmsprop-momentum", rmsprop);

  auto nadam = with_betas(with<NAdamArgs>(0.03125, 0.1, false), 0.9, 0.999, 1e-8);
  nadam.momentum_decay = 0.004;
  run_all("nadam", nadam);
  nadam.decoupled = true, nadam.maximize = true;
  run_all("nadamw", nadam);

  auto radam = with_betas(with<RAdamArgs>(0.03125, 0.1, false), 0.9, 0.999, 1e-8);
  run_all("radam", radam);
  radam.decoupled = true, radam.maximize = true;
  run_all("radamw", radam);
  run_case("radam-unrectified",
           [&] { return run<RAdamArgs, float, float>(radam, {true, false, 3}); });

  auto adamax = with_betas(with<AdamaxArgs>(0.03125, 0.1, true), 0.9, 0.999, 1e-8);
  run_all("adamax", adamax);
}

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
  sgd(), adam(), others(), special_values(), many(), scaling(), chunks();
  return finish();
}
