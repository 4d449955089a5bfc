// CUDA's programming model on the host: one fiber a CUDA thread, one block at a time. Kernels reach
// it through csrc/cuda/simt.h; scheduler.cpp runs the fibers.
//
// It is there to find faults. Shared memory has exactly the size asked for and begins as NaN; what
// cp.async brings is NaN until it is waited for; a block barrier opens only when no thread can do
// anything else, so that warps are as far apart as they can be; threads, warps and blocks run in
// several orders. A lane that is missing at a collective, an exited lane in a mask, a deadlock, a
// write behind the shared memory: the program stops and says where.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

namespace simt {

// The running CUDA thread.
struct Thread {
  dim3 thread, block, block_size, grid_size;
  unsigned linear;  // in its block
  unsigned char* shared;
};
extern Thread current;

// 0: threads in order, each warp in lockstep; 1: in reverse; 2, 3: the same, but a warp runs until
// it can no longer; from 4 on: shuffled. Odd orders run the blocks backwards.
extern int order;
constexpr int kOrders = 8;

// The largest dynamic shared memory of a block (H100).
constexpr size_t kMostShared = 227 << 10;

[[noreturn]] void die(const char* why);
void block_barrier(int id, unsigned threads, const char* where);  // threads: 0 for all
// Deposits `size` bytes, waits for the lanes of `mask`, gives every lane's deposit.
const unsigned char* exchange(const void* value, size_t size, unsigned mask, const char* where);
constexpr size_t kDeposit = 64;  // bytes a lane
// Copies `bytes` and zeroes the rest of `size`, at the wait for its group.
void copy_later(void* to, const void* from, size_t size, size_t bytes);
void close_copy_group();
void wait_for_copies(int groups_left);

cudaError_t run(void (*body)(void*), void* argument, dim3 grid, dim3 block, size_t shared);

template <class T>
T deposit_of(const unsigned char* deposits, unsigned lane) {
  static_assert(sizeof(T) <= kDeposit);
  T value;
  // Not instrumented as a race: a shuffle orders nothing in memory.
  using Word = std::conditional_t<sizeof(T) % 4 == 0, uint32_t, unsigned char>;
  for (size_t i = 0; i < sizeof(T) / sizeof(Word); ++i) {
    const Word word = reinterpret_cast<const volatile Word*>(deposits + lane * kDeposit)[i];
    std::memcpy(reinterpret_cast<unsigned char*>(&value) + i * sizeof(Word), &word, sizeof word);
  }
  return value;
}
inline unsigned lane() { return current.linear & 31; }

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* where) {
  const unsigned char* all = exchange(&value, sizeof value, mask, where);
  if (!(mask >> (source & 31) & 1)) die("a shuffle reads a lane that its mask does not name");
  return deposit_of<T>(all, source & 31);
}
inline unsigned ballot(unsigned mask, bool vote, const char* where) {
  const unsigned char* all = exchange(&vote, sizeof vote, mask, where);
  unsigned votes = 0;
  for (unsigned l = 0; l < 32; ++l) {
    if ((mask >> l & 1) && deposit_of<bool>(all, l)) votes |= 1u << l;
  }
  return votes;
}

}  // namespace simt

#define SIMT_TEXT2(x) #x
#define SIMT_TEXT(x) SIMT_TEXT2(x)
#define SIMT_HERE __FILE__ ":" SIMT_TEXT(__LINE__)

#define threadIdx (simt::current.thread)
#define blockIdx (simt::current.block)
#define blockDim (simt::current.block_size)
#define gridDim (simt::current.grid_size)

#define __syncthreads() simt::block_barrier(0, 0, SIMT_HERE)
#define __syncwarp() ((void)simt::warp_barrier(SIMT_HERE))
#define __shfl_sync(mask, value, source) simt::shuffle(mask, value, source, SIMT_HERE)
#define __shfl_xor_sync(mask, value, bits) \
  simt::shuffle(mask, value, simt::lane() ^ (bits), SIMT_HERE)
#define __shfl_down_sync(mask, value, delta)                                                      \
  simt::shuffle(mask, value, simt::lane() + (delta) < 32 ? simt::lane() + (delta) : simt::lane(), \
                SIMT_HERE)
#define __ballot_sync(mask, vote) simt::ballot(mask, vote, SIMT_HERE)
#define __any_sync(mask, vote) (simt::ballot(mask, vote, SIMT_HERE) != 0)
#define __all_sync(mask, vote) (simt::ballot(mask, vote, SIMT_HERE) == (mask))
#define __syncthreads_or(vote) simt::block_vote(vote, SIMT_HERE)

namespace simt {
void warp_barrier(const char* where);
int block_vote(int vote, const char* where);
void fence();                              // __threadfence: an edge for the thread sanitizer
unsigned atomic_add(unsigned*, unsigned);  // relaxed, and untouched by the sanitizer
}  // namespace simt

inline void __threadfence() { simt::fence(); }
inline unsigned atomicAdd(unsigned* p, unsigned v) { return simt::atomic_add(p, v); }
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}

namespace mlp_ext::cuda {

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(simt::current.shared);
}

template <class... Parameters, class... Args>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t, const Args&... args) {
  auto body = [&] { kernel(static_cast<Parameters>(args)...); };
  return simt::run([](void* f) { (*static_cast<decltype(body)*>(f))(); }, &body, grid, block,
                   shared_bytes);
}

}  // namespace mlp_ext::cuda
