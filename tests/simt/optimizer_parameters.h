// A parameter of an optimizer step with all that belongs to it, what the reference makes of it, and
// one step of a list of them.
#pragma once

#include "../../csrc/common/optimizer_schedule.h"
#include "../../csrc/cuda/optimizers/optimizers.h"
#include "check.h"
#include "optimizer_reference.h"

namespace mlp_ext::cuda {
namespace {

using namespace check;

inline bool uses(const SgdArgs& o, int s) { return s == 0 && o.momentum != 0; }
inline bool uses(const AdamArgs& o, int s) { return s < 2 || o.amsgrad; }
inline bool uses(const AdagradArgs&, int s) { return s == 0; }
inline bool uses(const RMSpropArgs& o, int s) {
  return s == 0 || (s == 1 ? o.centered : o.momentum > 0);
}
template <class Args>
inline bool uses(const Args&, int s) {
  return s < 2;
}

template <class S, class W>
struct Parameter {
  Buffer<S> param, grad;
  std::vector<Buffer<W>> states;
  Buffer<float> master;
  std::vector<double> expected[2 + kMostStates];  // param, master, states

  template <class Args>
  Parameter(const Args& args, double t, int64_t n, unsigned seed, int offset, double special)
      : param(normal<S>(n, seed, 1, offset)), grad(normal<S>(n, seed + 1, 1, offset)), master(0) {
    for (int64_t i = 3; i < n && special != 0; i += 5) grad[i] = rounded<S>(special);
    constexpr bool kHasMaster = !std::is_same_v<S, W>;
    if (kHasMaster) {
      master = Buffer<float>(n, offset);
      for (int64_t i = 0; i < n; ++i) {
        const bool written_since = i % 4 == 0;  // the parameter, which is no longer the rounding
        master[i] = static_cast<float>(param.at(i) * (written_since ? 1.25 : 1.0005));
        if (!written_since) param[i] = rounded<S>(master[i]);
      }
    }
    for (int s = 0; s < kMostStates; ++s) {
      states.push_back(normal<W>(uses(args, s) ? n : 0, seed + 2 + s, 0.3, offset));
      const bool is_square = s == 1 || std::is_same_v<Args, AdagradArgs> ||
                             (s == 0 && std::is_same_v<Args, RMSpropArgs>);
      const bool is_mean = s == 1 && std::is_same_v<Args, RMSpropArgs>;
      for (size_t i = 0; i < states[s].size(); ++i) {
        const double value = std::fabs(states[s].at(i));
        if (is_mean) states[s][i] = rounded<W>(value / 10);
        if (is_square && !is_mean) states[s][i] = rounded<W>(value + 0.5);
        if (s == 2 && std::is_same_v<Args, AdamArgs>) states[s][i] = rounded<W>(value + 0.5);
      }
    }
    if (std::is_same_v<Args, SgdArgs> && first_of(args)) states[0].poison();
    for (auto& many : expected) many.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      const bool is_master = kHasMaster && i % 4 != 0;
      reference::Element e{is_master ? master.at(i) : param.at(i), grad.at(i), {}};
      for (int s = 0; s < kMostStates; ++s) e.state[s] = states[s].size() ? states[s].at(i) : 0;
      reference::step(args, t, e);
      expected[0][i] = expected[1][i] = e.param;
      for (int s = 0; s < kMostStates; ++s) expected[2 + s][i] = e.state[s];
    }
  }
  template <class Args>
  static bool first_of(const Args& args) {
    if constexpr (std::is_same_v<Args, SgdArgs>) return args.first;
    return false;
  }

  StepTensor tensor() {
    StepTensor t{param.data(), grad.data(), {}, nullptr, static_cast<int64_t>(param.size())};
    for (int s = 0; s < kMostStates; ++s)
      t.states[s] = states[s].size() ? states[s].data() : nullptr;
    if (!std::is_same_v<S, W>) t.master = master.data();
    return t;
  }
  void check() {
    // Rounding to storage, and some roundings of float32 or float64 before.
    const auto allowed = [](double storage, double compute) { return 1.01 * storage + compute; };
    const double compute = std::is_same_v<S, double> ? 4e-15 : 1e-6;
    const double of_w = std::is_same_v<W, float> || std::is_same_v<W, double> ? 0 : kEpsilon<W>;
    const double of_s = std::is_same_v<S, float> || std::is_same_v<S, double> ? 0 : kEpsilon<S>;
    expect_close(param, expected[0], allowed(of_s, compute), 0.1, "param");
    if (!std::is_same_v<S, W>) expect_close(master, expected[1], compute, 0.1, "master");
    for (int s = 0; s < kMostStates; ++s) {
      expected[2 + s].resize(states[s].size());
      expect_close(states[s], expected[2 + s], allowed(of_w, compute), 0.1, "state");
    }
    if (!grad.intact()) fail("a write outside of grad");
  }
  std::string bytes() const {
    std::string all = bytes_of(param) + bytes_of(master);
    for (const auto& state : states) all += bytes_of(state);
    return all;
  }
};

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

// Learning rates are exact in float32.
template <class Args>
Args with(double lr, double weight_decay, bool maximize) {
  Args args;
  args.lr = lr, args.weight_decay = weight_decay, args.maximize = maximize;
  return args;
}

template <class Args>
Args with_betas(Args args, double beta1, double beta2, double eps) {
  args.beta1 = beta1, args.beta2 = beta2, args.eps = eps;
  return args;
}

}  // namespace
}  // namespace mlp_ext::cuda
