// What a program that runs kernels on the host needs: buffers of exact size, numbers, a comparison
// with a float64 reference, and every case in several schedules with the same bits each time.
//
// A program includes the .cu files that it tests, calls run_case for each of its cases, and returns
// finish() from main. SIMT_ORDERS chooses the schedules ("0,3,5" by default), SIMT_CASE the cases
// by a part of their names; with SIMT_STOP the first failure ends the program.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/common/half.h"
#include "simt_host.h"

namespace check {

using mlp_ext::BFloat16;
using mlp_ext::Float16;

// It takes a minute where a plain run takes a second.
#if defined(__SANITIZE_THREAD__)
constexpr bool kUnderThreadSanitizer = true;
#else
constexpr bool kUnderThreadSanitizer = false;
#endif

inline int failures = 0, cases = 0;
inline std::string label;

template <class... Args>
void fail(const char* format, Args... args) {
  if (++failures > 20) return;
  std::fprintf(stderr, "FAILED %s: ", label.c_str());
  std::fprintf(stderr, format, args...);
  std::fputc('\n', stderr);
  if (std::getenv("SIMT_STOP")) std::exit(1);  // one failure is enough
}

// "M7_N33_K129".
template <class... Args>
std::string text(const char* format, Args... args) {
  char buffer[256];
  std::snprintf(buffer, sizeof buffer, format, args...);
  return buffer;
}

inline double value_of(float x) { return x; }
inline double value_of(double x) { return x; }
inline double value_of(BFloat16 x) { return to_float(x); }
inline double value_of(Float16 x) { return to_float(x); }

template <class T>
T rounded(double x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return mlp_ext::to_bfloat16(float(x));
  } else if constexpr (std::is_same_v<T, Float16>) {
    return mlp_ext::to_float16(float(x));
  } else {
    return T(x);
  }
}

template <class T>
constexpr const char* kName = std::is_same_v<T, float>      ? "f32"
                              : std::is_same_v<T, double>   ? "f64"
                              : std::is_same_v<T, BFloat16> ? "bf16"
                                                            : "f16";

// The relative rounding error of a type.
template <class T>
constexpr double kEpsilon = std::is_same_v<T, double>    ? 1.2e-16
                            : std::is_same_v<T, float>   ? 6e-8
                            : std::is_same_v<T, Float16> ? 4.9e-4
                                                         : 3.9e-3;

// Exactly n elements in their own allocation, `offset` elements behind an address that is aligned
// as CUDA's allocator aligns. The bytes around them are watched.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n, size_t offset = 0)
      : n_(n), front_(kAlign + offset * sizeof(T)), bytes_(front_ + n * sizeof(T) + kGuard) {
#if defined(__SANITIZE_ADDRESS__)
    bytes_ -= kGuard;  // the sanitizer's red zone begins at once
#endif
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlign, bytes_) != 0) std::abort();
    memory_.reset(static_cast<unsigned char*>(memory));
    poison();
  }
  T* data() { return reinterpret_cast<T*>(memory_.get() + front_); }
  const T* data() const { return reinterpret_cast<const T*>(memory_.get() + front_); }
  size_t size() const { return n_; }
  T& operator[](size_t i) { return data()[i]; }
  const T& operator[](size_t i) const { return data()[i]; }
  double at(size_t i) const { return value_of(data()[i]); }
  // NaN in all elements.
  void poison() { std::memset(memory_.get(), 0xFF, bytes_); }
  bool intact() const {
    for (size_t i = 0; i < bytes_; ++i) {
      const bool inside = i >= front_ && i < front_ + n_ * sizeof(T);
      if (!inside && memory_.get()[i] != 0xFF) return false;
    }
    return true;
  }
  bool same_bits(const Buffer& other) const {
    return std::memcmp(data(), other.data(), n_ * sizeof(T)) == 0;
  }
  Buffer copy() const {
    Buffer other(n_, (front_ - kAlign) / sizeof(T));
    std::memcpy(other.data(), data(), n_ * sizeof(T));
    return other;
  }

 private:
  static constexpr size_t kAlign = 256, kGuard = 64;
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  size_t n_, front_, bytes_;
  std::unique_ptr<unsigned char, Free> memory_;
};

// Normal numbers, the same for the same seed.
template <class T>
Buffer<T> normal(size_t n, unsigned seed, double scale = 1, size_t offset = 0) {
  Buffer<T> buffer(n, offset);
  std::mt19937 random(seed);
  std::normal_distribution<double> distribution(0, scale);
  for (size_t i = 0; i < n; ++i) buffer[i] = rounded<T>(distribution(random));
  return buffer;
}

// The largest |result - expected| / (|expected| + floor), which NaN on one side alone makes
// infinite, is at most `most`. `floor`: what counts as one where expected is small.
template <class T>
void expect_close(const Buffer<T>& result, const std::vector<double>& expected, double most,
                  double floor, const char* what) {
  if (!result.intact()) fail("%s: a write outside", what);
  double worst = 0;
  size_t place = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double y = result.at(i), r = expected[i];
    double error = std::fabs(y - r) / (std::fabs(r) + floor);
    if (y == r || (std::isnan(y) && std::isnan(r))) error = 0;
    if (std::isnan(error)) error = INFINITY;
    if (error > worst) worst = error, place = i;
  }
  if (worst > most) {
    fail("%s[%zu] is %.9g, expected %.9g: error %.3g, allowed %.3g", what, place, result.at(place),
         expected[place], worst, most);
  }
}

// |result - expected| / |expected| over all elements together.
template <class T>
double relative_error(const Buffer<T>& result, const std::vector<double>& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double d = result.at(i) - expected[i];
    error += d * d, norm += expected[i] * expected[i];
  }
  return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
}

inline void expect(bool holds, const char* what) {
  if (!holds) fail("%s", what);
}

// Runs one case in every schedule. body: prepares, launches, checks, and returns the bytes of its
// results, which must be the same in each.
inline void run_case(const std::string& name, const std::function<std::string()>& body) {
  static const char* const chosen = std::getenv("SIMT_ORDERS");
  static const char* const only = std::getenv("SIMT_CASE");  // a part of its name
  if (only && name.find(only) == std::string::npos) return;
  std::string first;
  bool any = false;
  for (const char* p = chosen ? chosen : "0,3,5"; *p; ++p) {
    if (*p == ',') continue;
    simt::order = *p - '0';
    label = name + " in order " + *p;
    const std::string result = body();
    if (any && result != first) fail("other bits than in the first order");
    first = result, any = true;
  }
  ++cases;
}

template <class T>
std::string bytes_of(const Buffer<T>& b) {
  return std::string(reinterpret_cast<const char*>(b.data()), b.size() * sizeof(T));
}

inline int finish() {
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures > 0 || cases == 0;
}

}  // namespace check
