// The mathematics of one row of softmax cross-entropy, however it is spread over threads.
//
// With the row's maximum m, z = x - m, and coefficients u of the targets that every class has (w of
// label smoothing, the smoothed q w of probabilities) a row comes down to the sums of RowSums. The
// target's exponential stays apart from the rest, so that neither the gradient at the target,
// -(rest / S), nor log S near 1 loses digits when the prediction is confident. With S = e_t + rest,
// hit = (1 - e) w_t, share = e / C (1 for probabilities, which have no target: hit = 0),
//   loss = (hit + share u) log S - hit z_t - share uz
//   grad = scale ((hit + share u) e^z / S - share u_c), less scale hit at the target.
#pragma once

#include "cross_entropy.h"
#include "loss_sum.h"
#include "../pack.h"
#include "../simt.h"
#include "../vec.h"

MLP_NAMESPACE_BEGIN

template <class C>
MLP_DEVICE C exp_of(C x) {
  return exp(Vec<C>(x)).v;
}
template <class C>
MLP_DEVICE C log_of(C x) {
  return log(Vec<C>(x)).v;
}
template <class C>
constexpr C kLowest = -std::numeric_limits<C>::infinity();

// Of some classes of a row: the largest logit; sums of e^(x - max) without the target's, of u, and
// of u (x - max). None: kLowest and zeros.
template <class C>
struct RowSums {
  C max, rest, u, uz;
};

template <class C>
MLP_DEVICE RowSums<C> no_classes() {
  return {kLowest<C>, C(0), C(0), C(0)};
}

// The same sums relative to a larger maximum. All may be -inf: nothing to scale then.
template <class C>
MLP_DEVICE RowSums<C> relative_to(C max, const RowSums<C>& s) {
  if (s.max == max || s.max == kLowest<C>) return {max, s.rest, s.u, s.uz};
  const C shift = s.max - max;
  return {max, s.rest * exp_of(shift), s.u, s.uz + s.u * shift};
}

template <class C>
MLP_DEVICE RowSums<C> joined(const RowSums<C>& a, const RowSums<C>& b) {
  const C max = a.max > b.max ? a.max : b.max;
  const RowSums<C> p = relative_to(max, a), q = relative_to(max, b);
  return {max, p.rest + q.rest, p.u + q.u, p.uz + q.uz};
}

// The sums over groups of `lanes` threads, to all of them.
template <class C>
MLP_DEVICE RowSums<C> joined_lanes(RowSums<C> s, int lanes, bool has_u) {
  C max = s.max;
  for (int d = 1; d < lanes; d *= 2) {
    const C other = __shfl_xor_sync(~0u, max, d);
    max = other > max ? other : max;
  }
  s = relative_to(max, s);
  for (int d = 1; d < lanes; d *= 2) {
    s.rest += __shfl_xor_sync(~0u, s.rest, d);
    if (!has_u) continue;
    s.u += __shfl_xor_sync(~0u, s.u, d);
    s.uz += __shfl_xor_sync(~0u, s.uz, d);
  }
  return s;
}

// What all rows of a launch have in common.
template <class T>
struct RowTerms {
  using C = ComputeType<T>;
  C keep, smooth, share, scale;
  const T* weight;
  bool has_u;  // some u is not 0

  MLP_DEVICE RowTerms(const CrossEntropyArgs<T>& p, double scale)
      : keep(static_cast<C>(1 - p.label_smoothing)),
        smooth(static_cast<C>(p.label_smoothing / static_cast<double>(p.classes))),
        share(p.target ? smooth : C(1)),
        scale(static_cast<C>(scale)),
        weight(p.weight),
        has_u(!p.target || p.label_smoothing != 0) {}

  MLP_DEVICE C weight_of(int64_t c) const { return weight ? to_compute(weight[c]) : C(1); }
  // u of class c; q: its probability, for rows of probabilities.
  template <bool PROBABILITIES>
  MLP_DEVICE C u(int64_t c, C q) const {
    return PROBABILITIES ? (keep * q + smooth) * weight_of(c) : weight_of(c);
  }
};

// An index that a kernel of another stream may be writing: so that what was checked is what is
// used.
MLP_DEVICE int64_t read_once(const int64_t* index) {
  return *static_cast<const volatile int64_t*>(index);
}

// A row's target: -1 where it is ignored, no class, or there are probabilities; then the logit and
// the weight are not read. A target that is no class has the weight NaN, and so all of its row.
template <class T>
struct RowTarget {
  using C = ComputeType<T>;
  int64_t index = -1;
  C logit{0}, weight{0};
  bool counts = true;

  MLP_DEVICE RowTarget() {}
  // row: among those of all images; x: the row's first logit.
  MLP_DEVICE RowTarget(const CrossEntropyArgs<T>& p, int64_t row, const T* x) {
    if (!p.target) return;
    const int64_t target = read_once(p.target + row);
    if (target == p.ignore_index) {
      counts = false;
    } else if (target < 0 || target >= p.classes) {
      weight = kNan<C>;
    } else {
      index = target;
      logit = to_compute(x[target * p.class_stride]);
      weight = p.weight ? to_compute(p.weight[target]) : C(1);
    }
  }
};

// The row's loss, and grad[c] = factor e^(x[c] - max) - less u[c] but for the target's.
template <class C>
struct RowResult {
  C loss, max, factor, less, at_target;
};

template <class T, class C = ComputeType<T>>
MLP_DEVICE RowResult<C> result_of(const RowTerms<T>& terms, const RowTarget<T>& target,
                                  RowSums<C> s) {
  if (!target.counts) return {C(0), C(0), C(0), C(0), C(0)};
  if (s.max == kLowest<C>) s.rest = kNan<C>;  // no softmax: as torch
  const C hit = terms.keep * target.weight, share = terms.share;
  const C z = target.index >= 0 ? target.logit - s.max : C(0);
  const C at_target = target.index >= 0 ? exp_of(z) : C(0);
  const C sum = at_target + s.rest, total = hit + share * s.u;
  const C log_sum = at_target == C(1) ? log1p01(Vec<C>(s.rest)).v : log_of(sum);
  RowResult<C> result;
  result.loss = total * log_sum - hit * z;
  if (terms.has_u) result.loss = result.loss - share * s.uz;
  result.max = s.max;
  result.factor = terms.scale * total / sum;
  result.less = terms.has_u ? terms.scale * share : C(0);
  const C uniform = terms.has_u ? share * (s.u * at_target / sum - target.weight) : C(0);
  result.at_target = terms.scale * (uniform - hit * s.rest / sum);
  return result;
}

MLP_NAMESPACE_END
