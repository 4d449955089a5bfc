// The layers of a TrainStep as its plan sees them, and where what they compute is kept.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

#include "../cpu/kernel_table.h"
#include "partition.h"

namespace mlp_ext::step {

// kMap: nothing but the activation and the Dropout.
enum class LayerKind { kLinear, kBatchNorm, kLayerNorm, kMap };

// One operation, then an activation, then Dropout.
template <class T>
struct TrainLayer {
  LayerKind kind;
  int64_t in, out;
  const T* weight;  // (out, in), dense; a normalization's gamma (out); null: none
  const T* bias;    // or beta; null: none
  Activation activation;
  double dropout;     // probability, 0: none
  int dropout_place;  // among all Dropouts of the model: each has a mask of its own
  bool wants_weight_grad, wants_bias_grad;
  double eps;                            // of a normalization
  const T *fixed_mean, *fixed_variance;  // batch norm by its running statistics; else null

  bool has_batch_statistics() const { return kind == LayerKind::kBatchNorm && !fixed_mean; }
};

// Memory of one layer for one batch size; null where the layer has no use for it.
template <class T>
struct LayerBuffers {
  T *z, *y, *dropped;         // (rows, out): before and after the activation, after Dropout
  T *dz, *dy;                 // gradients of z and, where a segment ends, of what the layer gives
  T *dw, *db;                 // of weight and bias
  T *mean, *variance, *rstd;  // of a normalization: one a row or one a column

  const T* output() const { return dropped ? dropped : y; }
};

// Lays arrays out one after the other, each on a cache line of its own, in memory at `base`; with
// null, only counts what they take.
template <class T>
class Placer {
 public:
  static constexpr int64_t kLine = 64 / sizeof(T);

  explicit Placer(T* base) : base_(base) {}
  T* operator()(bool wanted, int64_t n) {
    if (!wanted) return nullptr;
    T* const place = base_ ? base_ + used_ : nullptr;
    used_ += ceil_div(n, kLine) * kLine;
    return place;
  }
  int64_t used() const { return used_; }

  // What arrays of these sizes take.
  static int64_t taken(std::span<const int64_t> sizes) {
    Placer place(nullptr);
    for (const int64_t n : sizes) place(true, n);
    return place.used();
  }

 private:
  T* base_;
  int64_t used_ = 0;
};

// Memory that outlives the plans that are laid out in it; grown, never shrunk.
template <class T>
class Arena {
 public:
  // `elements` elements, 64-byte aligned, contents undefined; what was here before is gone.
  T* reserve(int64_t elements) {
    if (elements > capacity_) {
      capacity_ = 0;
      memory_.reset();  // first, so that both need not be there at once
      const size_t bytes = (size_t(elements) * sizeof(T) + 63) / 64 * 64;
      memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
      if (!memory_) throw std::bad_alloc();
      capacity_ = elements;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> memory_;
  int64_t capacity_ = 0;
};

// A seed for one Dropout in one step. Both halves must differ between Dropouts: with seed + place,
// the mask of one is that of the one below with neighbours exchanged. (splitmix64)
inline uint64_t dropout_seed(uint64_t seed, int place) {
  uint64_t x = seed + uint64_t(place + 1) * 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

// A part of the chain that runs by one method: see train_step.h for how segments become a plan. A
// phase that is `local` to rows reads of other segments only the rows of its own thread,
// part_of(rows, 1, threads, thread), so that no barrier has to come before it.
template <class T>
class Segment {
 public:
  virtual ~Segment() = default;

  // What the segment reads; rows ld apart.
  virtual void set_input(const T* x, int64_t ld) = 0;
  // Of this step's Dropouts.
  virtual void set_seed(uint64_t seed) = 0;
  // What is read before a step, by one thread.
  virtual void prepare() {}

  virtual int64_t work() const = 0;
  virtual void cut_for(int threads) = 0;
  virtual int forward_phases() const = 0;
  virtual int backward_phases() const = 0;
  virtual bool forward_is_local() const = 0;
  virtual bool backward_is_local() const = 0;
  // Elements in which the threads beyond the first keep sums of their own, added up by
  // add_partials: those of all threads must be done.
  virtual int64_t partials() const = 0;

  virtual void forward(int phase, int thread, T* workspace) = 0;
  virtual void backward(int phase, int thread, T* workspace, T* partials) = 0;
  virtual void add_partials(int thread, const T* partials) const = 0;
};

}  // namespace mlp_ext::step
