// Softmax cross-entropy with one row a lane: for rows of few classes, and for rows side by side.
//
// The formulas are those of cross_entropy_rows.h. All sums over classes stay within their lane, so
// a row has neither a reduction nor a partial vector of its own. Loss and gradient of a float32 row
// on one Zen 4 core, AVX-512, row form and this one: 31 and 5.3 ns at 64 x 3, 31 and 6.2 at 256 x
// 4, 31 and 12 at 64 x 10, 31 and 18 at 64 x 16; AVX2: 31 and 7.6, 31 and 8.5, 34 and 19, 31 and
// 28. One full vector of rows costs as much as one row of it.

MLP_NAMESPACE_BEGIN

// At most Vec<T>::kWidth rows; class c of row r is element c * stride + r.
template <class T>
struct Lanes {
  const T* x;
  const T* q;  // probabilities; null: class indices
  T* e;        // receives the exponentials, then the gradient; may be x, or null
  int64_t stride;
  Range rows;
};

// Classes that are summed before the sum goes to the others': a lane's sum of a thousand loses
// digits.
constexpr int64_t kSummedClasses = 32;

template <class T>
Vec<T> max_of_lanes(const Lanes<T>& b, int64_t classes) {
  using V = Vec<T>;
  const auto on = V::first(b.rows.size());
  V most(-std::numeric_limits<T>::infinity());
  for (int64_t c = 0; c < classes; ++c) most = max(most, V::load(b.x + c * b.stride, on));
  return most;
}

// The lanes' class indices as numbers of type T, and their weights. -1 for a lane without a row,
// and for a target that is ignored or no class; `otherwise` is what such a row's loss and gradient
// are. T counts far enough: lanes_fit sees to it.
template <class T>
struct LaneTargets {
  alignas(64) T index[Vec<T>::kWidth], weight[Vec<T>::kWidth], otherwise[Vec<T>::kWidth];
};

// Each index is read from p.target once, and checked as it was read (see kernel_table.h).
template <class T>
void read_targets(const CrossEntropyArgs<T>& p, Range rows, LaneTargets<T>& targets) {
  constexpr int64_t kW = Vec<T>::kWidth;
  alignas(64) int64_t target[kW];
  if (rows.size() == kW) {
    std::memcpy(target, p.target + rows.begin, sizeof target);
  } else {
    for (int64_t r = 0; r < kW; ++r) {
      target[r] = r < rows.size() ? p.target[rows.begin + r] : p.ignore_index;
    }
  }
  // From here on the compiler knows nothing of where these came from, and cannot read there again.
  // (Atomic reads would keep it from making vectors of the loops.)
  asm volatile("" : "+m"(target));
  for (int64_t r = 0; r < kW; ++r) {
    const bool ignored = target[r] == p.ignore_index;
    const bool is_class = static_cast<uint64_t>(target[r]) < static_cast<uint64_t>(p.classes);
    targets.index[r] = is_class && !ignored ? T(target[r]) : T(-1);
    targets.otherwise[r] = is_class || ignored ? T(0) : std::numeric_limits<T>::quiet_NaN();
  }
  for (int64_t r = 0; r < kW; ++r) {
    targets.weight[r] = p.weight && targets.index[r] >= 0 ? p.weight[target[r]] : T(1);
  }
}

