// sum += term: what the threads of a team found apart, added up.

MLP_NAMESPACE_BEGIN

template <class T>
void add(T* sum, const T* term, int64_t n) {
  using V = Vec<T>;
  int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) (V::load(sum + i) + V::load(term + i)).store(sum + i);
  for (; i < n; ++i) sum[i] += term[i];
}

MLP_NAMESPACE_END
