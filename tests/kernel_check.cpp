// Every ISA that the running CPU supports against the scalar one, without torch or Python: what
// test_targets.py cross-compiles for AArch64 and runs under emulation. Prints one line an ISA and
// returns the number of mismatches.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../csrc/cpu/dispatch.h"

using namespace mlp_ext;
using cpu::kernels;

namespace {

int mismatches = 0;

template <class T>
const cpu::ComputeKernels<T>& compute() {
  if constexpr (sizeof(T) == 8)
    return kernels().f64;
  else
    return kernels().f32;
}

template <class T>
std::vector<T> random_values(size_t n) {
  std::vector<T> v(n);
  for (T& x : v) x = T(std::rand()) / T(RAND_MAX) * 4 - 2;
  return v;
}

template <class T>
void compare(const char* what, const std::vector<T>& got, const std::vector<T>& want,
             double limit) {
  double worst = 0, scale = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(double(got[i]) - double(want[i]));
    worst = error > worst || error != error ? error : worst;
    scale = std::fmax(scale, std::fabs(double(want[i])));
  }
  if (worst <= limit * scale) return;
  std::printf("%s: %s off by %g of %g\n", kernels().name, what, worst, scale);
  ++mismatches;
}

// Runs `work` on `isa` and on scalar, from the same random numbers, and compares what it returns.
template <class T, class Work>
void check(const char* what, const std::string& isa, double limit, Work work) {
  std::srand(1);
  cpu::set_isa("scalar");
  const std::vector<T> want = work();
  std::srand(1);
  cpu::set_isa(isa);
  compare(what, work(), want, limit);
}

template <class T>
std::vector<T> gemm(int64_t M, int64_t N, int64_t K, bool a_transposed, bool b_transposed,
                    Activation activation, bool backward) {
  const auto a = random_values<T>(M * K), b = random_values<T>(K * N), bias = random_values<T>(N),
             saved = random_values<T>(M * N);
  std::vector<T> c(M * N, T(NAN));
  cpu::GemmArgs<T> g{};
  g.M = M, g.N = N, g.K = K;
  g.a = a.data(), g.a_row = a_transposed ? 1 : K, g.a_col = a_transposed ? M : 1;
  g.b = b.data(), g.b_row = b_transposed ? 1 : N, g.b_col = b_transposed ? K : 1;
  g.c = c.data(), g.ldc = N, g.activation = activation;
  if (backward)
    g.saved = saved.data(), g.ld_saved = N;
  else
    g.bias = bias.data();
  std::vector<T> workspace(compute<T>().gemm_workspace);
  compute<T>().gemm(g, {0, M}, {0, N}, workspace.data());
  return c;
}

// side_by_side: class c of row r is element c * rows + r.
template <class T>
std::vector<T> cross_entropy(int64_t rows, int64_t classes, bool probabilities, bool side_by_side) {
  const std::vector<T> logits = random_values<T>(rows * classes);
  const std::vector<T> likely = random_values<T>(rows * classes);
  std::vector<int64_t> target(rows);
  for (auto& t : target) t = std::rand() % classes;
  target[rows / 2] = -100;
  std::vector<T> grad(rows * classes);
  const int64_t ld = side_by_side ? 1 : classes;
  cpu::CrossEntropyArgs<T> p{};
  p.classes = classes, p.logits = logits.data(), p.ld_logits = ld;
  if (probabilities) {
    p.probabilities = likely.data(), p.ld_probabilities = ld;
  } else {
    p.target = target.data();
  }
  p.weight_sum = double(classes), p.ignore_index = -100, p.label_smoothing = 0.1, p.scale = 1;
  p.grad = grad.data(), p.ld_grad = ld;
  if (side_by_side) p.class_stride = rows;
  grad.push_back(T(compute<T>().cross_entropy(p, {0, rows})));
  return grad;
}

template <class S>
std::vector<float> adam(const cpu::OptimizerKernels<S> cpu::KernelTable::* kernel) {
  const int64_t n = 77;
  std::vector<S> param(n), grad(n), first(n), second(n), most(n);
  for (int64_t i = 0; i < n; ++i) {
    param[i] = S{uint16_t(0x3c00 + std::rand() % 256)};
    grad[i] = S{uint16_t(0x3c00 + std::rand() % 256)};
    first[i] = second[i] = most[i] = S{0};
  }
  cpu::AdamArgs args{};
  args.grad_scale = 1;
  args.lr = 0.1, args.beta1 = 0.9, args.beta2 = 0.99, args.eps = 1e-8;
  args.step_size = 1, args.bias_correction2_sqrt = 0.1, args.amsgrad = true;
  (kernels().*kernel)
      .adam(args, param.data(), grad.data(), first.data(), second.data(), most.data(), n);
  std::vector<float> result;
  for (const S& value : param) result.push_back(to_float(value));
  return result;
}

template <class T>
void check_type(const std::string& isa, double limit) {
  const int64_t sizes[][3] = {{1, 33, 70}, {7, 17, 300}, {40, 64, 33}, {13, 5, 1}, {30, 130, 70}};
  for (const auto& s : sizes) {
    for (int layout = 0; layout < 4; ++layout) {
      for (int code = 0; code < kActivationCount; ++code) {
        for (const bool backward : {false, true}) {
          check<T>("gemm", isa, limit, [&] {
            return gemm<T>(s[0], s[1], s[2], layout & 1, layout & 2, Activation(code), backward);
          });
        }
      }
    }
  }
  for (const int64_t classes : {2, 3, 16, 37, 300}) {
    for (int form = 0; form < 4; ++form) {
      check<T>("cross_entropy", isa, limit,
               [&] { return cross_entropy<T>(37, classes, form & 1, form & 2); });
    }
  }
}

}  // namespace

int main() {
  for (const std::string& isa : cpu::supported_isas()) {
    check_type<float>(isa, 3e-5);
    check_type<double>(isa, 1e-13);
    check<float>("adam bf16", isa, 0, [] { return adam(&cpu::KernelTable::optim_bf16); });
    check<float>("adam f16", isa, 2e-3, [] { return adam(&cpu::KernelTable::optim_f16); });
    std::printf("%s: %d mismatches\n", isa.c_str(), mismatches);
  }
  return mismatches;
}
