// The stand-in's own instructions: fragments, copies, collectives, conversions.
#include "../../csrc/cuda/pack.h"
#include "../../csrc/cuda/ptx/cp_async.h"
#include "../../csrc/cuda/ptx/ldmatrix.h"
#include "../../csrc/cuda/ptx/mma.h"
#include "check.h"

namespace mlp_ext::cuda {
namespace {

using namespace check;

// D = A B for one warp, fragments read from memory as the PTX manual draws them.
__global__ void tf32_product(const float* a, const float* b, float* d) {
  const int g = threadIdx.x / 4, q = threadIdx.x % 4;
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; ++i) fa[i] = to_tf32(a[(g + 8 * (i % 2)) * 8 + q + 4 * (i / 2)]);
  for (int i = 0; i < 2; ++i) fb[i] = to_tf32(b[(q + 4 * i) * 8 + g]);
  float sum[4] = {};
  mma_tf32(sum, fa, fb);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2] = sum[i];
}

// The same in 16 bits, fragments through ldmatrix from a copy in shared memory.
template <class H>
__global__ void half_product(const H* a, const H* b, float* d) {
  H* const sa = shared_memory<H>();
  H* const sb = sa + 16 * 16;
  const int lane = threadIdx.x, g = lane / 4, q = lane % 4;
  cp_async<16>(sa + lane * 8, a + lane * 8, 16);
  cp_async_commit();
  if (lane < 16) cp_async<16>(sb + lane * 8, b + lane * 8, 16);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  uint32_t fa[4], fb[4];
  ldmatrix<false>(fa, sa + (lane % 16) * 16 + lane / 16 * 8);
  ldmatrix<true>(fb, sb + (lane % 16) * 8);  // lanes above 15 name the matrices again
  float sum[4] = {};
  const uint32_t of_b[2] = {fb[0], fb[1]};
  mma_16bit(H{}, sum, fa, of_b);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * q + i % 2] = sum[i];
}

template <class T, int K>
std::string product(void (*kernel)(const T*, const T*, float*), double tolerance) {
  const auto a = normal<T>(16 * K, 1), b = normal<T>(K * 8, 2);
  Buffer<float> d(16 * 8);
  launch(kernel, 1, 32, (16 * K + K * 8) * sizeof(T), nullptr, a.data(), b.data(), d.data());
  std::vector<double> expected(16 * 8);
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      for (int k = 0; k < K; ++k) expected[m * 8 + n] += a.at(m * K + k) * b.at(k * 8 + n);
    }
  }
  expect_close(d, expected, tolerance, 1, "D");
  return bytes_of(d);
}

// Each thread passes what it has two places on, through shared memory.
__global__ void rotate(const float* x, float* y, int n) {
  float* const shared = shared_memory<float>();
  for (int round = 0; round < 3; ++round) {
    shared[threadIdx.x] = round == 0 ? x[threadIdx.x] : y[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = shared[(threadIdx.x + 2) % n];
    __syncthreads();
  }
}

__global__ void collectives(float* y) {
  const int lane = threadIdx.x % 32;
  float sum = float(threadIdx.x);
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  const unsigned odd = __ballot_sync(~0u, lane % 2 == 1);
  const float third = __shfl_sync(~0u, float(lane), 3);
  const float below = __shfl_down_sync(~0u, float(lane), 1);
  const bool ok = odd == 0xaaaaaaaau && third == 3 && below == (lane < 31 ? lane + 1 : 31) &&
                  __any_sync(~0u, lane == 7) && !__all_sync(~0u, lane == 7) &&
                  __syncthreads_or(threadIdx.x == 40) == 1 && __syncthreads_or(0) == 0;
  y[threadIdx.x] = ok ? sum : -1;
}

// The first warp overwrites, between two barriers, what the second may still have to read.
__global__ void exchange(float* y) {
  float* const shared = shared_memory<float>();
  const unsigned other = threadIdx.x ^ 32;
  shared[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  const float first = shared[other];
  __syncthreads();
  shared[threadIdx.x] = first + 1;
  __syncthreads();
  y[threadIdx.x] = shared[other];
}

// Several blocks into one sum.
__global__ void count(unsigned* sum) {
  if (threadIdx.x == 0) atomicAdd(sum, blockIdx.x);
}

// float16 by instruction is float16 by common/half.h; checked on a GPU, an identity here.
__global__ void convert(const float* x, Float16* y, float* z) {
  y[threadIdx.x] = from_compute<Float16>(x[threadIdx.x]);
  z[threadIdx.x] = to_compute(y[threadIdx.x]);
}

}  // namespace
}  // namespace mlp_ext::cuda

int main() {
  using namespace mlp_ext::cuda;
  run_case("mma-tf32", [] { return product<float, 8>(tf32_product, 4e-3); });
  run_case("mma-bf16", [] { return product<BFloat16, 16>(half_product<BFloat16>, 2e-6); });
  run_case("mma-f16", [] { return product<Float16, 16>(half_product<Float16>, 2e-6); });
  for (const int n : {32, 96, 100}) {
    run_case(text("rotate-%d", n), [n] {
      const auto x = normal<float>(n, 3);
      Buffer<float> y(n);
      launch(rotate, 1, n, n * sizeof(float), nullptr, x.data(), y.data(), n);
      for (int i = 0; i < n; ++i) expect(y[i] == x[(i + 6) % n], "rotated");
      return bytes_of(y);
    });
  }
  run_case("collectives", [] {
    Buffer<float> y(64);
    launch(collectives, 1, 64, 0, nullptr, y.data());
    for (int i = 0; i < 64; ++i) expect(y[i] == (i < 32 ? 496 : 1520), "sum");
    return bytes_of(y);
  });
  run_case("exchange", [] {
    Buffer<float> y(64);
    launch(exchange, 1, 64, 64 * sizeof(float), nullptr, y.data());
    for (int i = 0; i < 64; ++i) expect(y[i] == i + 1, "exchanged twice");
    return bytes_of(y);
  });
  run_case("count", [] {
    Buffer<unsigned> sum(1);
    sum.data()[0] = 0;
    launch(count, 5, 32, 0, nullptr, sum.data());
    expect(sum[0] == 0 + 1 + 2 + 3 + 4, "sum");
    return bytes_of(sum);
  });
  run_case("convert", [] {
    const auto x = normal<float>(64, 4);
    Buffer<Float16> y(64);
    Buffer<float> z(64);
    launch(convert, 1, 64, 0, nullptr, x.data(), y.data(), z.data());
    for (int i = 0; i < 64; ++i) expect(z[i] == to_float(mlp_ext::to_float16(x[i])), "float16");
    return bytes_of(y);
  });
  run_case("refused", [] {
    Buffer<float> y(2048);
    expect(launch(collectives, 1, 1056, 0, nullptr, y.data()) != cudaSuccess, "1056 threads");
    expect(launch(collectives, 0, 32, 0, nullptr, y.data()) != cudaSuccess, "no block");
    expect(launch(collectives, 1, 32, 1 << 20, nullptr, y.data()) != cudaSuccess, "1 MiB");
    return std::string();
  });
  return finish();
}
