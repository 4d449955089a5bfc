// The jobs of a training step that are no segment's: gathering rows, the loss, the norm of the
// gradients, the update.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "train_step.h"

namespace mlp_ext::step {

namespace {

// The hardware's prefetcher takes over within long rows.
constexpr int64_t kRowsAhead = 8, kBytesAhead = 512;

}  // namespace

template <class T>
void TrainStep<T>::gather(int thread) {
  const Range rows = part_of(rows_, 1, threads_, thread);
  const int64_t width = layers_[0].in, bytes = width * int64_t(sizeof(T));
  const auto row = [&](int64_t m) { return gather_.from + gather_.index[m] * gather_.ld; };
  for (int64_t m = rows.begin; m < rows.end && gather_.stride != 1; ++m) {
    for (int64_t k = 0; k < width; ++k) gathered_[m * width + k] = row(m)[k * gather_.stride];
  }
  for (int64_t m = rows.begin; m < rows.end && gather_.stride == 1; ++m) {
    // They lie anywhere: what is not in a cache is fetched while the rows before it are copied.
    if (const int64_t ahead = m + kRowsAhead; ahead < rows.end) {
      const char* line = reinterpret_cast<const char*>(row(ahead));
      for (int64_t b = 0; b < std::min(bytes, kBytesAhead); b += 64) __builtin_prefetch(line + b);
    }
    std::memcpy(gathered_ + m * width, row(m), bytes);
  }
}

template <class T>
void TrainStep<T>::run_loss(int thread) {
  const Range rows = part_of(rows_, 1, threads_, thread);
  loss_sums_[thread] = loss_.is_cross_entropy ? kernels_.cross_entropy(loss_.cross_entropy, rows)
                                              : kernels_.elementwise_loss(loss_.elementwise, rows);
  const bool is_bce = !loss_.is_cross_entropy && loss_.elementwise.kind == LossKind::bce;
  if (is_bce && std::isnan(loss_sums_[thread])) check_probabilities(rows);
}

// The output of a sigmoid is between 0 and 1, or NaN.
template <class T>
void TrainStep<T>::check_probabilities(Range rows) const {
  const auto& p = loss_.elementwise;
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    for (int64_t n = 0; n < p.columns; ++n) {
      if (std::isnan(p.input[m * p.ld_input + n])) {
        throw std::runtime_error(
            "all elements of input should be between 0 and 1, got NaN in row " + std::to_string(m));
      }
    }
  }
}

template <class T>
void TrainStep<T>::measure(int thread) {
  double sum = 0;
  for_share_of_elements(
      updates_, [](const Update<T>& u) { return u.size; }, thread, threads_,
      [&](const Update<T>& u, int64_t first, int64_t n) {
        sum += kernels_.sum_of_squares(gradient(u) + first, n);
      });
  squares_[thread] = sum;
}

// As torch.nn.utils.clip_grad_norm_: a NaN norm makes every gradient NaN.
template <class T>
double TrainStep<T>::grad_scale() const {
  const double mean = 1.0 / processes_;
  if (max_norm_ <= 0) return mean;
  double squares = 0;
  for (const double share : squares_) squares += share;
  const double wanted = max_norm_ / (std::sqrt(squares) * mean + 1e-6);
  return wanted > 1 ? mean : wanted * mean;
}

template <class T>
void TrainStep<T>::update(int thread) {
  const double scale = grad_scale();
  for_share_of_elements(
      updates_, [](const Update<T>& u) { return u.size; }, thread, threads_,
      [&](const Update<T>& u, int64_t first, int64_t n) {
        if (!u.param) return;
        AnyRuleArgs args = u.args;
        common_options(args).grad_scale = scale;
        run_rule(optimizer_, args, u.param, gradient(u), u.states, first, n);
      });
}

template <class T>
double TrainStep<T>::loss() const {
  double sum = 0;
  for (const double share : loss_sums_) sum += share;
  return sum * loss_.result_scale;
}

#define MLP_JOBS(T)                                 \
  template void TrainStep<T>::gather(int);          \
  template void TrainStep<T>::run_loss(int);        \
  template void TrainStep<T>::measure(int);         \
  template void TrainStep<T>::update(int);          \
  template double TrainStep<T>::grad_scale() const; \
  template double TrainStep<T>::loss() const;
MLP_JOBS(float)
MLP_JOBS(double)
#undef MLP_JOBS

}  // namespace mlp_ext::step
