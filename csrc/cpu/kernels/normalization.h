// Batch and layer normalization, y = (x - mean) rstd gamma + beta: the statistics, the product, and
// both gradients. Mean and variance are passes over what is by then in L1 or L2, and sums over
// rows are made in levels (16 rows, 256 rows, all), as in activation_backward.h.

MLP_NAMESPACE_BEGIN

// NV vectors of columns from column n on, the last ones masked.
template <class T, int NV>
struct NormColumns {
  using V = Vec<T>;
  using Vectors = V[NV];

  const NormArgs<T>& p;
  int64_t n;
  typename V::Mask lanes[NV];

  NormColumns(const NormArgs<T>& args, int64_t begin, int64_t end) : p(args), n(begin) {
    for (int j = 0; j < NV; ++j) lanes[j] = V::first(end - n - j * V::kWidth);
  }

  MLP_INLINE V at(const T* matrix, int64_t ld, int64_t m, int j) const {
    return V::load(matrix + m * ld + n + j * V::kWidth, lanes[j]);
  }
  MLP_INLINE void load(const T* values, V otherwise, Vectors& out) const {
    for (int j = 0; j < NV; ++j) {
      out[j] = values ? V::load(values + n + j * V::kWidth, lanes[j]) : otherwise;
    }
  }
  MLP_INLINE void store(const Vectors& in, T* values) const {
    for (int j = 0; j < NV; ++j) in[j].store(values + n + j * V::kWidth, lanes[j]);
  }

  // total = the sums of term(*this, m, j) over `rows`.
  template <class Term>
  MLP_INLINE void sum(Range rows, const Term& term, Vectors& total) const {
    constexpr int64_t kBlock = 16, kSpan = 256;
    for (int j = 0; j < NV; ++j) total[j] = V(T(0));
    for (int64_t span = rows.begin; span < rows.end; span += kSpan) {
      const int64_t span_end = std::min(rows.end, span + kSpan);
      Vectors sums;
      for (int j = 0; j < NV; ++j) sums[j] = V(T(0));
      for (int64_t begin = span; begin < span_end; begin += kBlock) {
        const int64_t end = std::min(span_end, begin + kBlock);
        Vectors block;
        for (int j = 0; j < NV; ++j) block[j] = V(T(0));
        for (int64_t m = begin; m < end; ++m) {
          MLP_UNROLL
          for (int j = 0; j < NV; ++j) block[j] = block[j] + term(*this, m, j);
        }
        for (int j = 0; j < NV; ++j) sums[j] = sums[j] + block[j];
      }
      for (int j = 0; j < NV; ++j) total[j] = total[j] + sums[j];
    }
  }
};

// The terms of the sums over rows; C is a NormColumns.
template <class T>
struct ValueOfX {
  template <class C>
  MLP_INLINE Vec<T> operator()(const C& c, int64_t m, int j) const {
    return c.at(c.p.x, c.p.ld_x, m, j);
  }
};
template <class T>
struct ValueOfDy {
  template <class C>
  MLP_INLINE Vec<T> operator()(const C& c, int64_t m, int j) const {
    return c.at(c.p.dy, c.p.ld_dy, m, j);
  }
};
template <class T>
struct DistanceToMean {
  const Vec<T>* mean;
  template <class C>
  MLP_INLINE Vec<T> operator()(const C& c, int64_t m, int j) const {
    return c.at(c.p.x, c.p.ld_x, m, j) - mean[j];
  }
};
template <class T>
struct SquareAroundMean {
  const Vec<T>* mean;
  template <class C>
  MLP_INLINE Vec<T> operator()(const C& c, int64_t m, int j) const {
    const Vec<T> distance = c.at(c.p.x, c.p.ld_x, m, j) - mean[j];
    return distance * distance;
  }
};
template <class T>
struct DyTimesNormalized {
  const Vec<T>*mean, *rstd;  // of the columns; unused where the statistics are the rows'
  template <class C>
  MLP_INLINE Vec<T> operator()(const C& c, int64_t m, int j) const {
    const Vec<T> center = c.p.per_row ? Vec<T>(c.p.mean[m]) : mean[j];
    const Vec<T> scale = c.p.per_row ? Vec<T>(c.p.rstd[m]) : rstd[j];
    return c.at(c.p.dy, c.p.ld_dy, m, j) * ((c.at(c.p.x, c.p.ld_x, m, j) - center) * scale);
  }
};

