// A parameter of an optimizer step with all that belongs to it, and what the reference makes of it.
#pragma once

#include "../../csrc/cuda/optimizers.h"
#include "check.h"
#include "optimizer_reference.h"

namespace mlp_ext::cuda {
namespace {

using namespace check;

bool uses(const SgdArgs& o, int s) { return s == 0 && o.momentum != 0; }
bool uses(const AdamArgs& o, int s) { return s < 2 || o.amsgrad; }
bool uses(const AdagradArgs&, int s) { return s == 0; }
bool uses(const RMSpropArgs& o, int s) { return s == 0 || (s == 1 ? o.centered : o.momentum > 0); }
template <class Args>
bool uses(const Args&, int s) {
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

}  // namespace
}  // namespace mlp_ext::cuda
