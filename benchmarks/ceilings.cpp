// What this machine can do at most: float multiply-adds, and memory traffic. ceilings.py compiles
// this with -O3 -march=native and calls it through ctypes. Each function returns the best of
// several samples: a ceiling is not lowered by whoever else was running.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / 4;
using Vec = float __attribute__((vector_size(kBytes), aligned(4), may_alias));

// Latency x throughput of the multiply-adds asks for 8 to 16 independent sums; AVX2 has 16
// registers for them and the two operands.
#if defined(__x86_64__)
constexpr int kSums = 12;
#else
constexpr int kSums = 24;
#endif

Vec splat(float x) { return x - Vec{}; }

// Keeps a value alive without storing it anywhere.
template <class T>
void keep(const T& value) {
  asm volatile("" : : "r"(&value) : "memory");
}

// Runs work(thread) on all threads at once, and returns the seconds from the common start until
// the last one ends.
template <class Work>
double seconds_of(int threads, const Work& work) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int> ready{0};
  std::vector<Clock::time_point> begin(threads), end(threads);
  auto body = [&](int thread) {
    ready.fetch_add(1);
    while (ready.load() < threads) std::this_thread::yield();
    begin[thread] = Clock::now();
    work(thread);
    end[thread] = Clock::now();
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(body, thread);
  body(0);
  for (std::thread& other : others) other.join();
  const auto first = *std::min_element(begin.begin(), begin.end());
  const auto last = *std::max_element(end.begin(), end.end());
  return std::chrono::duration<double>(last - first).count();
}

template <class Work>
double least_seconds(int threads, int samples, const Work& work) {
  double least = 1e30;
  for (int i = 0; i < samples; ++i) least = std::min(least, seconds_of(threads, work));
  return least;
}

// One thread's part of `vectors`.
struct Part {
  int64_t begin, end;
  Part(int64_t vectors, int thread, int threads)
      : begin(vectors * thread / threads), end(vectors * (thread + 1) / threads) {}
};

// Pages are touched first by the thread that uses them. The start is rounded up to 64 bytes.
struct Array {
  std::unique_ptr<char[]> memory;
  Vec* data;
  Array(int64_t vectors, int threads) : memory(new char[vectors * kBytes + 64]) {
    const auto address = reinterpret_cast<uintptr_t>(memory.get());
    data = reinterpret_cast<Vec*>((address + 63) / 64 * 64);
    seconds_of(threads, [&](int thread) {
      const Part part(vectors, thread, threads);
      std::fill(data + part.begin, data + part.end, splat(1e-3f));
    });
  }
};

}  // namespace

extern "C" {

double fma_gflops(int threads, int samples) {
  constexpr int64_t kRounds = 1000000;
  const double seconds = least_seconds(threads, samples, [](int) {
    Vec sums[kSums];
    for (int i = 0; i < kSums; ++i) sums[i] = splat(float(i));
    Vec a = splat(0.999f), b = splat(0.001f);
    keep(a);
    keep(b);
    for (int64_t round = 0; round < kRounds; ++round) {
#pragma GCC unroll 24
      for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * a + b;
    }
    keep(sums);
  });
  return 2.0 * kLanes * kSums * kRounds * threads / seconds * 1e-9;
}

// Reading an array once, from memory, in four streams a thread for the prefetchers.
double read_gbs(int threads, int samples, int64_t bytes) {
  constexpr int kStreams = 4, kUnroll = 2;
  const int64_t vectors = bytes / kBytes;
  const Array array(vectors, threads);
  const double seconds = least_seconds(threads, samples, [&](int thread) {
    const Part part(vectors, thread, threads);
    const int64_t length = (part.end - part.begin) / kStreams;
    const Vec* const start = array.data + part.begin;
    Vec sums[kStreams * kUnroll] = {};
    for (int64_t i = 0; i + kUnroll <= length; i += kUnroll) {
#pragma GCC unroll 8
      for (int j = 0; j < kStreams * kUnroll; ++j) {
        sums[j] += start[j / kUnroll * length + i + j % kUnroll];
      }
    }
    keep(sums);
  });
  return double(vectors) * kBytes / seconds * 1e-9;
}

// Adam's traffic without its square root and division: reads parameter, gradient and two moments,
// writes all but the gradient, 28 bytes an element.
double stream_gbs(int threads, int samples, int64_t elements) {
  const int64_t vectors = elements / kLanes;
  const Array p(vectors, threads), g(vectors, threads), m(vectors, threads), v(vectors, threads);
  const double seconds = least_seconds(threads, samples, [&](int thread) {
    const Part part(vectors, thread, threads);
    const Vec decay = splat(0.9f), rate = splat(0.1f);
    for (int64_t i = part.begin; i < part.end; ++i) {
      const Vec gradient = g.data[i];
      m.data[i] = m.data[i] * decay + gradient * rate;
      v.data[i] = v.data[i] * decay + gradient * gradient * rate;
      p.data[i] = p.data[i] - m.data[i] * v.data[i];
    }
  });
  return double(vectors) * kLanes * 28 / seconds * 1e-9;
}

}  // extern "C"