template <class T>
void cross_entropy_lanes(const CrossEntropyArgs<T>& p, const Lanes<T>& b, LossSum& loss) {
  using V = Vec<T>;
  constexpr int64_t kW = V::kWidth;
  const auto on = V::first(b.rows.size());
  LaneTargets<T> targets{};
  read_targets(p, b.rows, targets);
  const V index = V::load(targets.index), otherwise = V::load(targets.otherwise);
  const double smooth = p.label_smoothing / double(p.classes), of_all = smooth * p.weight_sum;

  const V m = max_of_lanes(b, p.classes), zero(T(0));
  V target = zero, rest = zero, z_target = zero, z_sum = zero;
  V far_rest = zero, far_z = zero;
  for (int64_t c = 0; c < p.classes; ++c) {
    const V z = V::load(b.x + c * b.stride, on) - m, power = exp(z);
    if (b.e) power.store(b.e + c * b.stride, on);
    const auto here = index == V(T(c));
    target = select(here, power, target);
    rest = rest + select(here, zero, power);
    z_target = select(here, z, z_target);
    if (smooth != 0) z_sum = p.weight ? fma(z, V(p.weight[c]), z_sum) : z_sum + z;
    if (c % kSummedClasses == kSummedClasses - 1) {
      far_rest = far_rest + rest, rest = zero;
      far_z = far_z + z_sum, z_sum = zero;
    }
  }
  rest = rest + far_rest;
  z_sum = z_sum + far_z;
  const auto counts = index > V(T(-1));

  // What is one number a row is worked out in double.
  alignas(64) T in_target[kW], in_rest[kW], z[kW], z_all[kW];
  select(counts, target, V(T(1))).store(in_target);
  select(counts, rest, zero).store(in_rest);
  select(counts, z_target, otherwise).store(z);
  select(counts, z_sum, zero).store(z_all);
  double sum[kW], left[kW];
  for (int64_t r = 0; r < kW; ++r) {
    sum[r] = double(in_target[r]) + double(in_rest[r]);
    left[r] = (p.label_smoothing - 1) * double(z[r]) - smooth * double(z_all[r]);
  }

  if (b.e) {
    alignas(64) T factors[kW], at_targets[kW];
    for (int64_t r = 0; r < kW; ++r) {
      const double weight = double(targets.weight[r]), hit = (1 - p.label_smoothing) * weight;
      const double scale = p.scale / sum[r];
      factors[r] = T(scale * (hit + of_all));
      at_targets[r] = T(scale * (of_all * double(in_target[r]) - hit * double(in_rest[r])) -
                        p.scale * smooth * weight);
    }
    const V factor = V::load(factors), at_target = V::load(at_targets);
    const V uniform{T(-p.scale * smooth)};
    for (int64_t c = 0; c < p.classes; ++c) {
      const V power = V::load(b.e + c * b.stride, on);
      const V less = p.weight ? uniform * V(p.weight[c]) : uniform;
      const V grad = select(index == V(T(c)), at_target, fma(factor, power, less));
      select(counts, grad, otherwise).store(b.e + c * b.stride, on);
    }
  }

  if (takes_logs_together(p)) {
    for (int64_t half = kW / 2; half > 0; half /= 2) {
      for (int64_t r = 0; r < half; ++r) sum[r] *= sum[r + half], left[r] += left[r + half];
    }
    return loss.add(sum[0], left[0]);
  }
  for (int64_t r = 0; r < b.rows.size(); ++r) {
    const double hit = (1 - p.label_smoothing) * double(targets.weight[r]);
    const double total = hit + of_all;
    double value = total * std::log(sum[r]) - hit * double(z[r]) - smooth * double(z_all[r]);
    if (targets.index[r] < 0) value = double(targets.otherwise[r]);
    if (p.row_loss) p.row_loss[b.rows.begin + r] = T(value);
    loss.add(value);
  }
}

