#include "fused_stack.h"

#include "../../cuda/fused_mlp/fused_mlp.h"
#include "../stack_tensors.h"
#include "launching.h"

namespace mlp_ext {

using at::Tensor;

namespace {

std::vector<int64_t> widths_of(const std::vector<StackLayer>& layers) {
  std::vector<int64_t> widths{layers.front().weight.size(1)};
  for (const StackLayer& layer : layers) widths.push_back(layer.weight.size(0));
  return widths;
}

// Asks `fits` for the storage type; no for float64, which tensor cores do not multiply.
template <class Fits>
bool fits_of(const Tensor& t, const std::vector<StackLayer>& layers, Fits fits) {
  if (layers.empty() || layers.size() > size_t(cuda::kFusedLayers)) return false;
  const std::vector<int64_t> widths = widths_of(layers);
  bool result = false;
  with_storage_type(t, [&](auto type) {
    if constexpr (!std::is_same_v<decltype(type), double>) {
      result = fits(type, widths.data(), int(layers.size()));
    }
  });
  return result;
}

}  // namespace

bool fused_forward_fits(const Tensor& x, const std::vector<StackLayer>& layers,
                        const DeviceScope& device) {
  return fits_of(x, layers, [&](auto type, const int64_t* widths, int n) {
    return cuda::fused_mlp_forward_fits<decltype(type)>(widths, n, device.info());
  });
}

void fused_forward(const Tensor& x, const std::vector<StackLayer>& layers,
                   const DeviceScope& device) {
  with_storage_type(x, [&](auto type) {
    using T = decltype(type);
    if constexpr (!std::is_same_v<T, double>) {
      cuda::FusedForward<T> stack{};
      stack.x = data_of<T>(x), stack.ld_x = row_stride(x), stack.rows = x.size(0);
      stack.layers = int(layers.size());
      for (size_t l = 0; l < layers.size(); ++l) {
        const StackLayer& from = layers[l];
        cuda::FusedForwardLayer<T>& layer = stack.layer[l];
        layer.in = from.weight.size(1), layer.out = from.weight.size(0);
        layer.weight = data_of<T>(from.weight), layer.ld_weight = row_stride(from.weight);
        layer.bias = data_of<T>(from.bias);
        layer.activation = from.activation;
        layer.y = mutable_data_of<T>(from.y), layer.ld_y = layer.out;
        layer.z = mutable_data_of<T>(from.z), layer.ld_z = layer.out;
      }
      check_launch(
          cuda::fused_mlp_forward(stack, float32_precision(), device.info(), device.stream()));
    }
  });
}

bool fused_backward_fits(const Tensor& dy, const std::vector<StackLayer>& layers,
                         const DeviceScope& device) {
  return fits_of(dy, layers, [&](auto type, const int64_t* widths, int n) {
    return cuda::fused_mlp_backward_fits<decltype(type)>(widths, n, device.info());
  });
}

void fused_backward(const Tensor& dy, const std::vector<StackLayer>& layers, const Tensor& dx,
                    const DeviceScope& device) {
  with_storage_type(dy, [&](auto type) {
    using T = decltype(type);
    if constexpr (!std::is_same_v<T, double>) {
      cuda::FusedBackward<T> stack{};
      stack.dy = data_of<T>(dy), stack.ld_dy = row_stride(dy), stack.rows = dy.size(0);
      stack.dx = mutable_data_of<T>(dx);
      if (dx.defined()) stack.ld_dx = dx.size(1);
      stack.layers = int(layers.size());
      for (size_t l = 0; l < layers.size(); ++l) {
        const StackLayer& from = layers[l];
        cuda::FusedBackwardLayer<T>& layer = stack.layer[l];
        layer.in = from.weight.size(1), layer.out = from.weight.size(0);
        layer.weight = data_of<T>(from.weight), layer.ld_weight = row_stride(from.weight);
        if (from.x.defined()) layer.x = data_of<T>(from.x), layer.ld_x = row_stride(from.x);
        layer.activation = from.activation;
        if (from.saved.defined()) {
          layer.saved = data_of<T>(from.saved), layer.ld_saved = row_stride(from.saved);
        }
        layer.dw = mutable_data_of<T>(from.dw);
        layer.db = mutable_data_of<T>(from.db);
      }
      const Tensor memory = workspace(dy, cuda::fused_mlp_backward_workspace(stack, device.info()));
      check_launch(cuda::fused_mlp_backward(stack, float32_precision(), device.info(),
                                            pointer_to(memory), device.stream()));
    }
  });
}

}  // namespace mlp_ext
