// The backward pass of a stack of layers, as work for a team of threads: see stack_forward.h for
// how a plan is run and for the two ways to cut it.
//
// For each layer from the top: dW = dZ^T X, db = the column sums of dZ, and dZ of the layer below =
// (dZ W) f'(saved), the derivative being applied as the product's tiles are stored. Cut by rows,
// each thread sums its own dW and db, and a second phase adds them up.
#pragma once

#include <vector>

#include "stack_forward.h"

namespace mlp_ext::step {

template <class T>
struct BackwardLayer {
  int64_t in, out;
  const T* weight;  // (out, in); read unless no gradient below this layer is wanted
  int64_t ld_weight;
  const T* x;  // (rows, in); read for dw
  int64_t ld_x;
  Activation activation;
  const T* saved;  // (rows, out): what the derivative of `activation` reads; null for none
  int64_t ld_saved;
  T* dz;       // (rows, out), dense: receives dy f'(saved). Null for a top layer without activation
  T *dw, *db;  // dense; null: not wanted
  Dropout dropout = {};  // between this layer and the one above it
};

template <class T>
class StackBackward {
 public:
  using Scalar = T;

  // layers: from the lowest that has a gradient to give to the top. dx: dense (rows,
  // layers[0].in), null if not wanted.
  StackBackward(const cpu::ComputeKernels<T>& kernels, const T* dy, int64_t ld_dy, int64_t rows,
                std::vector<BackwardLayer<T>> layers, T* dx);

  // For a plan that is run again; the input is the lowest layer's.
  void set_input(const T* x, int64_t ld_x) { layers_[0].x = x, layers_[0].ld_x = ld_x; }
  void set_seed(size_t layer, uint64_t seed) { layers_[layer].dropout.seed = seed; }

  int64_t work() const;
  void cut_for(int threads);

  // Elements of `shared` that run() needs, once the plan is cut: one buffer for the whole team.
  int64_t shared_workspace() const;
  int64_t workspace() const { return kernels_.gemm_workspace; }
  bool cut_by_rows() const { return by_rows_; }
  int phases() const;
  // workspace: workspace() elements, one a thread.
  void run(int phase, int thread, T* workspace, T* shared) const;
  // The last phase of a plan cut by rows: adds the sums of all threads but the first to those of
  // the first, a share a thread.
  void add_partials(int thread, const T* shared) const;

 private:
  struct Gradient {  // dZ of a layer, as the layer below and dW read it
    const T* data;
    int64_t ld;
  };
  Gradient gradient(size_t layer) const;
  bool passes_down(size_t layer) const { return layer > 0 || dx_ != nullptr; }
  void differentiate_top(Range rows, Range columns, T* db) const;
  void sum_columns(size_t layer, Range rows, Range columns, T* db) const;
  cpu::GemmArgs<T> weight_product(size_t layer, Range rows, T* dw) const;
  cpu::GemmArgs<T> input_product(size_t layer) const;
  void run_input_part(size_t layer, Range m, Range n, T* workspace) const;
  void run_rows(int thread, T* workspace, T* partial) const;
  void run_layer(size_t layer, int thread, T* workspace) const;

  const cpu::ComputeKernels<T>& kernels_;
  const T* dy_;
  int64_t ld_dy_, rows_;
  std::vector<BackwardLayer<T>> layers_;
  T* dx_;
  int64_t partial_ = 0;  // elements of all dw and db that are wanted
  int threads_ = 1;
  bool by_rows_ = true;
};

}  // namespace mlp_ext::step
