// Softmax cross-entropy: which form runs.

MLP_NAMESPACE_BEGIN

template <class T>
double cross_entropy(const CrossEntropyArgs<T>& p, Range rows) {
  LossSum loss;
  if (p.class_stride != 1) {
    side_by_side(p, rows, loss);
    return loss.value();
  }
  if constexpr (Vec<T>::kWidth > 1) {
    if (p.classes <= kMostLaneClasses) {
      few_classes(p, rows, loss);
      return loss.value();
    }
  }
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    if (p.target) {
      cross_entropy_row(p, row, loss);
    } else {
      probabilities_row(p, row, loss);
    }
  }
  return loss.value();
}

MLP_NAMESPACE_END
