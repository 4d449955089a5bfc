// Softmax cross-entropy against float64: every place of a row, every form of the loss.
#include "../../csrc/cuda/losses/cross_entropy.cu"
#include "check.h"

namespace mlp_ext::cuda {
namespace {

using namespace check;

constexpr DeviceInfo kSmall{90, 1, 227 << 10};
constexpr int64_t kIgnored = -100;

struct Case {
  int64_t images = 1, rows = 1, classes = 1;
  int64_t gap = 0;    // elements between a row and the next; rows that lie side by side: -1
  size_t offset = 0;  // of the pointers
  bool probabilities = false, weighted = false, ignores = false, no_grad = false, in_place = false;
  double smoothing = 0;
  Reduction reduction = Reduction::mean;
  double special = 0;      // a logit in the middle row
  int64_t bad_target = 0;  // of the middle row
  double scale = 2;        // of the logits
  double floor = 1;        // below which losses are as accurate as one of this size
};

struct Expected {
  std::vector<double> loss, grad;
};

// Where class c of row r is.
int64_t place(const Case& k, int64_t row, int64_t c) {
  if (k.gap >= 0) return row * (k.classes + k.gap) + c;
  return row / k.rows * k.rows * k.classes + c * k.rows + row % k.rows;
}

template <class T>
Expected reference(const Case& k, const Buffer<T>& logits, const Buffer<T>& q,
                   const std::vector<int64_t>& target, const Buffer<T>& weight) {
  const int64_t rows = k.images * k.rows, C = k.classes;
  Expected e;
  double total = k.probabilities ? double(rows) : 0;
  const auto weight_of = [&](int64_t c) { return k.weighted ? weight.at(c) : 1.0; };
  const auto is_class = [&](int64_t t) { return t >= 0 && t < C; };
  for (int64_t row = 0; row < rows && !k.probabilities; ++row) {
    const int64_t t = target[row];
    if (t != kIgnored) total += is_class(t) ? weight_of(t) : double(NAN);
  }
  const double scale = k.reduction == Reduction::mean ? (total == 0 ? NAN : 1 / total) : 1;
  e.grad.resize(rows * C);
  double sum_of_losses = 0;
  for (int64_t row = 0; row < rows; ++row) {
    double max = -INFINITY, sum = 0, loss = 0, of_all = 0;
    for (int64_t c = 0; c < C; ++c) max = std::max(max, logits.at(place(k, row, c)));
    for (int64_t c = 0; c < C; ++c) sum += std::exp(logits.at(place(k, row, c)) - max);
    std::vector<double> goal(C);
    const bool ignored = !k.probabilities && target[row] == kIgnored;
    const bool bad = !k.probabilities && !ignored && !is_class(target[row]);
    for (int64_t c = 0; c < C; ++c) {
      const double hit = k.probabilities ? q.at(place(k, row, c)) : double(target[row] == c);
      goal[c] = ((1 - k.smoothing) * hit + k.smoothing / double(C)) * weight_of(c);
      of_all += goal[c];
      const double nll = std::log(sum) - (logits.at(place(k, row, c)) - max);
      if (goal[c] != 0 || k.probabilities) loss += goal[c] * nll;
      if (std::isnan(nll)) loss = NAN;
    }
    if (bad) loss = NAN;
    if (ignored) loss = 0;
    for (int64_t c = 0; c < C; ++c) {
      const double softmax = std::exp(logits.at(place(k, row, c)) - max) / sum;
      double g = scale * (of_all * softmax - goal[c]);
      // Without the cancellation at the target.
      if (!k.probabilities && target[row] == c && k.smoothing == 0) {
        double rest = 0;
        for (int64_t d = 0; d < C; ++d) {
          if (d != c) rest += std::exp(logits.at(place(k, row, d)) - max);
        }
        g = -scale * of_all * rest / sum;
      }
      if (bad) g = NAN;
      if (ignored) g = 0;
      e.grad[row * C + c] = g;
    }
    if (k.reduction == Reduction::none) e.loss.push_back(loss);
    sum_of_losses += loss;
  }
  if (k.reduction != Reduction::none) e.loss = {sum_of_losses * scale};
  return e;
}

template <class T, class G>
const Buffer<G>& grad_of(const Case& k, const Buffer<T>& logits, const Buffer<G>& grad) {
  if constexpr (std::is_same_v<T, G>) {
    if (k.in_place) return logits;
  }
  return grad;
}

template <class T>
std::string run(const Case& k) {
  const int64_t rows = k.images * k.rows, C = k.classes;
  const int64_t ld = k.gap >= 0 ? C + k.gap : 1;
  const size_t elements = k.gap >= 0 ? (rows - 1) * ld + C : rows * C;
  using G = LossGradient<T>;
  Buffer<T> logits(elements, k.offset), q(elements, k.offset);
  Buffer<G> grad(elements, k.offset);
  const auto values = normal<double>(rows * C, unsigned(C + 7 * rows), k.scale);
  std::vector<int64_t> target(rows);
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0;
    for (int64_t c = 0; c < C; ++c) sum += std::fabs(values[(row * C + C - 1 - c)]) + 0.1;
    for (int64_t c = 0; c < C; ++c) {
      logits[place(k, row, c)] = rounded<T>(values[row * C + c]);
      q[place(k, row, c)] = rounded<T>((std::fabs(values[row * C + C - 1 - c]) + 0.1) / sum);
    }
    target[row] = k.ignores && row % 3 == 1 ? kIgnored : (row * 7 + 3) % C;
  }
  const int64_t middle = rows / 2;
  if (k.special != 0) logits[place(k, middle, C / 2)] = rounded<T>(k.special);
  if (k.bad_target != 0) target[middle] = k.bad_target;
  Buffer<T> weight(C, k.offset);
  for (int64_t c = 0; c < C; ++c) weight[c] = rounded<T>(0.2 + double(c % 5) * 0.3);
  Buffer<int64_t> indices(rows);
  for (int64_t row = 0; row < rows; ++row) indices[row] = target[row];
  const Expected expected = reference(k, logits, q, target, weight);

