// Softmax cross-entropy, row by row: loss and gradient of a row while it is in L1, lanes along the
// classes. Logits are shifted by the row's maximum m; with z = x - m, S = sum e^z and the target
// distribution q (one-hot, smoothed, weighted) of sum Q,
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

// 0, 1, 2, ...
template <class T>
constexpr T kLaneNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// The exponentials of a row, summed: the target's apart from the rest, so that neither the gradient
// at the target, -(rest / S), nor log S near 1 loses digits when the prediction is confident.
struct ExpSums {
  double target, rest;
};

// The exponentials of classes [begin, end), into `e` if it is not null, and added to the lanes of
// `sum`; that of the target, if it is among them, into `at_target`.
template <bool kHasTarget, class T>
void exp_chunk(const T* x, Vec<T> m, int64_t target, T* e, Range classes, Vec<T>& sum,
               Vec<T>& at_target) {
  using V = Vec<T>;
  const V lane_numbers = V::load(kLaneNumbers<T>), zero(T(0));
  for (int64_t c = classes.begin; c < classes.end; c += V::kWidth) {
    const auto lanes = V::first(classes.end - c);
    V power = select(lanes, exp(V::load(x + c, lanes) - m), zero);
    if (e) power.store(e + c, lanes);
    if constexpr (kHasTarget) {
      const auto here = lane_numbers == V(T(target - c));
      at_target = select(here, power, at_target);
      power = select(here, zero, power);
    }
    sum = sum + power;
  }
}

// Vectors are added up in blocks, the blocks in double. The target is looked for in the four
// vectors about it: a branch to its own alone is mispredicted in most rows (AVX2, 20 classes: 63 ns
// a row, 40 so), and looking in all of them costs a seventh at 1000 classes.
template <class T>
ExpSums sum_exp(const T* x, T m, int64_t target, T* e, int64_t n) {
  using V = Vec<T>;
  constexpr int64_t kChunk = 4 * V::kWidth, kBlock = 8 * kChunk;
  const V shift(m);
  const int64_t near = target / kChunk * kChunk;
  ExpSums sums{0, 0};
  V at_target(T(0));
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(n, begin + kBlock);
    const int64_t low = std::min(std::max(begin, near), end);
    const int64_t high = std::min(std::max(begin, near + kChunk), end);
    V sum(T(0));
    exp_chunk<false>(x, shift, target, e, {begin, low}, sum, at_target);
    exp_chunk<true>(x, shift, target, e, {low, high}, sum, at_target);
    exp_chunk<false>(x, shift, target, e, {high, end}, sum, at_target);
    sums.rest += double(reduce_add(sum));
  }
  sums.target = double(reduce_add(at_target));
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

// Adds up losses of the form log(sum) + rest. The logarithms of many rows are taken as one, of the
// product of their sums (each from 1 to the number of classes): with few classes a logarithm is a
// third of a row's time.
class LossSum {
 public:
  void add(double sum, double rest) {
    product_ *= sum;
    loss_ += rest;
    if (!(product_ < 1e100)) take_log();
  }
  void add(double loss) { loss_ += loss; }
  double value() {
    take_log();
    return loss_;
  }

 private:
  void take_log() {
    loss_ += std::log(product_);
    product_ = 1;
  }

  double loss_ = 0, product_ = 1;
};

// True if no row's loss is wanted for itself, and each is one logarithm and a rest: the targets'
// weights, which are 1, add up to 1 in each row.
template <class T>
bool takes_logs_together(const CrossEntropyArgs<T>& p) {
  return p.target && !p.row_loss && !p.weight;
}

// The row's target is read once, and checked as it was read (see kernel_table.h).
template <class T>
void cross_entropy_row(const CrossEntropyArgs<T>& p, int64_t row, LossSum& loss) {
  const int64_t target = __atomic_load_n(p.target + row, __ATOMIC_RELAXED);
  T* grad = p.grad ? p.grad + row * p.ld_grad : nullptr;
  const bool ignored = target == p.ignore_index;
  if (ignored || static_cast<uint64_t>(target) >= static_cast<uint64_t>(p.classes)) {
    const T otherwise = ignored ? T(0) : std::numeric_limits<T>::quiet_NaN();
    for (int64_t c = 0; grad && c < p.classes; ++c) grad[c] = otherwise;
    if (p.row_loss) p.row_loss[row] = otherwise;
    loss.add(double(otherwise));
    return;
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
  if (takes_logs_together(p)) return loss.add(sum, rest);
  const double value = total * std::log(sum) + rest;
  if (p.row_loss) p.row_loss[row] = T(value);
  loss.add(value);
}

// Of the probabilities q, smoothed and weighted: keep * q[c] * weight[c] + smooth * weight[c].
template <class T>
Vec<T> smoothed(Vec<T> q, Vec<T> keep, Vec<T> smooth, Vec<T> weight) {
  return fma(keep, q, smooth) * weight;
}

template <class T>
void probabilities_row(const CrossEntropyArgs<T>& p, int64_t row, LossSum& loss) {
  using V = Vec<T>;
  // A lone lane has no others among which its rounding errors average out.
  constexpr int64_t kW = V::kWidth, kBlock = kW == 1 ? 8 : 32 * kW;
  const T* x = p.logits + row * p.ld_logits;
  const T* q = p.probabilities + row * p.ld_probabilities;
  T* grad = p.grad ? p.grad + row * p.ld_grad : nullptr;
  const V m(row_max(x, p.classes));
  const V keep(T(1 - p.label_smoothing)), smooth(T(p.label_smoothing / double(p.classes)));
  double sum = 0, total = 0, rest = 0;
  for (int64_t block = 0; block < p.classes; block += kBlock) {
    const int64_t end = std::min(p.classes, block + kBlock);
    V exps(T(0)), targets(T(0)), products(T(0));
    for (int64_t c = block; c < end; c += kW) {
      const auto lanes = V::first(end - c);
      const V weight = p.weight ? V::load(p.weight + c, lanes) : V(T(1));
      const V z = V::load(x + c, lanes) - m;
      const V power = select(lanes, exp(z), V(T(0)));
      const V target =
          select(lanes, smoothed(V::load(q + c, lanes), keep, smooth, weight), V(T(0)));
      if (grad) power.store(grad + c, lanes);
      exps = exps + power;
      targets = targets + target;
      products = products + select(lanes, target * z, V(T(0)));
    }
    sum += double(reduce_add(exps));
    total += double(reduce_add(targets));
    rest -= double(reduce_add(products));
  }
  if (grad) {
    const V factor(T(p.scale * total / sum)), scale{T(-p.scale)};
    for (int64_t c = 0; c < p.classes; c += kW) {
      const auto lanes = V::first(p.classes - c);
      const V weight = p.weight ? V::load(p.weight + c, lanes) : V(T(1));
      const V target = smoothed(V::load(q + c, lanes), keep, smooth, weight);
      fma(factor, V::load(grad + c, lanes), scale * target).store(grad + c, lanes);
    }
  }
  const double value = total * std::log(sum) + rest;
  if (p.row_loss) p.row_loss[row] = T(value);
  loss.add(value);
}

MLP_NAMESPACE_END