template <class T, int NV>
void column_statistics(const NormColumns<T, NV>& c) {
  using V = Vec<T>;
  const NormArgs<T>& p = c.p;
  const Range rows{0, p.rows};
  const V count{T(p.rows)};
  V mean[NV], variance[NV], rstd[NV];
  c.sum(rows, ValueOfX<T>{}, mean);
  for (int j = 0; j < NV; ++j) mean[j] = mean[j] / count;
  // The mean of what is left: without it that of equal rows may differ from their value in the last
  // place, which y would show 1 / sqrt(eps) times. Of an infinite mean nothing is left.
  V rest[NV];
  c.sum(rows, DistanceToMean<T>{mean}, rest);
  for (int j = 0; j < NV; ++j) {
    const V nearer = mean[j] + rest[j] / count;
    mean[j] = select(nearer == nearer, nearer, mean[j]);
  }
  c.sum(rows, SquareAroundMean<T>{mean}, variance);
  for (int j = 0; j < NV; ++j) {
    variance[j] = variance[j] / count;
    rstd[j] = V(T(1)) / sqrt(variance[j] + V(T(p.eps)));
  }
  c.store(mean, p.mean);
  c.store(variance, p.variance);
  c.store(rstd, p.rstd);
}

// The sum over one row of x - center, or of its square, in blocks of 32 vectors.
template <class T, bool kSquare>
T row_sum(const T* x, int64_t n, T center) {
  using V = Vec<T>;
  constexpr int64_t kBlock = 32 * V::kWidth;
  T total(0);
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(n, begin + kBlock);
    V sum(T(0));
    for (int64_t i = begin; i < end; i += V::kWidth) {
      const auto lanes = V::first(end - i);
      const V value = select(lanes, V::load(x + i, lanes) - V(center), V(T(0)));
      sum = sum + (kSquare ? value * value : value);
    }
    total += reduce_add(sum);
  }
  return total;
}

template <class T>
void row_statistics(const NormArgs<T>& p, Range rows) {
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    const T* x = p.x + m * p.ld_x;
    const T mean = row_sum<T, false>(x, p.columns, T(0)) / T(p.columns);
    const T variance = row_sum<T, true>(x, p.columns, mean) / T(p.columns);
    p.mean[m] = mean;
    p.rstd[m] = T(1) / std::sqrt(variance + T(p.eps));
  }
}

constexpr int kNormVectors = 4;

template <class T>
void norm_statistics(const NormArgs<T>& p, Range part) {
  if (p.per_row) return row_statistics(p, part);
  constexpr int64_t kStrip = kNormVectors * Vec<T>::kWidth;
  int64_t n = part.begin;
  for (; n + kStrip <= part.end; n += kStrip) {
    column_statistics(NormColumns<T, kNormVectors>(p, n, part.end));
  }
  for (; n < part.end; n += Vec<T>::kWidth) column_statistics(NormColumns<T, 1>(p, n, part.end));
}

template <class T>
void normalize(const NormArgs<T>& p, Range rows, Range columns) {
  using V = Vec<T>;
  for (int64_t n = columns.begin; n < columns.end; n += V::kWidth) {
    const NormColumns<T, 1> c(p, n, columns.end);
    V gamma[1], beta[1], mean[1], rstd[1];
    c.load(p.gamma, V(T(1)), gamma);
    c.load(p.beta, V(T(0)), beta);
    c.load(p.per_row ? nullptr : p.mean, V(T(0)), mean);
    c.load(p.per_row ? nullptr : p.rstd, V(T(0)), rstd);
    for (int64_t m = rows.begin; m < rows.end; ++m) {
      const V center = p.per_row ? V(p.mean[m]) : mean[0];
      const V scale = p.per_row ? V(p.rstd[m]) : rstd[0];
      const V normalized = (c.at(p.x, p.ld_x, m, 0) - center) * scale;
      fma(normalized, gamma[0], beta[0]).store(p.y + m * p.ld_y + n, c.lanes[0]);
    }
  }
}

template <class T, int NV>
void parameter_grads(const NormColumns<T, NV>& c, Range rows) {
  using V = Vec<T>;
  const NormArgs<T>& p = c.p;
  V sum[NV];
  if (p.dgamma) {
    V mean[NV], rstd[NV];
    c.load(p.per_row ? nullptr : p.mean, V(T(0)), mean);
    c.load(p.per_row ? nullptr : p.rstd, V(T(0)), rstd);
    c.sum(rows, DyTimesNormalized<T>{mean, rstd}, sum);
    c.store(sum, p.dgamma);
  }
  if (p.dbeta) {
    c.sum(rows, ValueOfDy<T>{}, sum);
    c.store(sum, p.dbeta);
  }
}

