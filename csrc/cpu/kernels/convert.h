// float32 to a storage type and back, over a flat run of elements; rounds to nearest even.

MLP_NAMESPACE_BEGIN

template <class From, class To>
void convert(const From* from, To* to, int64_t n) {
  using V = Vec<float>;
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const auto lanes = V::first(n - i);
    V::load(from + i, lanes).store(to + i, lanes);
  }
}

MLP_NAMESPACE_END
