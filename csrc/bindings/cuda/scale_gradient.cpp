#include "scale_gradient.h"

#include "../../cuda/elementwise/scale.h"
#include "../stack_tensors.h"
#include "launching.h"

namespace mlp_ext {

void scale_gradient(const at::Tensor& gradient, const at::Tensor& factor) {
  const DeviceScope device(gradient);
  with_storage_type(gradient, [&](auto type) {
    using T = decltype(type);
    check_launch(cuda::scale(mutable_data_of<T>(gradient), gradient.numel(), data_of<T>(factor),
                             device.stream()));
  });
}

}  // namespace mlp_ext
