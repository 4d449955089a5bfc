// Elementwise losses: value and gradient in one pass over some rows.

MLP_NAMESPACE_BEGIN

// Where `n` elements of one row lie; what is null there is null here.
template <class T>
struct LossRow {
  const T *x, *t, *weight, *pos_weight;
  T *grad, *value;
  int64_t n;
};

// Vectors are added up in blocks, the blocks in double. pos_weight_of_all: without row.pos_weight.
template <class F, class T>
double loss_of_row(const LossRow<T>& row, Vec<T> parameter, Vec<T> pos_weight_of_all,
                   Vec<T> scale) {
  using V = Vec<T>;
  constexpr int64_t kBlock = 32 * V::kWidth;
  double total = 0;
  for (int64_t begin = 0; begin < row.n; begin += kBlock) {
    const int64_t end = std::min(row.n, begin + kBlock);
    V sum(T(0));
    for (int64_t i = begin; i < end; i += V::kWidth) {
      const auto lanes = V::first(end - i);
      const V pos_weight = row.pos_weight ? V::load(row.pos_weight + i, lanes) : pos_weight_of_all;
      LossAt<V> loss =
          F::at(V::load(row.x + i, lanes), V::load(row.t + i, lanes), parameter, pos_weight);
      if (row.weight) {
        const V weight = V::load(row.weight + i, lanes);
        loss.value = loss.value * weight;
        loss.slope = loss.slope * weight;
      }
      sum = sum + select(lanes, loss.value, V(T(0)));
      if (row.grad) (scale * loss.slope).store(row.grad + i, lanes);
      if (row.value) loss.value.store(row.value + i, lanes);
    }
    total += double(reduce_add(sum));
  }
  return total;
}

// True if all rows are one run of elements, each with the same pos_weight.
template <class T>
bool is_one_run(const ElementwiseLossArgs<T>& p) {
  const int64_t n = p.columns;
  return p.ld_input == n && p.ld_target == n && (!p.weight || p.ld_weight == n) &&
         (!p.grad || p.ld_grad == n) && (!p.value || p.ld_value == n) && (!p.pos_weight || n == 1);
}

// Rows in one run are taken as one row: a row costs a partial vector, a reduction and a turn of the
// loops, which for a single output is most of it.
template <class F, class T>
double elementwise_loss_of(const ElementwiseLossArgs<T>& p, Range rows) {
  using V = Vec<T>;
  const V parameter{T(p.parameter)}, scale{T(p.scale)};
  const bool one_run = is_one_run(p);
  const V pos_weight{one_run && p.pos_weight ? *p.pos_weight : T(1)};
  double total = 0;
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    LossRow<T> row{};
    row.x = p.input + m * p.ld_input;
    row.t = p.target + m * p.ld_target;
    if (p.weight) row.weight = p.weight + m * p.ld_weight;
    if (p.grad) row.grad = p.grad + m * p.ld_grad;
    if (p.value) row.value = p.value + m * p.ld_value;
    if (!one_run) row.pos_weight = p.pos_weight;
    row.n = one_run ? rows.size() * p.columns : p.columns;
    total += loss_of_row<F, T>(row, parameter, pos_weight, scale);
    if (one_run) break;
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
