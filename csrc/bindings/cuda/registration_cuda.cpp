// What runs for the CUDA dispatch key; see ../registration.cpp for the ops.
#include <torch/library.h>

#include "../implementations.h"

namespace mlp_ext {

#if defined(MLP_EXT_ON_HOST)
#define MLP_EXT_DEVICE_KEY CPU  // whose tensors stand for those of CUDA: see device.h
#else
#define MLP_EXT_DEVICE_KEY CUDA
#endif

TORCH_LIBRARY_IMPL(mlp_ext, MLP_EXT_DEVICE_KEY, m) {
  m.impl("mlp", mlp_cuda);
  m.impl("_mlp_forward", mlp_forward_cuda);
  m.impl("_mlp_backward", mlp_backward_cuda);
  m.impl("cross_entropy", cross_entropy_cuda);
  m.impl("_cross_entropy_forward", cross_entropy_forward_cuda);
  m.impl("elementwise_loss", elementwise_loss_cuda);
  m.impl("_elementwise_loss_forward", elementwise_loss_forward_cuda);
}

}  // namespace mlp_ext
