// Elementwise losses: value and gradient in one pass over some rows.

MLP_NAMESPACE_BEGIN

template <class F, class T>
double elementwise_loss_of(const ElementwiseLossArgs<T>& p, Range rows) {
  using V = Vec<T>;
  const V parameter{T(p.parameter)}, scale{T(p.scale)};
  double total = 0;
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    const T* x = p.input + m * p.ld_input;
    const T* t = p.target + m * p.ld_target;
    const T* w = p.weight ? p.weight + m * p.ld_weight : nullptr;
    T* grad = p.grad ? p.grad + m * p.ld_grad : nullptr;
    V sum(T(0));
    for (int64_t n = 0; n < p.columns; n += V::kWidth) {
      const auto lanes = V::first(p.columns - n);
      const V pos_weight = p.pos_weight ? V::load(p.pos_weight + n, lanes) : V(T(1));
      LossAt<V> loss = F::at(V::load(x + n, lanes), V::load(t + n, lanes), parameter, pos_weight);
      if (w) {
        const V weight = V::load(w + n, lanes);
        loss.value = loss.value * weight;
        loss.slope = loss.slope * weight;
      }
      sum = sum + select(lanes, loss.value, V(T(0)));
      if (grad) (scale * loss.slope).store(grad + n, lanes);
    }
    total += double(reduce_add(sum));
  }
  return total;
}

template <class T>
double elementwise_loss(const ElementwiseLossArgs<T>& p, Range rows) {
  switch (p.kind) {
#define MLP_CASE(name, Functor) \
  case LossKind::name:          \
    return elementwise_loss_of<Functor, T>(p, rows);
    MLP_FOR_EACH_LOSS(MLP_CASE)
#undef MLP_CASE
  }
  return 0;
}

MLP_NAMESPACE_END
