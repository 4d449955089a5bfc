// The stack's CPU kernels behind the ops mlp, _mlp_forward and _mlp_backward.
//
// Layers run one after the other, each as a GEMM with its epilogue; backward goes down the stack
// and applies the derivative of the layer below in the epilogue of the product that makes its
// gradient. bfloat16 and float16 are converted a layer at a time and computed in float32, each
// layer's output being rounded to the storage type as PyTorch does.
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

#include "composite.h"
#include "cpu_kernels.h"
#include "eligibility.h"
#include "implementations.h"

namespace mlp_ext {

using at::Tensor;

namespace {

// Rows of unit stride: what the kernels read. No copy for anything whose last dimension is
// contiguous, expanded rows included.
Tensor with_unit_stride(const Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous();
}

// (..., K) as (M, K).
Tensor as_rows(const Tensor& t) {
  if (t.dim() == 2) return with_unit_stride(t);
  return with_unit_stride(t.reshape({-1, t.size(-1)}));
}

// The type that a storage type computes in.
at::ScalarType compute_type(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

Tensor empty_cpu(at::IntArrayRef sizes, at::ScalarType type) {
  return at::detail::empty_cpu(sizes, at::TensorOptions().dtype(type));
}

template <class T>
const T* data(const Tensor& t) {
  return t.defined() ? t.const_data_ptr<T>() : nullptr;
}

int64_t row_stride(const Tensor& t) { return t.size(0) == 1 ? t.size(1) : t.stride(0); }

struct LayerOutput {
  Tensor y, z;  // z: the pre-activation, where backward needs it
};

// x: (M, K); all tensors in the compute type T.
template <class T>
LayerOutput layer_forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                          Activation activation, bool keep_z) {
  const int64_t M = x.size(0), N = weight.size(0), K = weight.size(1);
  LayerOutput out;
  out.y = empty_cpu({M, N}, x.scalar_type());
  if (keep_z) out.z = empty_cpu({M, N}, x.scalar_type());
  cpu::GemmArgs<T> g{};
  g.M = M, g.N = N, g.K = K;
  g.a = data<T>(x), g.a_row = row_stride(x), g.a_col = 1;
  g.b = data<T>(weight), g.b_row = 1, g.b_col = row_stride(weight);
  g.c = (keep_z ? out.z : out.y).mutable_data_ptr<T>(), g.ldc = N;
  g.bias = data<T>(bias);
  g.activation = activation;
  if (keep_z) g.activated = out.y.mutable_data_ptr<T>(), g.ld_activated = N;
  run_gemm(g);
  return out;
}

// dz = dy f'(saved) and db = sum of dz's rows; either may be left out.
template <class T>
void derivative(const Tensor& dy, const Tensor& saved, Activation activation, const Tensor& dz,
                const Tensor& db) {
  cpu::ActivationBackwardArgs<T> p{};
  p.rows = dy.size(0);
  p.activation = activation;
  p.dy = data<T>(dy), p.ld_dy = row_stride(dy);
  if (saved.defined()) p.saved = data<T>(saved), p.ld_saved = row_stride(saved);
  if (dz.defined()) p.dz = dz.mutable_data_ptr<T>(), p.ld_dz = dz.size(1);
  if (db.defined()) p.sum = db.mutable_data_ptr<T>();
  run_activation_backward(p, dy.size(1));
}

// dX = dz W, times the derivative of the layer below at `saved`.
template <class T>
Tensor input_gradient(const Tensor& dz, const Tensor& weight, Activation below,
                      const Tensor& saved) {
  const int64_t M = dz.size(0), N = weight.size(0), K = weight.size(1);
  Tensor dx = empty_cpu({M, K}, dz.scalar_type());
  cpu::GemmArgs<T> g{};
  g.M = M, g.N = K, g.K = N;
  g.a = data<T>(dz), g.a_row = row_stride(dz), g.a_col = 1;
  g.b = data<T>(weight), g.b_row = row_stride(weight), g.b_col = 1;
  g.c = dx.mutable_data_ptr<T>(), g.ldc = K;
  if (below != Activation::none) {
    g.activation = below;
    g.saved = data<T>(saved), g.ld_saved = row_stride(saved);
  }
  run_gemm(g);
  return dx;
}

// dW = dz^T X.
template <class T>
Tensor weight_gradient(const Tensor& dz, const Tensor& x) {
  const int64_t M = dz.size(0), N = dz.size(1), K = x.size(1);
  Tensor dw = empty_cpu({N, K}, dz.scalar_type());
  cpu::GemmArgs<T> g{};
  g.M = N, g.N = K, g.K = M;
  g.a = data<T>(dz), g.a_row = 1, g.a_col = row_stride(dz);
  g.b = data<T>(x), g.b_row = row_stride(x), g.b_col = 1;
  g.c = dw.mutable_data_ptr<T>(), g.ldc = K;
  run_gemm(g);
  return dw;
}

std::vector<int64_t> output_sizes(const Tensor& input, const Tensor& last_weight) {
  std::vector<int64_t> sizes = input.sizes().vec();
  sizes.back() = last_weight.size(0);
  return sizes;
}

template <class T>
std::vector<Tensor> forward(const Tensor& input, at::TensorList weights,
                            const OptionalTensors& biases, at::IntArrayRef activations, bool save) {
  const auto storage = input.scalar_type();
  const auto compute = compute_type(input);
  const size_t layers = weights.size();
  std::vector<Tensor> result(1);
  Tensor x = as_rows(input).to(compute);
  for (size_t l = 0; l < layers; ++l) {
    const auto activation = static_cast<Activation>(activations[l]);
    const std::optional<Tensor> bias = biases.get(l);
    LayerOutput out = layer_forward<T>(x, with_unit_stride(weights[l]).to(compute),
                                       bias ? bias->contiguous().to(compute) : Tensor(), activation,
                                       save && saves_input(activation));
    const Tensor y = out.y.to(storage);
    if (l + 1 == layers) {
      result[0] = input.dim() == 2 ? y : y.view(output_sizes(input, weights[l]));
    } else {
      if (save) result.push_back(y);
      x = y.to(compute);
    }
    if (out.z.defined()) result.push_back(out.z.to(storage));
  }
  return result;
}

// Where each layer's output and derivative argument stand in _mlp_backward's `saved`.
struct SavedOutputs {
  std::vector<Tensor> output, derivative_at;  // undefined where there is none

