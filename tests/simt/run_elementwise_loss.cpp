// The elementwise losses against float64; and the scaling of a gradient.
#include "../../csrc/cuda/losses/elementwise_loss.cu"
#include "../../csrc/cuda/elementwise/scale.cu"
#include "check.h"

namespace mlp_ext::cuda {
namespace {

using namespace check;

constexpr DeviceInfo kSmall{90, 1, 227 << 10};

struct Case {
  LossKind kind = LossKind::mse;
  int64_t n = 1, columns = 1;
  size_t offset = 0;
  bool weighted = false, pos_weighted = false, by_weight = false, no_grad = false, in_place = false;
  Reduction reduction = Reduction::mean;
  double special = 0, parameter = 0.7;
};

LossAt<Vec<double>> exact(LossKind kind, double x, double t, double parameter, double pos_weight) {
  using V = Vec<double>;
  switch (kind) {
#define MLP_CASE(name, Functor) \
  case LossKind::name:          \
    return Functor::at(V(x), V(t), V(parameter), V(pos_weight));
    MLP_FOR_EACH_LOSS(MLP_CASE)
#undef MLP_CASE
  }
  return {};
}

template <class T>
std::string run(const Case& k) {
  const bool is_bce = k.kind == LossKind::bce || k.kind == LossKind::bce_with_logits;
  Buffer<T> x = normal<T>(k.n, 1, 2, k.offset), t = normal<T>(k.n, 2, 2, k.offset);
  Buffer<T> weight(k.n, k.offset), pos_weight(k.columns, k.offset);
  for (int64_t i = 0; i < k.n; ++i) {
    weight[i] = rounded<T>(0.2 + double(i % 7) * 0.3);
    if (is_bce) t[i] = rounded<T>(double(i % 5) / 4);
    if (k.kind == LossKind::bce) x[i] = rounded<T>(0.01 + 0.98 * double(i % 97) / 97);
    if (i % 6 == 0 && !is_bce) t[i] = x[i];
  }
  for (int64_t c = 0; c < k.columns; ++c) pos_weight[c] = rounded<T>(0.5 + double(c) * 0.4);
  if (k.special != 0) x[k.n / 2] = rounded<T>(k.special);
  double total = double(k.n);
  if (k.by_weight) {
    total = 0;
    for (int64_t i = 0; i < k.n; ++i) total += weight.at(i);
  }
  const double scale = k.reduction == Reduction::mean ? 1 / total : 1;
  std::vector<double> grads, losses;
  double sum = 0;
  for (int64_t i = 0; i < k.n; ++i) {
    const double p = k.pos_weighted ? pos_weight.at(i % k.columns) : 1;
    const double w = k.weighted ? weight.at(i) : 1;
    const auto loss = exact(k.kind, x.at(i), t.at(i), k.parameter, p);
    grads.push_back(loss.slope.v * w * scale);
    losses.push_back(loss.value.v * w);
    sum += loss.value.v * w;
  }
  if (k.reduction != Reduction::none) losses = {sum * scale};

  using G = LossGradient<T>;
  Buffer<G> grad(k.n, k.offset);
  Buffer<T> loss(losses.size(), losses.size() > 1 ? k.offset : 0);
  Buffer<double> workspace(elementwise_loss_workspace(k.reduction, kSmall) / sizeof(double));
  ElementwiseLossArgs<T> p{};
  p.kind = k.kind, p.n = k.n, p.columns = k.columns;
  p.input = x.data(), p.target = t.data();
  if (k.weighted) p.weight = weight.data();
  if (k.pos_weighted) p.pos_weight = pos_weight.data();
  p.parameter = k.parameter;
  p.reduction = k.reduction, p.mean_by_weight = k.by_weight;
  if (!k.no_grad) p.grad = grad.data();
  if constexpr (std::is_same_v<T, G>) {
    if (k.in_place) p.grad = x.data();
  }
  p.loss = loss.data();
  expect(elementwise_loss(p, workspace.data(), kSmall, nullptr) == cudaSuccess, "launched");
  expect(workspace.intact(), "a write outside the workspace");
  // The reference's own sums are in float64; and binary cross-entropy of logits is a difference of
  // numbers of the logits' size.
  const double tolerance = (std::is_same_v<T, double> ? 400 : 8) * kEpsilon<T>;
  expect_close(loss, losses, tolerance, is_bce ? 1 : 0.05, "loss");
  if (k.no_grad) {
    for (int64_t i = 0; i < k.n; ++i) expect(std::isnan(grad.at(i)), "a gradient");
    return bytes_of(loss);
  }
  // Not rounded to 16 bits.
  const double of_grad = (std::is_same_v<T, double> ? 400 : 8) * kEpsilon<G>;
  const auto check_grad = [&](const auto& result) {
    expect_close(result, grads, of_grad, scale, "grad");
    return bytes_of(loss) + bytes_of(result);
  };
  return k.in_place ? check_grad(x) : check_grad(grad);
}

template <class T>
void case_of(const char* type, const Case& k) {
  run_case(
      text("%s-%s-n%d-columns%d-at%d%s%s%s%s%s-r%d-%g", kLossNames[int(k.kind)], type, int(k.n),
           int(k.columns), int(k.offset), k.weighted ? "-weighted" : "",
           k.pos_weighted ? "-pos" : "", k.by_weight ? "-by-weight" : "",
           k.no_grad ? "-no-grad" : "", k.in_place ? "-in-place" : "", int(k.reduction), k.special),
      [&] { return run<T>(k); });
}

template <class T>
void sizes(const char* type) {
  int turn = 0;
  for (const int64_t n : {1, 3, 8, 255, 1000, 2052, 8195}) {
    for (const size_t offset : {0, 1}) {
      Case k;
      k.n = n, k.offset = offset, k.kind = static_cast<LossKind>(turn % kLossCount);
      k.reduction = static_cast<Reduction>(turn % 3);
      k.weighted = turn % 2;
      case_of<T>(type, k);
      ++turn;
    }
  }
}

void kinds() {
  for (int kind = 0; kind < kLossCount; ++kind) {
    for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
      Case k;
      k.kind = static_cast<LossKind>(kind), k.n = 1035, k.reduction = reduction;
      case_of<float>("f32", k);
      k.no_grad = true, k.weighted = true;
      case_of<float>("f32", k);
      k.no_grad = false, k.in_place = true, k.by_weight = true;
      case_of<float>("f32", k);
      k.by_weight = false, k.in_place = false, k.columns = 9, k.pos_weighted = true;
      case_of<float>("f32", k);
      k.columns = 1;
      case_of<mlp_ext::Float16>("f16", k);
    }
    for (const double special : {double(NAN), double(INFINITY), double(-INFINITY), 90.0, -90.0}) {
      Case k;
      k.kind = static_cast<LossKind>(kind), k.n = 40, k.reduction = Reduction::none;
      k.special = special;
      case_of<float>("f32", k);
    }
  }
  run_case("nothing", [] {
    ElementwiseLossArgs<float> p{};
    expect(elementwise_loss(p, nullptr, kSmall, nullptr) == cudaSuccess, "no elements");
    return std::string();
  });
}

template <class T>
void scalings(const char* type) {
  for (const double factor : {1.0, -2.5, double(NAN)}) {
    for (const int64_t n : {1, 2, 7, 8, 250, 2300}) {
      for (const size_t offset : {0, 1, 3}) {
        run_case(text("scale-%s-n%d-at%d-%g", type, int(n), int(offset), factor), [&] {
          auto x = normal<T>(n, 5, 1, offset);
          std::vector<double> expected;
          for (int64_t i = 0; i < n; ++i) expected.push_back(x.at(i) * factor);
          Buffer<T> on_device(1);
          on_device[0] = rounded<T>(factor);
          expect(scale(x.data(), n, on_device.data(), nullptr) == cudaSuccess, "launched");
          expect_close(x, expected, kEpsilon<T>, 1e-6, "x");
          return bytes_of(x);
        });
      }
    }
  }
}

}  // namespace
}  // namespace mlp_ext::cuda

int main() {
  using namespace mlp_ext::cuda;
  sizes<float>("f32");
  if (kUnderThreadSanitizer) return finish();  // other types race where this one does
  sizes<double>("f64");
  sizes<mlp_ext::BFloat16>("bf16");
  sizes<mlp_ext::Float16>("f16");
  kinds();
  scalings<float>("f32");
  scalings<mlp_ext::BFloat16>("bf16");
  return finish();
}
