// The product against a k-contiguous B (a layer's forward) for a handful of rows or of columns and
// a K that is not short (prefers_dot): each element of C is a dot product of a row of A and a row
// of B^T = W. Both are read in order and never packed; the bound is the bandwidth of the larger
// one. Up to 4 x 4 sums at a time, added up a block of K at a time.

MLP_NAMESPACE_BEGIN

constexpr int64_t kDotRows = 4;  // rows of A that share one reading of W
constexpr int64_t kMostDotColumns = 4;
constexpr int64_t kDotBlock = 32;  // vectors of K between two additions to the total

// The sum of the lanes of each. An ISA with something better overloads it for its float.
template <class T>
MLP_INLINE void sums_of_4(const Vec<T> (&x)[4], T* sums) {
  for (int i = 0; i < 4; ++i) sums[i] = reduce_add(x[i]);
}

// acc += the products of one vector of each of MR rows of A and NR rows of B^T, `lanes` of it if
// kCut.
template <bool kCut, class T, int MR, int NR>
MLP_INLINE void add_products(const T* a, int64_t lda, const T* b, int64_t ldb,
                             typename Vec<T>::Mask lanes, Vec<T> (&acc)[MR][NR]) {
  using V = Vec<T>;
  V x[MR];
  MLP_UNROLL
  for (int i = 0; i < MR; ++i) x[i] = load_cut(a + i * lda, kCut, lanes);
  MLP_UNROLL
  for (int j = 0; j < NR; ++j) {
    const V w = load_cut(b + j * ldb, kCut, lanes);
    MLP_UNROLL
    for (int i = 0; i < MR; ++i) acc[i][j] = fma(x[i], w, acc[i][j]);
  }
}

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
    int64_t k = begin;
    for (; k + V::kWidth <= end; k += V::kWidth) {
      add_products<false>(a + k, lda, b + k, ldb, V::first(0), acc);
    }
    if (k < end) add_products<true>(a + k, lda, b + k, ldb, V::first(end - k), acc);
    MLP_UNROLL
    for (int i = 0; i < MR; ++i) {
      T sums[NR];
      if constexpr (NR == 4) {
        sums_of_4(acc[i], sums);
      } else {
        MLP_UNROLL
        for (int j = 0; j < NR; ++j) sums[j] = reduce_add(acc[i][j]);
      }
      MLP_UNROLL
      for (int j = 0; j < NR; ++j) {
        c[i * ldc + j] = begin == 0 ? sums[j] : c[i * ldc + j] + sums[j];
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

// Beyond Tile::kMostDotRows packing costs less than reading W again. A short K is not worth the
// sums over lanes at its end: from the tables of 1 to 8 rows and 1 to 4 columns at K = 8 to 256
// (1000 x 4 x 16 on Sapphire Rapids: 15 GFLOP/s here and 20 in a tile on AVX2, 9 and 23 on AVX-512;
// at K = 256 42 and 32, 57 and 30).
template <class T>
bool prefers_dot(const GemmArgs<T>& g, Range m) {
  constexpr int64_t kW = Vec<T>::kWidth;
  if (g.a_col != 1 || g.b_row != 1 || g.K < kW) return false;
  if (m.size() <= Tile<T>::kMostDotRows) return m.size() <= 2 || g.K >= 32;
  return g.N <= kMostDotColumns && g.K > 2 * kW * g.N - kW;
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
