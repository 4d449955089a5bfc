// Products in blocks of any size against plain sums in double, and the sizes that blocks_for()
// finds, without torch or Python. Returns the number of mistakes.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../csrc/cpu/blocks.h"

using namespace mlp_ext;

namespace mlp_ext::cpu {
namespace scalar {
extern const GemmKernels kGemm;
}
#if defined(__x86_64__)
namespace avx2 {
extern const GemmKernels kGemm;
}
#elif defined(__aarch64__)
namespace neon {
extern const GemmKernels kGemm;
}
#endif
}  // namespace mlp_ext::cpu

namespace {

int mistakes = 0;

void expect(bool holds, const char* what, const char* isa, const cpu::Blocks& b) {
  if (holds) return;
  std::printf("%s, KC %ld MC %ld NC %ld: %s\n", isa, long(b.kc), long(b.mc), long(b.nc), what);
  ++mistakes;
}

std::vector<float> random_values(int64_t n) {
  std::vector<float> values(n);
  for (float& x : values) x = float(std::rand()) / float(RAND_MAX) - 0.5f;
  return values;
}

// C = relu(A B + bias), or C = (A B) relu'(saved); layout & 1: A runs along m, & 2: B along k.
void check_product(const char* isa, const cpu::GemmKernel<float>& kernel, const cpu::Blocks& blocks,
                   int64_t M, int64_t N, int64_t K, int layout, bool backward) {
  const auto a = random_values(M * K), b = random_values(K * N), bias = random_values(N);
  const auto saved = random_values(M * N);
  std::vector<float> c(M * N + 1, NAN), workspace(blocks.workspace() + 1, NAN);
  workspace.back() = c.back() = 7;
  cpu::GemmArgs<float> g{};
  g.M = M, g.N = N, g.K = K;
  g.a = a.data(), g.a_row = layout & 1 ? 1 : K, g.a_col = layout & 1 ? M : 1;
  g.b = b.data(), g.b_row = layout & 2 ? 1 : N, g.b_col = layout & 2 ? K : 1;
  g.c = c.data(), g.ldc = N, g.activation = Activation::relu;
  if (backward) {
    g.saved = saved.data(), g.ld_saved = N;
  } else {
    g.bias = bias.data();
  }
  kernel.run(g, {0, M}, {0, N}, blocks, workspace.data());
  double worst = 0;
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = backward ? 0 : bias[n];
      for (int64_t k = 0; k < K; ++k) {
        sum += double(a[m * g.a_row + k * g.a_col]) * double(b[k * g.b_row + n * g.b_col]);
      }
      const double want = backward ? (saved[m * N + n] > 0 ? sum : 0) : std::fmax(sum, 0);
      const double error = std::fabs(double(c[m * N + n]) - want);
      worst = error > worst || error != error ? error : worst;
    }
  }
  expect(worst <= 6e-5, "a product is off", isa, blocks);
  expect(workspace.back() == 7 && c.back() == 7, "it writes beyond its end", isa, blocks);
}

void check_isa(const char* isa, const cpu::GemmKernel<float>& kernel) {
  const int64_t mr = kernel.row_tile, nr = kernel.column_tile;
  const cpu::Blocks sizes[] = {
      {1, mr, nr, 64},        {7, mr, 3 * nr, 1024},         {64, 2 * mr, nr, 8192},
      {5, 5 * mr, 2 * nr, 1}, {512, 40 * mr, 9 * nr, 12288},
  };
  const int64_t shapes[][3] = {
      {1, 1, 1}, {9, 2 * nr + 3, 70}, {23, 5 * nr, 33}, {3 * mr + 1, nr, 9}, {70, 5 * nr, 1024}};
  for (const cpu::Blocks& blocks : sizes) {
    for (const auto& s : shapes) {
      for (int form = 0; form < 8; ++form) {
        check_product(isa, kernel, blocks, s[0], s[1], s[2], form & 3, form & 4);
      }
    }
  }
  const cpu::Caches hosts[] = {{16 << 10, 128 << 10}, {32 << 10, 512 << 10}, {48 << 10, 2 << 20}};
  int64_t last = 0;
  for (const cpu::Caches& caches : hosts) {
    const cpu::Blocks b = cpu::blocks_for(caches, kernel.blocks.kc, mr, nr, sizeof(float));
    expect(b.kc == kernel.blocks.kc, "KC is the tile's", isa, b);
    expect(b.mc % mr == 0 && b.nc % nr == 0, "whole tiles", isa, b);
    expect(b.mc >= 4 * mr && b.nc >= 4 * nr, "a few tiles", isa, b);
    expect(b.mc == 4 * mr || b.kc * b.mc * 4 <= caches.l2 / 8, "A's block fits L2", isa, b);
    expect(b.mc >= last, "a larger L2 takes more rows", isa, b);
    last = b.mc;
  }
}

}  // namespace

int main() {
  const cpu::Caches host = cpu::caches_of_host();
  expect(host.l1 >= 4096 && host.l2 >= host.l1, "the host's caches", "host", {});
  check_isa("scalar", cpu::scalar::kGemm.f32);
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    check_isa("avx2", cpu::avx2::kGemm.f32);
  }
#elif defined(__aarch64__)
  check_isa("neon", cpu::neon::kGemm.f32);
#endif
  return mistakes;
}