  Buffer<T> loss(expected.loss.size());
  // No larger than asked for, and full of NaN, the counter too.
  Buffer<double> workspace(cross_entropy_workspace(k.reduction, kSmall) / sizeof(double));
  CrossEntropyArgs<T> p{};
  p.images = k.images, p.rows = k.rows, p.classes = C;
  p.class_stride = k.gap >= 0 ? 1 : k.rows;
  p.logits = logits.data(), p.ld_logits = ld;
  if (k.probabilities) {
    p.probabilities = q.data(), p.ld_probabilities = ld;
  } else {
    p.target = indices.data();
  }
  if (k.weighted) p.weight = weight.data();
  p.ignore_index = kIgnored;
  p.label_smoothing = k.smoothing;
  p.reduction = k.reduction;
  if (!k.no_grad) p.grad = grad.data(), p.ld_grad = ld;
  if constexpr (std::is_same_v<T, G>) {
    if (k.in_place) p.grad = logits.data();
  }
  p.loss = loss.data();
  expect(cross_entropy(p, workspace.data(), kSmall, nullptr) == cudaSuccess, "launched");
  expect(workspace.intact(), "a write outside the workspace");
  // The reference's own sums are in float64.
  const double tolerance = (std::is_same_v<T, double> ? 400 : 8) * kEpsilon<T>;
  expect_close(loss, expected.loss, tolerance, k.floor, "loss");
  if (k.no_grad) {
    for (size_t i = 0; i < elements; ++i) expect(std::isnan(grad.at(i)), "a gradient");
    return bytes_of(loss);
  }
  const Buffer<G>& result = grad_of(k, logits, grad);
  expect(result.intact(), "a write outside the gradient");
  Buffer<G> in_order(rows * C);
  size_t written = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < C; ++c) in_order[row * C + c] = result[place(k, row, c)];
    for (int64_t c = C; row + 1 < rows && c < ld; ++c) {
      written += !std::isnan(result.at(row * ld + c));
    }
  }
  expect(written == 0, "a write between the rows");
  // Elements of about 1 / C, over the number of rows for the mean.
  const double size = k.reduction == Reduction::mean ? 1.0 / double(rows) : 1;
  const double of_grad = (std::is_same_v<T, double> ? 800 : 16) * kEpsilon<G>;
  expect_close(in_order, expected.grad, of_grad, std::min(1.0, 4.0 / double(C)) * size, "grad");
  return bytes_of(loss) + bytes_of(in_order);
}

template <class T>
void case_of(const char* type, const char* what, const Case& k) {
  run_case(text("%s-%s-R%dx%d_C%d_gap%d_at%d%s%s%s-e%g-r%d", what, type, int(k.images), int(k.rows),
                int(k.classes), int(k.gap), int(k.offset), k.probabilities ? "-probabilities" : "",
                k.weighted ? "-weighted" : "", k.ignores ? "-ignored" : "", k.smoothing,
                int(k.reduction)),
           [&] { return run<T>(k); });
}

