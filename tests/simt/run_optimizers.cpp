// Multi-tensor optimizer steps: every rule, its options, every storage type, counters and learning
// rate from the host and on the device.
#include "../../csrc/cuda/optimizers/optimizers.cu"
#include "optimizer_parameters.h"

namespace mlp_ext::cuda {
namespace {

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

}  // namespace
}  // namespace mlp_ext::cuda

int main() {
  using namespace mlp_ext::cuda;
  sgd(), adam(), others();
  return finish();
}
