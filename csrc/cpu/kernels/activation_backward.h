// dz = dy * f'(saved) and its column sums (the bias gradient) in one pass over a range of columns.
//
// Over some rows and some columns. Rows are summed in levels (4 rows, 16 rows, 256 rows, all),
// which bounds the rounding error by the length of the levels, about as PyTorch's cascade sum does.

MLP_NAMESPACE_BEGIN

constexpr int64_t kRowGroup = 4, kRowBlock = 16, kRowSpan = 256;
constexpr int kColumnVectors = 4;

// Derivatives of a few operations, whose loops over vectors are unrolled. One with an exponential
// in it hides the loop behind its arithmetic, and unrolled 20 times it would be most of the binary.
template <class F>
constexpr bool kIsCheap = std::is_same_v<F, Identity> || std::is_same_v<F, Relu>;

// NV vectors of columns from column n on; fewer at the end of the columns where F is not cheap.
template <class F, class T, int NV>
struct ColumnStrip {
  using V = VecOf<T>;
  using Sums = V[NV];

  const ActivationBackwardArgs<T>& p;
  int64_t n;
  int vectors;  // that are there
  typename V::Mask lanes[NV];

  ColumnStrip(const ActivationBackwardArgs<T>& args, int64_t begin, int64_t end)
      : p(args),
        n(begin),
        vectors(static_cast<int>(std::min<int64_t>(NV, (end - n + V::kWidth - 1) / V::kWidth))) {
    for (int j = 0; j < count(); ++j) lanes[j] = V::first(end - n - j * V::kWidth);
  }

  MLP_INLINE int count() const { return kIsCheap<F> ? NV : vectors; }

  MLP_INLINE V row(int64_t m, int j) const {
    const int64_t at = n + j * V::kWidth;
    V dz = V::load(p.dy + m * p.ld_dy + at, lanes[j]);
    if constexpr (!std::is_same_v<F, Identity>) {
      dz = F::backward(dz, V::load(p.saved + m * p.ld_saved + at, lanes[j]));
    }
    if (p.dz) dz.store(p.dz + m * p.ld_dz + at, lanes[j]);
    return dz;
  }

  // sums += rows [begin, end), at most kRowBlock of them.
  MLP_INLINE void add_block(int64_t begin, int64_t end, Sums& sums) const {
    if constexpr (!kIsCheap<F>) return add_block_in_a_loop(begin, end, sums);
    Sums block;
    MLP_UNROLL
    for (int j = 0; j < NV; ++j) block[j] = V(0);
    int64_t m = begin;
    for (; m + kRowGroup <= end; m += kRowGroup) {
      MLP_UNROLL
      for (int j = 0; j < NV; ++j) {
        const V first = row(m, j) + row(m + 1, j);
        block[j] = block[j] + (first + (row(m + 2, j) + row(m + 3, j)));
      }
    }
    for (; m < end; ++m) {
      MLP_UNROLL
      for (int j = 0; j < NV; ++j) block[j] = block[j] + row(m, j);
    }
    MLP_UNROLL
    for (int j = 0; j < NV; ++j) sums[j] = sums[j] + block[j];
  }

  // The same sums in the same order.
  MLP_INLINE void add_block_in_a_loop(int64_t begin, int64_t end, Sums& sums) const {
    for (int j = 0; j < count(); ++j) {
      V block(0), group[kRowGroup];
      int64_t m = begin;
      for (; m + kRowGroup <= end; m += kRowGroup) {
        for (int64_t i = 0; i < kRowGroup; ++i) group[i] = row(m + i, j);
        block = block + ((group[0] + group[1]) + (group[2] + group[3]));
      }
      for (; m < end; ++m) block = block + row(m, j);
      sums[j] = sums[j] + block;
    }
  }

  void run() const {
    Sums total;
    for (int j = 0; j < NV; ++j) total[j] = V(0);
    for (int64_t span = 0; span < p.rows; span += kRowSpan) {
      const int64_t span_end = std::min(p.rows, span + kRowSpan);
      Sums sums;
      for (int j = 0; j < NV; ++j) sums[j] = V(0);
      for (int64_t m = span; m < span_end; m += kRowBlock) {
        add_block(m, std::min(span_end, m + kRowBlock), sums);
      }
      for (int j = 0; j < count(); ++j) total[j] = total[j] + sums[j];
    }
    if (!p.sum) return;
    for (int j = 0; j < count(); ++j) total[j].store(p.sum + n + j * V::kWidth, lanes[j]);
  }
};

template <class F, class T>
void activation_backward_of(const ActivationBackwardArgs<T>& p, Range columns) {
  constexpr int64_t kW = VecOf<T>::kWidth;
  constexpr int64_t kStrip = kColumnVectors * kW;
  int64_t n = columns.begin;
  for (; kIsCheap<F> ? n + kStrip - kW < columns.end : n < columns.end; n += kStrip) {
    ColumnStrip<F, T, kColumnVectors>(p, n, columns.end).run();
  }
  if constexpr (kIsCheap<F>) {
    for (; n < columns.end; n += kW) ColumnStrip<F, T, 1>(p, n, columns.end).run();
  }
}

template <class T>
void activation_backward(const ActivationBackwardArgs<T>& p, Range columns) {
  switch (p.activation) {
#define MLP_CASE(name, Functor, saves) \
  case Activation::name:               \
    return activation_backward_of<Functor, T>(p, columns);
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
}

MLP_NAMESPACE_END