template <class T>
void norm_parameter_grads(const NormArgs<T>& p, Range rows, Range columns) {
  constexpr int64_t kStrip = kNormVectors * Vec<T>::kWidth;
  int64_t n = columns.begin;
  for (; n + kStrip <= columns.end; n += kStrip) {
    parameter_grads(NormColumns<T, kNormVectors>(p, n, columns.end), rows);
  }
  for (; n < columns.end; n += Vec<T>::kWidth) {
    parameter_grads(NormColumns<T, 1>(p, n, columns.end), rows);
  }
}

// dx = gamma rstd (dy - mean(dy) - xhat mean(dy xhat)) with the means of the column, which are
// there as dbeta / rows and dgamma / rows; or gamma rstd dy, where the statistics are constants.
template <class T>
void batch_norm_input_grad(const NormArgs<T>& p, Range rows, Range columns) {
  using V = Vec<T>;
  const V count{T(p.rows)};
  for (int64_t n = columns.begin; n < columns.end; n += V::kWidth) {
    const NormColumns<T, 1> c(p, n, columns.end);
    V gamma[1], mean[1], rstd[1], mean_dy[1], mean_product[1];
    c.load(p.gamma, V(T(1)), gamma);
    c.load(p.mean, V(T(0)), mean);
    c.load(p.rstd, V(T(0)), rstd);
    c.load(p.constant_statistics ? nullptr : p.dbeta, V(T(0)), mean_dy);
    c.load(p.constant_statistics ? nullptr : p.dgamma, V(T(0)), mean_product);
    const V scale = gamma[0] * rstd[0];
    const V slope = mean_product[0] / count * rstd[0], shift = mean_dy[0] / count;
    for (int64_t m = rows.begin; m < rows.end; ++m) {
      V dx = c.at(p.dy, p.ld_dy, m, 0);
      if (!p.constant_statistics) {
        dx = dx - shift - slope * (c.at(p.x, p.ld_x, m, 0) - mean[0]);
      }
      (scale * dx).store(p.dx + m * p.ld_dx + n, c.lanes[0]);
    }
  }
}

// dx = rstd (g - mean(g) - xhat mean(g xhat)) with g = dy gamma and the means of the row.
template <class T>
void layer_norm_input_grad(const NormArgs<T>& p, Range rows) {
  using V = Vec<T>;
  constexpr int64_t kBlock = 32 * V::kWidth;
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    const T *x = p.x + m * p.ld_x, *dy = p.dy + m * p.ld_dy;
    T* dx = p.dx + m * p.ld_dx;
    const V mean(p.mean[m]), rstd(p.rstd[m]);
    T sum_g(0), sum_product(0);
    for (int64_t begin = 0; begin < p.columns; begin += kBlock) {
      const int64_t end = std::min(p.columns, begin + kBlock);
      V g_block(T(0)), product_block(T(0));
      for (int64_t n = begin; n < end; n += V::kWidth) {
        const auto lanes = V::first(end - n);
        const V gamma = p.gamma ? V::load(p.gamma + n, lanes) : V(T(1));
        const V g = V::load(dy + n, lanes) * gamma;
        g_block = g_block + g;
        const V xhat = select(lanes, (V::load(x + n, lanes) - mean) * rstd, V(T(0)));
        product_block = fma(g, xhat, product_block);
      }
      sum_g += reduce_add(g_block);
      sum_product += reduce_add(product_block);
    }
    const V mean_g(sum_g / T(p.columns)), mean_product(sum_product / T(p.columns));
    for (int64_t n = 0; n < p.columns; n += V::kWidth) {
      const auto lanes = V::first(p.columns - n);
      const V gamma = p.gamma ? V::load(p.gamma + n, lanes) : V(T(1));
      const V xhat = (V::load(x + n, lanes) - mean) * rstd;
      const V g = V::load(dy + n, lanes) * gamma;
      (rstd * (g - mean_g - xhat * mean_product)).store(dx + n, lanes);
    }
  }
}

template <class T>
void norm_input_grad(const NormArgs<T>& p, Range rows, Range columns) {
  if (p.per_row) return layer_norm_input_grad(p, rows);
  batch_norm_input_grad(p, rows, columns);
}

MLP_NAMESPACE_END
