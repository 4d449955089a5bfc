// The product against a k-contiguous B (a layer's forward) for a handful of rows or of columns,
// that is at batch 1 to 8 or with 1 to 4 outputs: each element of C is a dot product of a row of A
// and a row of B^T = W. Both are read in order and never packed; the bound is the bandwidth of the
// larger one. Up to 4 x 4 sums at a time, added up a block of K at a time.

MLP_NAMESPACE_BEGIN

constexpr int64_t kDotRows = 4;      // rows of A that share one reading of W
constexpr int64_t kMostDotRows = 8;  // beyond, packing W costs less than reading it again
constexpr int64_t kMostDotColumns = 4;
constexpr int64_t kDotBlock = 32;  // vectors of K between two additions to the total

template <class T, int MR, int NR>
void dot_tile(int64_t K, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc) {
  using V = Vec<T>;
  constexpr int64_t kBlock = kDotBlock * V::kWidth;
  for (int64_t begin = 0; begin < K; begin += kBlock) {
    const int64_t end = std::min(K, begin + kBlock);
    V acc[MR][NR];
    MLP_UNROLL
    for (int i = 0; i < MR; ++i) {
      MLP_UNROLL
      for (int j = 0; j < NR; ++j) acc[i][j] = V(T(0));
    }
    for (int64_t k = begin; k < end; k += V::kWidth) {
      const auto lanes = V::first(end - k);
      V x[MR];
      MLP_UNROLL
      for (int i = 0; i < MR; ++i) x[i] = V::load(a + i * lda + k, lanes);
      MLP_UNROLL
      for (int j = 0; j < NR; ++j) {
        const V w = V::load(b + j * ldb + k, lanes);
        MLP_UNROLL
        for (int i = 0; i < MR; ++i) acc[i][j] = fma(x[i], w, acc[i][j]);
      }
    }
    MLP_UNROLL
    for (int i = 0; i < MR; ++i) {
      MLP_UNROLL
      for (int j = 0; j < NR; ++j) {
        const T sum = reduce_add(acc[i][j]);
        c[i * ldc + j] = begin == 0 ? sum : c[i * ldc + j] + sum;
      }
    }
  }
}

template <class T, int MR>
void dot_rows(const GemmArgs<T>& g, int64_t m, Range n) {
  const T* a = g.a + m * g.a_row;
  T* c = g.c + m * g.ldc;
  int64_t j = n.begin;
  for (; j + 4 <= n.end; j += 4) {
    dot_tile<T, MR, 4>(g.K, a, g.a_row, g.b + j * g.b_col, g.b_col, c + j, g.ldc);
  }
  for (; j < n.end; ++j) {
    dot_tile<T, MR, 1>(g.K, a, g.a_row, g.b + j * g.b_col, g.b_col, c + j, g.ldc);
  }
}

template <class T>
void add_bias(const GemmArgs<T>& g, Range m, Range n) {
  using V = Vec<T>;
  for (int64_t i = m.begin; i < m.end; ++i) {
    for (int64_t j = n.begin; j < n.end; j += V::kWidth) {
      const auto lanes = V::first(n.end - j);
      T* c = g.c + i * g.ldc + j;
      (V::load(c, lanes) + V::load(g.bias + j, lanes)).store(c, lanes);
    }
  }
}

template <class T>
bool prefers_dot(const GemmArgs<T>& g, Range m) {
  const bool narrow = m.size() <= kMostDotRows || g.N <= kMostDotColumns;
  return narrow && g.a_col == 1 && g.b_row == 1 && g.K >= Vec<T>::kWidth;
}

template <class T>
void gemm_dot(const GemmArgs<T>& g, Range m, Range n) {
  for (int64_t i = m.begin; i < m.end; i += kDotRows) {
    switch (std::min(kDotRows, m.end - i)) {
      case 1:
        dot_rows<T, 1>(g, i, n);
        break;
      case 2:
        dot_rows<T, 2>(g, i, n);
        break;
      case 3:
        dot_rows<T, 3>(g, i, n);
        break;
      default:
        dot_rows<T, 4>(g, i, n);
    }
  }
  if (g.bias) add_bias(g, m, n);
  if (g.activation != Activation::none) {
    finish_tile(g, m.begin, n.begin, m.size(), n.size());
  }
}

MLP_NAMESPACE_END
