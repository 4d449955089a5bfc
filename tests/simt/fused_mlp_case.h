// A stack for run_fused_mlp.cpp: its buffers, what it should give in float64, and the comparison.
#pragma once

#include "check.h"

namespace check {

using mlp_ext::Activation;
using mlp_ext::saves_input;
using mlp_ext::cuda::DeviceInfo;
using mlp_ext::cuda::Precision;

inline double forward_of(Activation activation, double x) {
  using V = mlp_ext::cuda::Vec<double>;
  switch (activation) {
#define MLP_CASE(name, Functor, saves) \
  case Activation::name:               \
    return mlp_ext::cuda::Functor::forward(V(x)).v;
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
  return NAN;
}
inline double backward_of(Activation activation, double dy, double saved) {
  using V = mlp_ext::cuda::Vec<double>;
  switch (activation) {
#define MLP_CASE(name, Functor, saves) \
  case Activation::name:               \
    return mlp_ext::cuda::Functor::backward(V(dy), V(saved)).v;
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
  return NAN;
}

struct Stack {
  std::vector<int64_t> widths;  // the input's first
  std::vector<Activation> activations;
  int64_t rows;
  int pad = 0;  // elements between the rows of every matrix, and before the first
  bool bias = true;
  DeviceInfo device = mlp_ext::cuda::kH100;

  int layers() const { return static_cast<int>(activations.size()); }
};

// Widths all alike between `in` and `out`.
inline Stack uniform(int64_t in, int64_t hidden, int64_t out, int layers, int64_t rows,
                     Activation activation = Activation::relu) {
  Stack stack;
  stack.widths = {in};
  for (int l = 1; l < layers; ++l) stack.widths.push_back(hidden);
  stack.widths.push_back(out);
  stack.activations.assign(layers, activation);
  stack.activations.back() = Activation::none;
  stack.rows = rows;
  return stack;
}

using Values = std::vector<double>;

inline double root_mean_square(const Values& v) {
  double sum = 0;
  for (const double x : v) sum += std::isfinite(x) ? x * x : 0;
  return v.empty() ? 0 : std::sqrt(sum / v.size());
}

template <class T>
class FusedCase {
 public:
  const Stack& s;
  Precision precision;
  Buffer<T> x, dy, dx;
  std::vector<Buffer<T>> w, b, y, z, dw, db;

  FusedCase(const Stack& stack, Precision precision, unsigned seed = 1)
      : s(stack),
        precision(precision),
        x(matrix(s.widths.front(), seed)),
        dy(matrix(s.widths.back(), seed + 1)),
        dx(elements(s.rows, s.widths.front()), s.pad) {
    for (int l = 0; l < s.layers(); ++l) {
      const int64_t in = s.widths[l], out = s.widths[l + 1];
      w.push_back(normal<T>(elements(out, in), seed + 10 + l, std::sqrt(1.7 / in), s.pad));
      b.push_back(normal<T>(out, seed + 40 + l, 0.2, s.pad));
      y.emplace_back(elements(s.rows, out), s.pad);
      z.emplace_back(elements(s.rows, out), s.pad);
      dw.emplace_back(out * in, s.pad);
      db.emplace_back(out, s.pad);
    }
  }

  int64_t ld(int64_t columns) const { return columns + s.pad; }
  // A matrix ends with its last row's last element.
  size_t elements(int64_t rows, int64_t columns) const {
    return rows > 0 ? (rows - 1) * ld(columns) + columns : 0;
  }
  Buffer<T> matrix(int64_t columns, unsigned seed) const {
    return normal<T>(elements(s.rows, columns), seed, 1, s.pad);
  }
  bool keeps_z(int l) const { return saves_input(s.activations[l]); }
  const Buffer<T>& saved(int l) const { return keeps_z(l) ? z[l] : y[l]; }
  const Buffer<T>& input(int l) const { return l > 0 ? y[l - 1] : x; }

  mlp_ext::cuda::FusedForward<T> forward_args(bool save) {
    mlp_ext::cuda::FusedForward<T> args{};
    args.x = x.data(), args.ld_x = ld(s.widths[0]), args.rows = s.rows, args.layers = s.layers();
    for (int l = 0; l < s.layers(); ++l) {
      const int64_t in = s.widths[l], out = s.widths[l + 1];
      auto& layer = args.layer[l];
      layer.in = in, layer.out = out, layer.weight = w[l].data(), layer.ld_weight = ld(in);
      layer.bias = s.bias ? b[l].data() : nullptr, layer.activation = s.activations[l];
      if (save || l + 1 == s.layers()) layer.y = y[l].data(), layer.ld_y = ld(out);
      if (save && keeps_z(l)) layer.z = z[l].data(), layer.ld_z = ld(out);
    }
    return args;
  }
  mlp_ext::cuda::FusedBackward<T> backward_args(bool with_dx, bool with_dw, bool with_db) {
    mlp_ext::cuda::FusedBackward<T> args{};
    args.dy = dy.data(), args.ld_dy = ld(s.widths.back()), args.rows = s.rows;
    args.dx = with_dx ? dx.data() : nullptr, args.ld_dx = ld(s.widths[0]);
    args.layers = s.layers();
    for (int l = 0; l < s.layers(); ++l) {
      const int64_t in = s.widths[l], out = s.widths[l + 1];
      auto& layer = args.layer[l];
      layer.in = in, layer.out = out, layer.weight = w[l].data(), layer.ld_weight = ld(in);
      layer.x = input(l).data(), layer.ld_x = ld(in), layer.activation = s.activations[l];
      layer.saved = saved(l).data(), layer.ld_saved = ld(out);
      layer.dw = with_dw ? dw[l].data() : nullptr, layer.db = with_db ? db[l].data() : nullptr;
    }
    return args;
  }
  void run_forward(bool save = true) {
    expect(fused_mlp_forward(forward_args(save), precision, s.device, nullptr) == cudaSuccess,
           "forward launches");
  }
  void run_backward(bool with_dx = true, bool with_dw = true, bool with_db = true) {
    const auto args = backward_args(with_dx, with_dw, with_db);
    Buffer<float> workspace(fused_mlp_backward_workspace(args, s.device) / sizeof(float));
    expect(fused_mlp_backward(args, precision, s.device, workspace.data(), nullptr) == cudaSuccess,
           "backward launches");
    expect(workspace.intact(), "workspace is as large as is said");
  }

  // A dense copy of a matrix with leading dimension ld(columns).
  Values dense(const Buffer<T>& m, int64_t rows, int64_t columns) const {
    Values v;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) v.push_back(m.at(i * ld(columns) + j));
    }
    return v;
  }
  double as_stored(double x) const { return sizeof(T) == 2 ? value_of(rounded<T>(x)) : x; }

  // z of layer l from its input.
  Values pre_activation(int l, const Values& in) const {
    const int64_t K = s.widths[l], N = s.widths[l + 1];
    const Values weight = dense(w[l], N, K);
    Values result(s.rows * N);
    for (int64_t m = 0; m < s.rows; ++m) {
      for (int64_t n = 0; n < N; ++n) {
        double sum = s.bias ? b[l].at(n) : 0;
        for (int64_t k = 0; k < K; ++k) sum += in[m * K + k] * weight[n * K + k];
        result[m * N + n] = as_stored(sum);
      }
    }
    return result;
  }
  Values activated(int l, Values v) const {
    for (double& element : v) element = forward_of(s.activations[l], element);
    return v;
  }
  struct Gradients {
    Values dx;
    std::vector<Values> dw, db;
  };
  // From each layer's input and what its derivative reads.
  Gradients gradients(const std::vector<Values>& inputs,
                      const std::vector<Values>& saved_at) const {
    Gradients g;
    g.dw.resize(s.layers()), g.db.resize(s.layers());
    Values d = dense(dy, s.rows, s.widths.back());
    for (int l = s.layers() - 1; l >= 0; --l) {
      const int64_t K = s.widths[l], N = s.widths[l + 1];
      const Values weight = dense(w[l], N, K);
      for (size_t i = 0; i < d.size(); ++i) {
        d[i] = as_stored(backward_of(s.activations[l], d[i], saved_at[l][i]));
      }
      g.dw[l].assign(N * K, 0), g.db[l].assign(N, 0);
      Values below(s.rows * K);
      for (int64_t m = 0; m < s.rows; ++m) {
        for (int64_t n = 0; n < N; ++n) {
          const double dz = d[m * N + n];
          g.db[l][n] += dz;
          for (int64_t k = 0; k < K; ++k) {
            g.dw[l][n * K + k] += dz * inputs[l][m * K + k];
            below[m * K + k] += dz * weight[n * K + k];
          }
        }
      }
      for (double& element : below) element = as_stored(element);
      d = below;
    }
    g.dx = d;
    return g;
  }

  // The elements of a matrix with leading dimension ld(columns), and nothing between its rows.
  void expect_matrix(const Buffer<T>& m, const Values& expected, int64_t columns, double most,
                     const char* what) const {
    if (!m.intact()) fail("%s: a write outside", what);
    Buffer<T> result(expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      result[i] = m[i / columns * ld(columns) + i % columns];
    }
    for (size_t i = 0; i < m.size(); ++i) {
      if (int64_t(i % ld(columns)) >= columns && !std::isnan(m.at(i))) {
        return fail("%s: a write between its rows", what);
      }
    }
    expect_close(result, expected, most, root_mean_square(expected) + 1e-30, what);
  }
};

}  // namespace check
