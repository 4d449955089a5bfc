// The product for a handful of k (a weight gradient at batch 1 to 8): a sum of K outer products,
// written row by row. C is all the traffic there is, so each row is written from end to end, where
// the microkernel would scatter short pieces of 14 rows. No epilogue.

MLP_NAMESPACE_BEGIN

constexpr int64_t kMostOuterK = 8;

// NV vectors of one row of C, the last one masked by `tail`.
template <class T, int NV>
MLP_INLINE void outer_strip(const GemmArgs<T>& g, const T* a, const T* b,
                            typename Vec<T>::Mask tail, T* c) {
  using V = Vec<T>;
  V sum[NV];
  MLP_UNROLL
  for (int j = 0; j < NV; ++j) sum[j] = V(T(0));
  for (int64_t k = 0; k < g.K; ++k) {
    const V element(a[k * g.a_col]);
    const T* row = b + k * g.b_row;
    MLP_UNROLL
    for (int j = 0; j < NV - 1; ++j) sum[j] = fma(element, V::load(row + j * V::kWidth), sum[j]);
    sum[NV - 1] = fma(element, V::load(row + (NV - 1) * V::kWidth, tail), sum[NV - 1]);
  }
  MLP_UNROLL
  for (int j = 0; j < NV - 1; ++j) sum[j].store(c + j * V::kWidth);
  sum[NV - 1].store(c + (NV - 1) * V::kWidth, tail);
}

template <class T>
bool prefers_outer(const GemmArgs<T>& g) {
  return g.K <= kMostOuterK && g.b_col == 1 && !g.bias && g.activation == Activation::none;
}

template <class T>
void gemm_outer(const GemmArgs<T>& g, Range m, Range n) {
  using V = Vec<T>;
  constexpr int kVectors = 8;
  constexpr int64_t kStrip = kVectors * V::kWidth;
  for (int64_t i = m.begin; i < m.end; ++i) {
    const T* a = g.a + i * g.a_row;
    T* c = g.c + i * g.ldc;
    int64_t j = n.begin;
    for (; j + kStrip <= n.end; j += kStrip) {
      outer_strip<T, kVectors>(g, a, g.b + j, V::first(V::kWidth), c + j);
    }
    for (; j < n.end; j += V::kWidth) {
      outer_strip<T, 1>(g, a, g.b + j, V::first(n.end - j), c + j);
    }
  }
}

MLP_NAMESPACE_END
