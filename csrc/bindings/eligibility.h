// What the kernels take. Everything else goes to composite.h, so these tests only have to be right
// when they say yes.
#pragma once

#include <ATen/core/Tensor.h>

#include "../cpu/kernel_table.h"
#include "composite.h"

namespace mlp_ext {

// float32, float64, bfloat16 or float16 on a strided tensor, ordinary or standing for one, of the
// CPU or of CUDA where that half is built.
bool has_kernel_type(const at::Tensor& t);

// Whether the kernels of csrc/cuda run what is on this device.
bool is_cuda_kernel_device(const at::Device& device);

// A canonical stack: input (..., K), weights (N, K), biases (N,) or none, one kernel dtype, nothing
// empty. Reads metadata only, so fake
// tensors may be asked about. Throws as check_stack_lists does.
bool stack_fits_kernels(const at::Tensor& input, at::TensorList weights,
                        const OptionalTensors& biases, at::IntArrayRef activations);

// Fits, and is of a size at which the kernels are the faster choice: what decides the road.
bool stack_has_kernel(const at::Tensor& input, at::TensorList weights,
                      const OptionalTensors& biases, at::IntArrayRef activations);

// The type in which the kernels run a stack that they take: float64 and float32 as they are,
// bfloat16 where the ISA multiplies it and no sum is longer than its kernels hold; all else in
// float32.
at::ScalarType stack_compute_type(const cpu::KernelTable& table, const at::Tensor& input,
                                  at::TensorList weights);

// Logits (N, C, d1, ...), (N, C) or (C,); int64 class indices to match, or probabilities of the
// logits' shape and dtype of which no gradient is wanted; optional weights (C,) of that dtype.
bool cross_entropy_has_kernel(const at::Tensor& input, const at::Tensor& target,
                              const std::optional<at::Tensor>& weight, int64_t ignore_index,
                              double label_smoothing);

// Input and target of one shape and dtype; a weight that broadcasts to them (binary cross-entropy)
// or is of their shape (mse, l1, huber); for binary cross-entropy a pos_weight of one element or of
// one a column. Gradients are wanted of none of the weights, and of the target only where they are
// those of the input, negative. Throws ValueError for a kind that is none of the op's.
bool elementwise_loss_has_kernel(const at::Tensor& input, const at::Tensor& target,
                                 const std::optional<at::Tensor>& weight,
                                 const std::optional<at::Tensor>& pos_weight, int64_t kind,
                                 double parameter);

// True inside torch.func transforms (grad, vmap, jvp, ...), whose rules PyTorch has for its own
// operators only.
bool in_functorch();

// True where a node's gradient has to be worked out by composite.h: it is to be differentiated
// again, or `grad` is one that the kernels cannot read.
bool needs_composite_backward(const at::Tensor& grad);

// True if a forward-mode tangent hangs on the tensor.
bool has_tangent(const at::Tensor& t);

}  // namespace mlp_ext
