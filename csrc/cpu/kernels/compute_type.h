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

MLP_NAMESPACE_END
