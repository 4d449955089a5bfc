// One float32 product of one thread through the kernel table, in blocks of any size, for sweep.py
// to time. It compiles this with csrc/cpu, and calls it through ctypes.
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "cpu/dispatch.h"

#define MLP_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace mlp_ext;

struct Problem {
  std::vector<float> x, w, y, bias;
  std::unique_ptr<float, void (*)(void*)> workspace{nullptr, std::free};
  cpu::GemmArgs<float> args{};
  const cpu::ComputeKernels<float>* kernels;
  cpu::Blocks blocks;
};

// x (M, K), w (N, K), y (M, N). Zeros would do for the time, but not for denormals in the sums.
std::vector<float> random_values(int64_t n) {
  std::minstd_rand engine(1);
  std::uniform_real_distribution<float> uniform(-0.5f, 0.5f);
  std::vector<float> values(n);
  for (float& value : values) value = uniform(engine);
  return values;
}

enum Form { kForward, kDx, kDw };

void describe(Problem& p, int form, int64_t M, int64_t N, int64_t K) {
  cpu::GemmArgs<float>& g = p.args;
  if (form == kForward) {  // y = relu(x w^T + bias)
    g.M = M, g.N = N, g.K = K;
    g.a = p.x.data(), g.a_row = K, g.a_col = 1;
    g.b = p.w.data(), g.b_row = 1, g.b_col = K;
    g.c = p.y.data(), g.ldc = N;
    g.bias = p.bias.data();
    g.activation = Activation::relu;
  } else if (form == kDx) {  // x = y w
    g.M = M, g.N = K, g.K = N;
    g.a = p.y.data(), g.a_row = N, g.a_col = 1;
    g.b = p.w.data(), g.b_row = K, g.b_col = 1;
    g.c = p.x.data(), g.ldc = K;
  } else {  // w = y^T x
    g.M = N, g.N = K, g.K = M;
    g.a = p.y.data(), g.a_row = 1, g.a_col = N;
    g.b = p.x.data(), g.b_row = K, g.b_col = 1;
    g.c = p.w.data(), g.ldc = K;
  }
}

}  // namespace

// Null if the CPU has no such ISA. kc = 0: the blocks of this host.
MLP_EXPORT void* sweep_problem(const char* isa, int form, int64_t M, int64_t N, int64_t K,
                               int64_t kc, int64_t mc, int64_t nc) {
  try {
    cpu::set_isa(isa);
  } catch (const std::invalid_argument&) {
    return nullptr;
  }
  auto* p = new Problem;
  p->x = random_values(M * K), p->w = random_values(N * K);
  p->y = random_values(M * N), p->bias = random_values(N);
  p->kernels = &cpu::kernels().f32;
  p->blocks = p->kernels->blocks;
  if (kc > 0) p->blocks.kc = kc, p->blocks.mc = mc, p->blocks.nc = nc;
  const size_t bytes = p->blocks.workspace() * sizeof(float);
  p->workspace.reset(static_cast<float*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
  describe(*p, form, M, N, K);
  return p;
}

MLP_EXPORT void sweep_run(void* problem) {
  auto& p = *static_cast<Problem*>(problem);
  p.kernels->run(p.args, {0, p.args.M}, {0, p.args.N}, p.blocks, p.workspace.get());
}

MLP_EXPORT void sweep_free(void* problem) { delete static_cast<Problem*>(problem); }
