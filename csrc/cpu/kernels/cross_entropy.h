// Softmax cross-entropy: loss and gradient of a row while it is in L1. Logits are shifted by the
// row's maximum m; with z = x - m, S = sum e^z and the target distribution q (one-hot, smoothed,
// weighted) of sum Q,
//   loss = Q log S - sum_c q_c z_c,      grad_c = scale (Q e^z_c / S - q_c).

MLP_NAMESPACE_BEGIN

// The row's maximum; NaN lanes may be lost here, the sum of exponentials brings them back.
template <class T>
T row_max(const T* x, int64_t n) {
  using V = Vec<T>;
  V most(-std::numeric_limits<T>::infinity());
  int64_t c = 0;
  for (; c + V::kWidth <= n; c += V::kWidth) most = max(most, V::load(x + c));
  T result = reduce_max(most);
  for (; c < n; ++c) result = x[c] > result ? x[c] : result;
  return result;
}

// The exponentials of a row, summed: the target's apart from the rest, so that neither the gradient
// at the target, -(rest / S), nor log S near 1 loses digits when the prediction is confident.
struct ExpSums {
  double target, rest;
};

// e^z is left in `e` if it is not null. Vectors are added up in blocks, the blocks in double.
template <class T>
ExpSums sum_exp(const T* x, T m, int64_t target, T* e, int64_t n) {
  using V = Vec<T>;
  constexpr int64_t kW = V::kWidth, kBlock = 32 * kW;
  const V shift(m);
  ExpSums sums{0, 0};
  for (int64_t block = 0; block < n; block += kBlock) {
    const int64_t end = std::min(n, block + kBlock);
    V sum(T(0));
    for (int64_t c = block; c < end; c += kW) {
      const auto lanes = V::first(end - c);
      V power = select(lanes, exp(V::load(x + c, lanes) - shift), V(T(0)));
      if (e) power.store(e + c, lanes);
      if (c <= target && target < c + kW) {
        T values[kW];
        power.store(values);
        sums.target = double(values[target - c]);
        values[target - c] = T(0);
        power = V::load(values);
      }
      sum = sum + power;
    }
    sums.rest += double(reduce_add(sum));
  }
  return sums;
}

// sum_c weight_c z_c (weight 1 if null), for label smoothing.
template <class T>
double weighted_sum(const T* x, T m, const T* weight, int64_t n) {
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) {
    const double z = double(x[c]) - double(m);
    sum += weight ? z * double(weight[c]) : z;
  }
  return sum;
}

// e^z in `grad` becomes factor * e^z - smooth * weight: the gradient, but for the target's.
template <class T>
void scale_exponentials(T* grad, T factor, T smooth, const T* weight, int64_t n) {
  using V = Vec<T>;
  const V scale(factor), uniform(-smooth);
  for (int64_t c = 0; c < n; c += V::kWidth) {
    const auto lanes = V::first(n - c);
    const V power = V::load(grad + c, lanes);
    const V less = weight ? uniform * V::load(weight + c, lanes) : uniform;
    fma(scale, power, less).store(grad + c, lanes);
  }
}

// A row's loss is total * log(sum) + rest.
struct RowLoss {
  double total, sum, rest;
  double value() const { return total * std::log(sum) + rest; }
};

template <class T>
RowLoss cross_entropy_row(const CrossEntropyArgs<T>& p, int64_t row) {
  const int64_t target = p.target[row];
  T* grad = p.grad ? p.grad + row * p.ld_grad : nullptr;
  if (target == p.ignore_index) {
    if (grad) std::memset(grad, 0, p.classes * sizeof(T));
    return {0, 1, 0};
  }
  const T* x = p.logits + row * p.ld_logits;
  const T m = row_max(x, p.classes);
  const ExpSums e = sum_exp(x, m, target, grad, p.classes);
  const double sum = e.target + e.rest;
  const double smooth = p.label_smoothing / double(p.classes);
  const double target_weight = p.weight ? double(p.weight[target]) : 1.0;
  const double hit = (1 - p.label_smoothing) * target_weight;
  const double total = hit + smooth * p.weight_sum;
  double rest = -hit * (double(x[target]) - double(m));
  if (smooth != 0) rest -= smooth * weighted_sum(x, m, p.weight, p.classes);
  if (grad) {
    scale_exponentials(grad, T(p.scale * total / sum), T(p.scale * smooth), p.weight, p.classes);
    const double uniform = smooth * (p.weight_sum * e.target / sum - target_weight);
    grad[target] = T(p.scale * (uniform - hit * e.rest / sum));
  }
  return {total, sum, rest};
}

// The logarithms of a group of rows are taken as one, of the product of their sums (each between 1
// and the number of classes): with few classes a logarithm is a third of a row's time.
template <class T>
double cross_entropy(const CrossEntropyArgs<T>& p, Range rows) {
  constexpr int64_t kGroup = 16;
  const bool grouped = !p.row_loss && !p.weight && p.label_smoothing == 0;
  double loss = 0;
  for (int64_t begin = rows.begin; begin < rows.end; begin += kGroup) {
    const int64_t end = std::min(rows.end, begin + kGroup);
    double product = 1;
    for (int64_t row = begin; row < end; ++row) {
      const RowLoss r = cross_entropy_row(p, row);
      if (grouped) {
        product *= r.sum;
        loss += r.rest;
        continue;
      }
      const double value = r.value();
      if (p.row_loss) p.row_loss[row] = T(value);
      loss += value;
    }
    if (grouped) loss += std::log(product);
  }
  return loss;
}

MLP_NAMESPACE_END
