// Sums over flat runs of elements, and what is done with their norm.

MLP_NAMESPACE_BEGIN

// sum += term: what the threads of a team found apart, added up.
template <class T>
void add(T* sum, const T* term, int64_t n) {
  using V = Vec<T>;
  int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) (V::load(sum + i) + V::load(term + i)).store(sum + i);
  for (; i < n; ++i) sum[i] += term[i];
}

// In blocks whose sums are added in double: a norm of a million elements keeps its digits.
template <class T>
double sum_of_squares(const T* x, int64_t n) {
  using V = Vec<T>;
  constexpr int64_t kBlock = 32 * V::kWidth;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(n, begin + kBlock);
    V sum(T(0));
    for (int64_t i = begin; i < end; i += V::kWidth) {
      const V v = V::load(x + i, V::first(end - i));
      sum = fma(v, v, sum);
    }
    total += double(reduce_add(sum));
  }
  return total;
}

template <class T>
void scale(T* x, T factor, int64_t n) {
  using V = Vec<T>;
  const V by(factor);
  int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) (by * V::load(x + i)).store(x + i);
  for (; i < n; ++i) x[i] *= factor;
}

MLP_NAMESPACE_END