// Every place of a row, with the forms in turn.
template <class T>
void places(const char* type) {
  const std::vector<int64_t> edges = {1,  2,   4,   5,   8,   10,   16,   17,
                                      33, 128, 129, 256, 512, 1000, 1024, 1025};
  const std::vector<int64_t> some = {3, 33, 300, 1032};
  int turn = 0;
  for (const int64_t c : std::is_same_v<T, float> && !kUnderThreadSanitizer ? edges : some) {
    for (const bool probabilities : {false, true}) {
      Case k;
      k.classes = c, k.probabilities = probabilities;
      k.rows = c <= 64 ? 37 : c <= 256 ? 11 : 3;
      k.weighted = turn / 2 % 2, k.ignores = turn % 3 == 0;
      k.smoothing = turn / 2 % 3 == 1 ? 0.1 : 0;
      k.reduction = static_cast<Reduction>(turn / 2 % 3);
      case_of<T>(type, "row", k);
      k.gap = 3, k.offset = 1, k.smoothing = turn / 2 % 3 == 2 ? 0.3 : 0;
      case_of<T>(type, "odd", k);
      ++turn;
    }
  }
  for (const int64_t c : {3, 8, 19}) {
    if (!std::is_same_v<T, float> && c != 8) continue;
    for (const bool probabilities : {false, true}) {
      Case k;
      k.images = 3, k.rows = c == 3 ? 260 : 11, k.classes = c, k.gap = -1;
      k.probabilities = probabilities, k.weighted = c % 2, k.ignores = c > 3;
      k.smoothing = c == 8 ? 0.2 : 0, k.reduction = static_cast<Reduction>(c % 3);
      case_of<T>(type, "images", k);
    }
  }
}

void forms() {
  for (const int64_t c : {10, 1500}) {
    for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
      for (const bool weighted : {false, true}) {
        for (const double smoothing : {0.1, 1.0}) {
          Case k;
          k.rows = c == 10 ? 70 : 2, k.classes = c, k.weighted = weighted, k.ignores = true;
          k.smoothing = smoothing, k.reduction = reduction;
          case_of<float>("f32", "form", k);
          k.probabilities = true;
          case_of<float>("f32", "form", k);
        }
      }
      Case k;
      k.rows = 3, k.classes = c, k.reduction = reduction;
      k.no_grad = true;
      case_of<float>("f32", "no-grad", k);
      k.no_grad = false, k.in_place = true;
      case_of<float>("f32", "in-place", k);
    }
  }
}

void specials() {
  for (const int64_t c : {10, 1030}) {
    for (const int64_t gap : {0, -1}) {
      if (gap == -1 && c != 10) continue;
      for (const bool probabilities : {false, true}) {
        for (const double special : {double(NAN), double(INFINITY), double(-INFINITY), 1e4}) {
          Case k;
          k.rows = 5, k.classes = c, k.gap = gap, k.special = special;
          k.probabilities = probabilities, k.reduction = Reduction::none;
          case_of<float>("f32", text("special%g", special).c_str(), k);
        }
      }
      for (const int64_t bad : {int64_t{-1}, c}) {
        for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
          Case k;
          k.rows = 5, k.classes = c, k.gap = gap, k.bad_target = bad, k.reduction = reduction;
          k.weighted = c == 10;
          case_of<float>("f32", text("bad%lld", static_cast<long long>(bad)).c_str(), k);
        }
      }
    }
  }
  // Confident rows, of whose loss log(1 + rest) is all; and large logits.
  for (const double scale : {30.0, 300.0}) {
    Case k;
    k.rows = 64, k.classes = 10, k.scale = scale, k.reduction = Reduction::none;
    k.floor = 1e-8;
    case_of<float>("f32", "confident", k);
    k.classes = 1100, k.rows = 5;
    case_of<float>("f32", "confident", k);
  }
  run_case("all-ignored", [] {
    Case k;
    k.rows = 1, k.classes = 6, k.bad_target = kIgnored;
    return run<float>(k);  // the mean over nothing is NaN
  });
  run_case("all-minus-infinity", [] {
    Case k;
    k.rows = 1, k.classes = 1, k.special = -INFINITY;
    return run<float>(k);
  });
  run_case("nothing", [] {
    CrossEntropyArgs<float> p{};
    p.images = 1, p.classes = 3, p.class_stride = 1;
    expect(cross_entropy(p, nullptr, kSmall, nullptr) == cudaSuccess, "no rows");
    return std::string();
  });
  run_case("more-rows-than-blocks", [] {
    Case k;
    k.rows = 2500, k.classes = 5, k.ignores = true;
    return run<float>(k);
  });
}

}  // namespace
}  // namespace mlp_ext::cuda

int main() {
  using namespace mlp_ext::cuda;
  places<float>("f32");
  if (kUnderThreadSanitizer) return finish();  // other types race where this one does
  places<double>("f64");
  places<mlp_ext::BFloat16>("bf16");
  places<mlp_ext::Float16>("f16");
  forms();
  specials();
  return finish();
}
