// The registered ops: their schemas, and what runs for which dispatch key. Python sees them as
// torch.ops.mlp_ext.*; their fake kernels are in mlp_ext/_ops.py. `activations` holds one code a
// layer: the row of the name in common/activation_kind.h. The ops with a leading underscore are the
// halves that autograd joins.
#include <torch/library.h>

#include "implementations.h"

TORCH_LIBRARY(mlp_ext, m) {
  // act_L(... act_1(input W_1^T + b_1) ... W_L^T + b_L)
  m.def("mlp(Tensor input, Tensor[] weights, Tensor?[] biases, int[] activations) -> Tensor");
  // The output, then what backward needs of each layer in turn: the output of every layer but the
  // last, and the pre-activation of every layer whose activation asks for it.
  m.def(
      "_mlp_forward(Tensor input, Tensor[] weights, Tensor?[] biases, int[] activations) -> "
      "Tensor[]");
  // `saved`: the above without its first entry; then the output, if the last activation's
  // derivative is taken from it. `wanted`: which gradients to return, and in what order: 0 is the
  // input's, then come those of the L weights, then those of the L biases.
  m.def(
      "_mlp_backward(Tensor grad, Tensor input, Tensor[] weights, Tensor[] saved, "
      "int[] activations, int[] wanted) -> Tensor[]");
  // torch.nn.functional.cross_entropy. reduction: 0 none, 1 mean, 2 sum.
  m.def(
      "cross_entropy(Tensor input, Tensor target, Tensor? weight, int reduction, "
      "int ignore_index, float label_smoothing) -> Tensor");
  // The loss, and its gradient for grad_output = 1 (each row's for reduction none).
  m.def(
      "_cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, int reduction, "
      "int ignore_index, float label_smoothing) -> (Tensor, Tensor)");
  // torch.nn.functional.mse_loss, l1_loss, huber_loss (parameter: delta), smooth_l1_loss
  // (parameter: beta) and binary_cross_entropy_with_logits of tensors of one shape. kind: the row
  // in common/loss_kind.h.
  m.def(
      "elementwise_loss(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, int kind, "
      "int reduction, float parameter) -> Tensor");
  // The loss, and its gradient with respect to the input for grad_output = 1 (each element's for
  // reduction none).
  m.def(
      "_elementwise_loss_forward(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, "
      "int kind, int reduction, float parameter) -> (Tensor, Tensor)");
}

namespace mlp_ext {

#if !defined(MLP_EXT_ON_HOST)
TORCH_LIBRARY_IMPL(mlp_ext, CPU, m) {
  m.impl("mlp", mlp_cpu);
  m.impl("_mlp_forward", mlp_forward_cpu);
  m.impl("_mlp_backward", mlp_backward_cpu);
  m.impl("cross_entropy", cross_entropy_cpu);
  m.impl("_cross_entropy_forward", cross_entropy_forward_cpu);
  m.impl("elementwise_loss", elementwise_loss_cpu);
  m.impl("_elementwise_loss_forward", elementwise_loss_forward_cpu);
}
#endif

// Backends without kernels of ours: PyTorch's operators. (CUDA's are in cuda/registration_cuda.cpp,
// where that half is built.)
TORCH_LIBRARY_IMPL(mlp_ext, CompositeExplicitAutograd, m) {
  m.impl("mlp", mlp_composite);
  m.impl("cross_entropy", cross_entropy_composite);
  m.impl("elementwise_loss", elementwise_loss_composite);
}

TORCH_LIBRARY_IMPL(mlp_ext, Autograd, m) {
  m.impl("mlp", mlp_autograd);
  m.impl("cross_entropy", cross_entropy_autograd);
  m.impl("elementwise_loss", elementwise_loss_autograd);
}

TORCH_LIBRARY_IMPL(mlp_ext, AutocastCPU, m) {
  m.impl("mlp", mlp_autocast_cpu);
  m.impl("cross_entropy", cross_entropy_autocast_cpu);
  m.impl("elementwise_loss", elementwise_loss_autocast_cpu);
}

TORCH_LIBRARY_IMPL(mlp_ext, AutocastCUDA, m) {
#if defined(MLP_EXT_WITH_CUDA)
  m.impl("mlp", mlp_autocast_cuda);
  m.impl("cross_entropy", cross_entropy_autocast_cuda);
  m.impl("elementwise_loss", elementwise_loss_autocast_cuda);
#else
  m.impl("mlp", mlp_composite);
  m.impl("cross_entropy", cross_entropy_composite);
  m.impl("elementwise_loss", elementwise_loss_composite);
#endif
}

// torch.jit.trace knows no optional tensors in lists, and its graph is for runtimes without our
// ops.
TORCH_LIBRARY_IMPL(mlp_ext, Tracer, m) {
  m.impl("mlp", mlp_composite);
  m.impl("cross_entropy", cross_entropy_composite);
  m.impl("elementwise_loss", elementwise_loss_composite);
}

// Inside torch.func's grad, vmap, jvp and their compositions the ops fall apart into PyTorch's
// operators before the transform looks at them: those have batching rules and forward derivatives.
TORCH_LIBRARY_IMPL(mlp_ext, FuncTorchDynamicLayerFrontMode, m) {
  m.impl("mlp", mlp_composite);
  m.impl("cross_entropy", cross_entropy_composite);
  m.impl("elementwise_loss", elementwise_loss_composite);
}

}  // namespace mlp_ext
