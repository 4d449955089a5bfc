// x *= factor unless it is 1, which the host does not have to know: asking for it would wait for
// all kernels before.
#pragma once

#include "columns.h"
#include "scale.h"

MLP_NAMESPACE_BEGIN

constexpr int kScaleThreads = 256;

// What lies before the first pack that is aligned and behind the last is taken element by element.
template <class T>
__global__ void __launch_bounds__(kScaleThreads)
    scale_kernel(T* x, int64_t n, int64_t head, const T* factor) {
  constexpr int N = kPack<T>;
  const auto f = to_compute(*factor);
  if (f == 1) return;
  const int64_t thread = blockIdx.x * int64_t{kScaleThreads} + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kScaleThreads;
  const int64_t packs = (n - head) / N, tail = head + packs * N;
  for (int64_t i = thread; i < packs; i += step) {
    Chunk<T, N> values = load_chunk<T, N>(x + head + i * N);
    MLP_UNROLL
    for (int j = 0; j < N; ++j) values.set(j, from_compute<T>(to_compute(values.get(j)) * f));
    store_chunk(x + head + i * N, values);
  }
  if (thread < head) x[thread] = from_compute<T>(to_compute(x[thread]) * f);
  const int64_t last = tail + thread;
  if (last < n) x[last] = from_compute<T>(to_compute(x[last]) * f);
}

MLP_NAMESPACE_END
