// Operands of a matrix product in any layout, and the product with its epilogue in float64.
#pragma once

#include "../../csrc/cuda/gemm/gemm.h"
#include "check.h"

namespace mlp_ext::cuda {
namespace {

using check::Buffer;

// A and B, each row (or column, where transposed) `pad` elements longer than it need be.
template <class T>
struct Operands {
  int64_t M, N, K;
  int64_t a_row, a_col, b_row, b_col;
  Buffer<T> a, b;

  // layout: "NT" is a layer's forward pass, A row by row and B column by column.
  Operands(int64_t M, int64_t N, int64_t K, const char* layout, int pad, int offset)
      : M(M),
        N(N),
        K(K),
        a_row(layout[0] == 'N' ? K + pad : 1),
        a_col(layout[0] == 'N' ? 1 : M + pad),
        b_row(layout[1] == 'N' ? N + pad : 1),
        b_col(layout[1] == 'N' ? 1 : K + pad),
        a(check::normal<T>(size(M, K, a_row, a_col), 1, 1, offset)),
        b(check::normal<T>(size(K, N, b_row, b_col), 2, 1, offset)) {}

  static int64_t size(int64_t rows, int64_t columns, int64_t row, int64_t column) {
    return rows == 0 || columns == 0 ? 0 : (rows - 1) * row + (columns - 1) * column + 1;
  }
  T& a_at(int64_t m, int64_t k) { return a[m * a_row + k * a_col]; }
  T& b_at(int64_t k, int64_t n) { return b[k * b_row + n * b_col]; }

  GemmArgs<T> args() const {
    GemmArgs<T> g{};
    g.M = M, g.N = N, g.K = K;
    g.a = a.data(), g.a_row = a_row, g.a_col = a_col;
    g.b = b.data(), g.b_row = b_row, g.b_col = b_col;
    return g;
  }
};

// M x N each; column sums of c, or of activated where there is no c.
struct Reference {
  std::vector<double> c, activated, column_sum;
};

inline double forward(Activation activation, double x) {
  switch (activation) {
#define MLP_CASE(name, Functor, saves) \
  case Activation::name:               \
    return Functor::forward(Vec<double>(x)).v;
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
  return NAN;
}
inline double backward(Activation activation, double dy, double saved) {
  switch (activation) {
#define MLP_CASE(name, Functor, saves) \
  case Activation::name:               \
    return Functor::backward(Vec<double>(dy), Vec<double>(saved)).v;
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
  return NAN;
}

// The sums alone, M x N.
template <class T>
std::vector<double> sums(const Operands<T>& x) {
  std::vector<double> all(x.M * x.N);
  for (int64_t m = 0; m < x.M; ++m) {
    for (int64_t n = 0; n < x.N; ++n) {
      for (int64_t k = 0; k < x.K; ++k) {
        all[m * x.N + n] += x.a.at(m * x.a_row + k * x.a_col) * x.b.at(k * x.b_row + n * x.b_col);
      }
    }
  }
  return all;
}

template <class T>
Reference reference(const Operands<T>& x, const GemmArgs<T>& g) {
  using check::rounded;
  using check::value_of;
  const std::vector<double> products = sums(x);
  Reference r;
  r.c.resize(g.M * g.N), r.activated.resize(g.M * g.N), r.column_sum.resize(g.N);
  for (int64_t m = 0; m < g.M; ++m) {
    for (int64_t n = 0; n < g.N; ++n) {
      double sum = products[m * g.N + n];
      if (g.bias) sum += value_of(g.bias[n]);
      if (sizeof(T) == 2 || std::fabs(sum) > 1e30) sum = value_of(rounded<T>(sum));  // may overflow
      double& c = r.c[m * g.N + n];
      double& activated = r.activated[m * g.N + n];
      c = sum, activated = forward(g.activation, sum);
      if (g.saved) {
        c = backward(g.activation, sum, value_of(g.saved[m * g.ld_saved + n]));
      } else if (!g.activated) {
        c = activated;
      }
      r.column_sum[n] += g.c ? c : activated;
    }
  }
  return r;
}

// Like expect_close for rows of N elements, one every ld, with nothing written between them.
template <class T>
void compare(const Buffer<T>& result, const std::vector<double>& expected, int64_t N, int64_t ld,
             double most, double floor, const char* what) {
  Buffer<T> packed(expected.size());
  for (size_t i = 0; i < expected.size(); ++i) packed[i] = result[i / N * ld + i % N];
  check::expect_close(packed, expected, most, floor, what);
  check::expect(result.intact(), "nothing is written outside");
  for (size_t i = 0; i < result.size(); ++i) {
    T poison;
    std::memset(&poison, 0xFF, sizeof poison);
    if (int64_t(i) % ld >= N && std::memcmp(&result[i], &poison, sizeof poison) != 0) {
      check::fail("%s: a write between rows at %zu", what, i);
    }
  }
}

}  // namespace
}  // namespace mlp_ext::cuda