  SavedOutputs(at::TensorList saved, at::IntArrayRef activations)
      : output(activations.size()), derivative_at(activations.size()) {
    const size_t layers = activations.size();
    size_t next = 0;
    for (size_t l = 0; l < layers; ++l) {
      const auto activation = static_cast<Activation>(activations[l]);
      if (l + 1 < layers) output[l] = saved[next++];
      if (saves_input(activation)) {
        derivative_at[l] = saved[next++];
      } else if (l + 1 < layers) {
        derivative_at[l] = output[l];
      }
    }
    const auto last = static_cast<Activation>(activations[layers - 1]);
    if (last != Activation::none && !saves_input(last)) derivative_at[layers - 1] = saved[next++];
  }
};

template <class T>
std::vector<Tensor> backward(const Tensor& grad, const Tensor& input, at::TensorList weights,
                             at::TensorList saved, at::IntArrayRef activations,
                             at::IntArrayRef wanted) {
  const auto storage = input.scalar_type();
  const auto compute = compute_type(input);
  const size_t layers = weights.size();
  const SavedOutputs kept(saved, activations);
  std::vector<Tensor> grads(1 + 2 * layers);
  c10::SmallVector<bool, 16> needs(grads.size(), false);
  for (const int64_t i : wanted) needs[i] = true;

  // Below the lowest layer with a gradient to give nothing is computed.
  size_t lowest = 0;
  while (lowest < layers && !needs[0] && !needs[1 + lowest] && !needs[1 + layers + lowest]) {
    ++lowest;
  }
  Tensor dz;  // of layer l, once its derivative is applied
  for (size_t l = layers; l-- > lowest;) {
    const auto activation = static_cast<Activation>(activations[l]);
    const bool needs_db = needs[1 + layers + l];
    const Tensor db = needs_db ? empty_cpu({weights[l].size(0)}, compute) : Tensor();
    if (l + 1 == layers) {
      const Tensor dy = as_rows(grad).to(compute);
      if (activation == Activation::none) {
        dz = dy;
        if (needs_db) derivative<T>(dy, {}, activation, {}, db);
      } else {
        dz = empty_cpu(dy.sizes(), compute);
        derivative<T>(dy, as_rows(kept.derivative_at[l]).to(compute), activation, dz, db);
      }
    } else if (needs_db) {
      derivative<T>(dz, {}, Activation::none, {}, db);
    }
    if (needs_db) grads[1 + layers + l] = db.to(storage);
    if (needs[1 + l]) {
      const Tensor& x = l > 0 ? kept.output[l - 1] : input;
      grads[1 + l] = weight_gradient<T>(dz, as_rows(x).to(compute)).to(storage);
    }
    if (l > lowest || (l == 0 && needs[0])) {
      const Activation below =
          l > 0 ? static_cast<Activation>(activations[l - 1]) : Activation::none;
      const Tensor at =
          below == Activation::none ? Tensor() : kept.derivative_at[l - 1].to(compute);
      dz = input_gradient<T>(dz, with_unit_stride(weights[l]).to(compute), below, at);
    }
  }
  if (needs[0]) grads[0] = dz.to(storage).view(input.sizes());

  std::vector<Tensor> result;
  for (const int64_t i : wanted) result.push_back(grads[i]);
  return result;
}

// The op can be called by hand: what the kernels would read beyond its bounds is refused.
void check_backward_arguments(const Tensor& grad, const Tensor& input, at::TensorList weights,
                              at::TensorList saved, at::IntArrayRef activations) {
  OptionalTensors no_biases;
  for (size_t l = 0; l < weights.size(); ++l) no_biases.push_back(std::nullopt);
  TORCH_CHECK(stack_has_kernel(input, weights, no_biases, activations) &&
                  grad.scalar_type() == input.scalar_type() && grad.device().is_cpu() &&
                  grad.sizes() == at::IntArrayRef(output_sizes(input, weights.back())),
              "mlp_ext::_mlp_backward got a gradient of shape ", grad.sizes(),
              " that does not belong to the stack of an input of shape ", input.sizes());
  size_t expected = weights.size() - 1;
  for (const int64_t code : activations) expected += saves_input(static_cast<Activation>(code));
  const auto last = static_cast<Activation>(activations.back());
  expected += last != Activation::none && !saves_input(last);
  TORCH_CHECK(saved.size() == expected, "mlp_ext::_mlp_backward expected ", expected,
              " saved tensors, got ", saved.size());
}

}  // namespace

std::vector<Tensor> mlp_forward_cpu(const Tensor& input, at::TensorList weights,
                                    const OptionalTensors& biases, at::IntArrayRef activations) {
  TORCH_CHECK(stack_has_kernel(input, weights, biases, activations),
              "mlp_ext::_mlp_forward takes canonical stacks only; call mlp_ext::mlp");
  return compute_type(input) == at::kDouble
             ? forward<double>(input, weights, biases, activations, /*save=*/true)
             : forward<float>(input, weights, biases, activations, /*save=*/true);
}

Tensor mlp_cpu(const Tensor& input, at::TensorList weights, const OptionalTensors& biases,
               at::IntArrayRef activations) {
  if (!stack_has_kernel(input, weights, biases, activations)) {
    return mlp_composite(input, weights, biases, activations);
  }
  return compute_type(input) == at::kDouble
             ? forward<double>(input, weights, biases, activations, /*save=*/false)[0]
             : forward<float>(input, weights, biases, activations, /*save=*/false)[0];
}

std::vector<Tensor> mlp_backward_cpu(const Tensor& grad, const Tensor& input,
                                     at::TensorList weights, at::TensorList saved,
                                     at::IntArrayRef activations, at::IntArrayRef wanted) {
  check_backward_arguments(grad, input, weights, saved, activations);
  for (const int64_t i : wanted) {
    TORCH_CHECK_INDEX(i >= 0 && i < int64_t(1 + 2 * weights.size()),
                      "mlp_ext::_mlp_backward: no gradient has index ", i);
  }
  return compute_type(input) == at::kDouble
             ? backward<double>(grad, input, weights, saved, activations, wanted)
             : backward<float>(grad, input, weights, saved, activations, wanted);
}

}  // namespace mlp_ext
