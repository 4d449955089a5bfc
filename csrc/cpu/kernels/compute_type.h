// What a storage type computes in.

MLP_NAMESPACE_BEGIN

template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

template <class S>
using VecOf = Vec<typename ComputeOf<S>::type>;

// A vector of elements of its own type, cut to `tail` if `is_cut`.
template <class T>
MLP_INLINE Vec<T> load_cut(const T* p, bool is_cut, typename Vec<T>::Mask tail) {
  return is_cut ? Vec<T>::load(p, tail) : Vec<T>::load(p);
}

// One vector of a row of which `left` elements are left; `tail` is first(left) of its last one.
template <class V, class S>
MLP_INLINE V load_of_row(const S* p, int64_t left, typename V::Mask tail) {
  if constexpr (sizeof(S) == 2)
    return V::load(p, left >= V::kWidth ? V::first(left) : tail);
  else
    return load_cut(p, left < V::kWidth, tail);
}
template <class V, class S>
MLP_INLINE void store_of_row(V x, S* p, int64_t left, typename V::Mask tail) {
  if constexpr (sizeof(S) == 2)
    x.store(p, left >= V::kWidth ? V::first(left) : tail);
  else
    left >= V::kWidth ? x.store(p) : x.store(p, tail);
}

MLP_NAMESPACE_END
