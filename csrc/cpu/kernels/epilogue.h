// The part of a GEMM's epilogue that does not fit in the microkernel's registers: activations other
// than ReLU, applied to a tile that was stored a moment ago and is still in L1.

MLP_NAMESPACE_BEGIN

template <class F, class T>
void activate_tile(const GemmArgs<T>& g, int64_t m, int64_t n, int64_t mr, int64_t nr) {
  using V = VecOf<T>;
  T* out = g.activated ? g.activated : g.c;
  const int64_t ld_out = g.activated ? g.ld_activated : g.ldc;
  const auto tail = V::first(nr % V::kWidth);
  for (int64_t i = m; i < m + mr; ++i) {
    const T* const from = g.c + i * g.ldc + n;
    T* const to = out + i * ld_out + n;
    for (int64_t j = 0; j < nr; j += V::kWidth) {
      const V y = F::forward(load_of_row<V>(from + j, nr - j, tail));
      store_of_row(y, to + j, nr - j, tail);
    }
  }
}

template <class F, class T>
void differentiate_tile(const GemmArgs<T>& g, int64_t m, int64_t n, int64_t mr, int64_t nr) {
  using V = VecOf<T>;
  const auto tail = V::first(nr % V::kWidth);
  for (int64_t i = m; i < m + mr; ++i) {
    T* const c = g.c + i * g.ldc + n;
    const T* const saved = g.saved + i * g.ld_saved + n;
    for (int64_t j = 0; j < nr; j += V::kWidth) {
      const V dy = load_of_row<V>(c + j, nr - j, tail);
      const V dz = F::backward(dy, load_of_row<V>(saved + j, nr - j, tail));
      store_of_row(dz, c + j, nr - j, tail);
    }
  }
}

// What the microkernel applies in registers, so that the tile needs no second visit.
template <class T>
bool fits_in_registers(const GemmArgs<T>& g) {
  return g.activation == Activation::none ||
         (g.activation == Activation::relu && g.activated == nullptr);
}

template <class T>
void finish_tile(const GemmArgs<T>& whole, int64_t m, int64_t n, int64_t mr, int64_t nr) {
  GemmArgs<T> g = whole;
  // A tile as wide as its matrices is one run of memory: one long row instead of short ones, which
  // a single output (N = 1) would fill with one lane of each vector.
  const bool contiguous =
      nr == g.ldc && (!g.activated || nr == g.ld_activated) && (!g.saved || nr == g.ld_saved);
  if (contiguous) {
    const int64_t first = m * nr + n;
    g.c += first;
    if (g.activated) g.activated += first;
    if (g.saved) g.saved += first;
    m = n = 0;
    nr *= mr;
    mr = 1;
  }
  switch (g.activation) {
#define MLP_CASE(name, Functor, saves)                               \
  case Activation::name:                                             \
    return g.saved ? differentiate_tile<Functor, T>(g, m, n, mr, nr) \
                   : activate_tile<Functor, T>(g, m, n, mr, nr);
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
}

// An activation that no product comes before.
template <class T>
void activation(const ActivationArgs<T>& p, Range rows, Range columns) {
  GemmArgs<T> g{};
  g.c = const_cast<T*>(p.in), g.ldc = p.ld_in;  // only read, as `activated` is set
  g.activated = p.out, g.ld_activated = p.ld_out;
  g.activation = p.activation;
  finish_tile(g, rows.begin, columns.begin, rows.size(), columns.size());
}

MLP_NAMESPACE_END