template <class T>
void probabilities_lanes(const CrossEntropyArgs<T>& p, const Lanes<T>& b, LossSum& loss) {
  using V = Vec<T>;
  constexpr int64_t kW = V::kWidth;
  const auto on = V::first(b.rows.size());
  const V keep(T(1 - p.label_smoothing)), smooth(T(p.label_smoothing / double(p.classes)));
  const V m = max_of_lanes(b, p.classes), zero(T(0));
  V sum = zero, total = zero, product = zero;
  V far_sum = zero, far_total = zero, far_product = zero;
  for (int64_t c = 0; c < p.classes; ++c) {
    const V z = V::load(b.x + c * b.stride, on) - m, power = exp(z);
    const V weight = p.weight ? V(p.weight[c]) : V(T(1));
    const V target = smoothed(V::load(b.q + c * b.stride, on), keep, smooth, weight);
    if (b.e) power.store(b.e + c * b.stride, on);
    sum = sum + power;
    total = total + target;
    product = fma(target, z, product);
    if (c % kSummedClasses == kSummedClasses - 1) {
      far_sum = far_sum + sum, sum = zero;
      far_total = far_total + total, total = zero;
      far_product = far_product + product, product = zero;
    }
  }
  sum = sum + far_sum;
  total = total + far_total;
  product = product + far_product;
  if (b.e) {
    const V scale{T(-p.scale)}, factor = V(T(p.scale)) * total / sum;
    for (int64_t c = 0; c < p.classes; ++c) {
      const V weight = p.weight ? V(p.weight[c]) : V(T(1));
      const V target = smoothed(V::load(b.q + c * b.stride, on), keep, smooth, weight);
      const V power = V::load(b.e + c * b.stride, on);
      fma(factor, power, scale * target).store(b.e + c * b.stride, on);
    }
  }
  T sums[kW], totals[kW], products[kW];
  sum.store(sums), total.store(totals), product.store(products);
  for (int64_t r = 0; r < b.rows.size(); ++r) {
    const double value = double(totals[r]) * std::log(double(sums[r])) - double(products[r]);
    if (p.row_loss) p.row_loss[b.rows.begin + r] = T(value);
    loss.add(value);
  }
}

template <class T>
void block_of_lanes(const CrossEntropyArgs<T>& p, const Lanes<T>& b, LossSum& loss) {
  if (p.target) {
    cross_entropy_lanes(p, b, loss);
  } else {
    probabilities_lanes(p, b, loss);
  }
}

// Class c of row r from rows[r * ld + c] to lanes[c * stride + r], and back.
template <class T>
void to_lanes(const T* rows, int64_t ld, int64_t classes, int64_t n, T* lanes, int64_t stride) {
  for (int64_t c = 0; c < classes; ++c) {
    for (int64_t r = 0; r < n; ++r) lanes[c * stride + r] = rows[r * ld + c];
  }
}
template <class T>
void from_lanes(const T* lanes, int64_t stride, int64_t classes, int64_t n, T* rows, int64_t ld) {
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t c = 0; c < classes; ++c) rows[r * ld + c] = lanes[c * stride + r];
  }
}

// More classes, and vectors of one lane, take the row form.
constexpr int64_t kMostLaneClasses = 16;

// Four vectors of rows are turned before the first is worked on: a load of the turned rows waits
// until they are stored.
template <class T>
void few_classes(const CrossEntropyArgs<T>& p, Range rows, LossSum& loss) {
  constexpr int64_t kW = Vec<T>::kWidth, kRows = 4 * kW;
  alignas(64) T x[kMostLaneClasses * kRows], q[kMostLaneClasses * kRows];
  for (int64_t begin = rows.begin; begin < rows.end; begin += kRows) {
    const int64_t n = std::min(kRows, rows.end - begin);
    to_lanes(p.logits + begin * p.ld_logits, p.ld_logits, p.classes, n, x, kRows);
    if (!p.target) {
      const T* from = p.probabilities + begin * p.ld_probabilities;
      to_lanes(from, p.ld_probabilities, p.classes, n, q, kRows);
    }
    for (int64_t r = 0; r < n; r += kW) {
      const Range block{begin + r, begin + std::min(r + kW, n)};
      block_of_lanes(p, Lanes<T>{x + r, q + r, x + r, kRows, block}, loss);
    }
    if (!p.grad) continue;
    from_lanes(x, kRows, p.classes, n, p.grad + begin * p.ld_grad, p.ld_grad);
  }
}

template <class T>
void side_by_side(const CrossEntropyArgs<T>& p, Range rows, LossSum& loss) {
  constexpr int64_t kW = Vec<T>::kWidth;
  for (int64_t begin = rows.begin; begin < rows.end; begin += kW) {
    const Range block{begin, std::min(rows.end, begin + kW)};
    block_of_lanes(p,
                   Lanes<T>{p.logits + begin, p.target ? nullptr : p.probabilities + begin,
                            p.grad ? p.grad + begin : nullptr, p.class_stride, block},
                   loss);
  }
}

MLP_NAMESPACE_END
