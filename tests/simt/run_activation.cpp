// The activations alone and their backward pass with the bias gradient, against float64.
#include "../../csrc/cuda/elementwise/activation.cu"
#include "../../csrc/cuda/elementwise/activation_backward.cu"
#include "check.h"

namespace mlp_ext::cuda {
namespace {

using namespace check;

struct Shape {
  int64_t rows, columns, ld;
  size_t offset;  // of the pointers, in elements
};

// Of a few multiprocessors, so that both one part and several are met at sizes that run quickly.
constexpr DeviceInfo kSmall{90, 2, 227 << 10};

double derivative(Activation f, double dy, double saved) {
  switch (f) {
#define MLP_CASE(name, Functor, saves) \
  case Activation::name:               \
    return derived<Functor>(dy, saved);
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
  return 0;
}

double value_at(Activation f, double x) {
  switch (f) {
#define MLP_CASE(name, Functor, saves) \
  case Activation::name:               \
    return activated<Functor>(x);
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
  return 0;
}

// The elements of a matrix of ld > columns that nobody may touch stay NaN.
template <class T>
bool gaps_untouched(const Buffer<T>& b, const Shape& s) {
  for (int64_t m = 0; m < s.rows; ++m) {
    for (int64_t n = s.columns; n < s.ld && m + 1 < s.rows; ++n) {
      if (!std::isnan(b.at(m * s.ld + n))) return false;
    }
  }
  return true;
}

template <class T>
Buffer<T> matrix(const Shape& s) {
  return Buffer<T>(s.rows > 0 ? (s.rows - 1) * s.ld + s.columns : 0, s.offset);
}

template <class T>
Buffer<T> random_matrix(const Shape& s, unsigned seed) {
  Buffer<T> b = matrix<T>(s);
  const auto values = normal<T>(s.rows * s.columns, seed, 2);
  for (int64_t m = 0; m < s.rows; ++m) {
    for (int64_t n = 0; n < s.columns; ++n) b[m * s.ld + n] = values[m * s.columns + n];
  }
  return b;
}

enum Wanted { kBoth, kGradOnly, kSumOnly, kInPlace };

template <class T>
std::string backward_case(const Shape& s, Activation f, Wanted wanted, double special) {
  auto dy = random_matrix<T>(s, 1), saved = random_matrix<T>(s, 2);
  if (special != 0 && s.rows * s.columns > 0) {
    dy[(s.rows / 2) * s.ld] = rounded<T>(special);
    saved[(s.rows / 2) * s.ld + s.columns - 1] = rounded<T>(special);
  }
  std::vector<double> dz(s.rows * s.columns), sum(s.columns), size(s.columns);
  for (int64_t m = 0; m < s.rows; ++m) {
    for (int64_t n = 0; n < s.columns; ++n) {
      const double z = derivative(f, dy.at(m * s.ld + n), saved.at(m * s.ld + n));
      dz[m * s.columns + n] = z, sum[n] += z, size[n] += std::fabs(z);
    }
  }
  Buffer<T> out = matrix<T>(s), sums(s.columns, s.offset);
  // The kernels compile for at least the workspace that they ask for, and no more is there.
  const size_t bytes = activation_backward_workspace<T>(s.rows, s.columns, kSmall);
  Buffer<ComputeType<T>> workspace(bytes / sizeof(ComputeType<T>));
  ActivationBackwardArgs<T> p{};
  p.rows = s.rows, p.columns = s.columns, p.activation = f;
  p.dy = dy.data(), p.ld_dy = s.ld;
  if (f != Activation::none) p.saved = saved.data(), p.ld_saved = s.ld;
  if (wanted != kSumOnly) p.dz = wanted == kInPlace ? dy.data() : out.data(), p.ld_dz = s.ld;
  if (wanted != kGradOnly) p.sum = sums.data();
  expect(activation_backward(p, workspace.data(), kSmall, nullptr) == cudaSuccess, "launched");
  expect(workspace.intact(), "a write outside the workspace");
  std::string bytes_out;
  if (p.dz) {
    const Buffer<T>& result = wanted == kInPlace ? dy : out;
    expect(gaps_untouched(result, s), "a write between the rows");
    Buffer<T> packed(s.rows * s.columns);
    for (int64_t m = 0; m < s.rows; ++m) {
      for (int64_t n = 0; n < s.columns; ++n) packed[m * s.columns + n] = result[m * s.ld + n];
    }
    expect(result.intact(), "a write outside dz");
    expect_close(packed, dz, 8 * kEpsilon<T>, 1, "dz");
    bytes_out += bytes_of(packed);
  }
  if (p.sum) {
    // The error of a sum is measured against the size of its terms.
    double worst = 0;
    for (int64_t n = 0; n < s.columns; ++n) {
      const double error = std::fabs(sums.at(n) - sum[n]) / (size[n] + 1e-30);
      const bool same = sums.at(n) == sum[n] || (std::isnan(sums.at(n)) && std::isnan(sum[n]));
      worst = std::max(worst, same ? 0 : std::isnan(error) ? INFINITY : error);
    }
    if (!(worst <= 4 * kEpsilon<T>)) fail("sum: error %.3g of the terms' size", worst);
    expect(sums.intact(), "a write outside the sums");
    bytes_out += bytes_of(sums);
  }
  return bytes_out;
}

template <class T>
std::string forward_case(const Shape& s, Activation f, bool with_bias, bool with_z, bool in_place) {
  auto x = random_matrix<T>(s, 3);
  const auto bias = normal<T>(s.columns, 4, 1, s.offset);
  std::vector<double> y(s.rows * s.columns), z(s.rows * s.columns);
  for (int64_t m = 0; m < s.rows; ++m) {
    for (int64_t n = 0; n < s.columns; ++n) {
      const double sum = x.at(m * s.ld + n) + (with_bias ? bias.at(n) : 0);
      z[m * s.columns + n] = value_of(rounded<T>(sum));
      y[m * s.columns + n] = value_at(f, z[m * s.columns + n]);
    }
  }
  Buffer<T> out_y = matrix<T>(s), out_z = matrix<T>(s);
  ActivationArgs<T> p{};
  p.rows = s.rows, p.columns = s.columns, p.activation = f;
  p.x = x.data(), p.ld_x = s.ld;
  if (with_bias) p.bias = bias.data();
  p.y = in_place ? x.data() : out_y.data(), p.ld_y = s.ld;
  if (with_z) p.z = out_z.data(), p.ld_z = s.ld;
  expect(activation(p, nullptr) == cudaSuccess, "launched");
  Buffer<T> got_y(y.size()), got_z(z.size());
  for (int64_t m = 0; m < s.rows; ++m) {
    for (int64_t n = 0; n < s.columns; ++n) {
      got_y[m * s.columns + n] = (in_place ? x : out_y)[m * s.ld + n];
      if (with_z) got_z[m * s.columns + n] = out_z[m * s.ld + n];
    }
  }
  expect(gaps_untouched(in_place ? x : out_y, s) && gaps_untouched(out_z, s), "between the rows");
  expect(x.intact() && out_y.intact() && out_z.intact(), "a write outside");
  expect_close(got_y, y, 8 * kEpsilon<T>, 1, "y");
  if (with_z) expect_close(got_z, z, kEpsilon<T>, 1e-6, "z");
  return bytes_of(got_y);
}

template <class T>
void all_cases() {
  // Tiles' edges, few columns, odd leading dimensions, unaligned pointers, nothing.
  const Shape shapes[] = {{1, 1, 1, 0},    {7, 10, 10, 0},   {33, 64, 64, 0},  {5, 128, 136, 0},
                          {70, 3, 5, 1},   {65, 33, 35, 1},  {300, 8, 8, 0},   {9, 264, 264, 0},
                          {0, 16, 16, 0},  {16, 0, 1, 0},    {129, 40, 40, 3}, {2100, 1, 1, 0},
                          {40, 96, 96, 8}, {1100, 16, 24, 0}};
  for (const Shape& s : shapes) {
    if (kUnderThreadSanitizer && s.rows != 300 && s.rows != 65) continue;
    const auto id = [&](const char* what) {
      return text("%s-%s-M%d_N%d_ld%d_at%d", what, kName<T>, int(s.rows), int(s.columns), int(s.ld),
                  int(s.offset));
    };
    const Activation f = s.rows % 2 ? Activation::relu : Activation::silu;
    for (const Wanted wanted : {kBoth, kGradOnly, kSumOnly, kInPlace}) {
      run_case(id("backward") + text("-want%d", wanted),
               [&] { return backward_case<T>(s, f, wanted, 0); });
    }
    run_case(id("columns"), [&] { return backward_case<T>(s, Activation::none, kSumOnly, 0); });
    run_case(id("forward"), [&] { return forward_case<T>(s, f, true, true, false); });
    run_case(id("in-place"), [&] { return forward_case<T>(s, f, s.rows % 3 == 0, false, true); });
  }
  for (int f = 0; f < kActivationCount && !kUnderThreadSanitizer; ++f) {
    for (const double special : {0.0, double(NAN), double(INFINITY), double(-INFINITY)}) {
      const auto kind = static_cast<Activation>(f);
      run_case(text("%s-%s-%g", kActivationNames[f], kName<T>, special), [&] {
        return backward_case<T>({37, 24, 24, 0}, kind, kBoth, special) +
               forward_case<T>({37, 24, 24, 0}, kind, true, true, false);
      });
    }
  }
}

// Of 1e6 rows with a mean: a plain running sum in float32 is off by 1e-4 of it, PyTorch's by 1e-7.
std::string many_rows() {
  const int64_t rows = 1000003;
  Buffer<float> dy(rows), sums(1);
  double sum = 0;
  for (int64_t m = 0; m < rows; ++m) dy[m] = 0.1f + float(m % 7) * 0.01f, sum += dy.at(m);
  const size_t bytes = activation_backward_workspace<float>(rows, 1, kH100);
  Buffer<float> workspace(bytes / sizeof(float));
  ActivationBackwardArgs<float> p{};
  p.rows = rows, p.columns = 1, p.dy = dy.data(), p.ld_dy = 1, p.sum = sums.data();
  // One multiprocessor: as few parts and as long sums as there can be.
  expect(activation_backward(p, workspace.data(), {80, 1, 163 << 10}, nullptr) == cudaSuccess, "");
  expect_close(sums, {sum}, 3e-7, 0, "sum");
  return bytes_of(sums);
}

}  // namespace
}  // namespace mlp_ext::cuda

int main() {
  using namespace mlp_ext::cuda;
  all_cases<float>();
  if (kUnderThreadSanitizer) return finish();  // other types race where this one does
  all_cases<double>();
  all_cases<mlp_ext::BFloat16>();
  all_cases<mlp_ext::Float16>();
  run_case("many-rows", many_rows);
  return finish();
}
