#include "layer_products.h"

#include <ATen/ops/mm.h>

#include "../../cuda/cublaslt/lt_gemm.h"
#include "../../cuda/elementwise/activation.h"
#include "../../cuda/elementwise/activation_backward.h"
#include "../../cuda/gemm/gemm.h"
#include "../stack_tensors.h"
#include "launching.h"

namespace mlp_ext {

using at::Tensor;

namespace {

// One of the two is 1, also where a size of 1 lets a stride be anything.
int64_t stride_of(const Tensor& t, int64_t d) { return t.size(d) == 1 ? 1 : t.stride(d); }

// C = A B without an epilogue; transposes are those of the tensors' strides.
template <class T>
cuda::GemmArgs<T> product(const Tensor& a, const Tensor& b, const Tensor& c) {
  cuda::GemmArgs<T> args{};
  args.M = a.size(0), args.N = b.size(1), args.K = a.size(1);
  args.a = data_of<T>(a), args.a_row = stride_of(a, 0), args.a_col = stride_of(a, 1);
  args.b = data_of<T>(b), args.b_row = stride_of(b, 0), args.b_col = stride_of(b, 1);
  args.c = mutable_data_of<T>(c), args.ldc = c.size(1);
  return args;
}

template <class T>
std::string in_words(const cuda::LtGemm<T>& product, const Tensor& like) {
  using P = cuda::LtProblem;
  const P& p = product.problem;
  return c10::str("a product of ", p[P::kM], " x ", p[P::kN], " x ", p[P::kK], " in ",
                  like.scalar_type(), ", epilogue ", p[P::kEpilogue], ", transposed ",
                  p[P::kTransposeA], " ", p[P::kTransposeB], ", leading dimensions ", p[P::kLdA],
                  " ", p[P::kLdB], " ", p[P::kLdD], ", aligned to ", p[P::kAlignA], " ",
                  p[P::kAlignB], " ", p[P::kAlignD], " bytes");
}

// By cuBLASLt, where it is chosen; else false, and nothing is done.
template <class T>
bool run_by_library(const cuda::GemmArgs<T>& args, T* row_sum, const Tensor& like,
                    const DeviceScope& device) {
  const cuda::Precision precision = float32_precision();
  if (!cuda::lt_may_be_chosen(args, precision)) return false;
  const cuda::DeviceInfo info = device.info();
  const cuda::Library library = device.library();
  cuda::LtGemm<T> product;
  if (!cuda::lt_gemm_plan(args, row_sum, precision, info, library, product)) return false;
  if (!cuda::lt_is_chosen(product, info)) return false;
  const Tensor memory = workspace(like, product.workspace());
  const cuda::LtResult result =
      cuda::lt_gemm(product, info, library, pointer_to(memory), device.stream());
  check_launch(result.error);
  if (result.refused()) {
    TORCH_WARN("mlp_ext: cuBLASLt refused what its heuristic had offered (status ",
               int(result.status), "), and our own kernel is used: ", in_words(product, like));
    return false;
  }
  TORCH_CHECK(result.status == CUBLAS_STATUS_SUCCESS, "cuBLASLt returned status ",
              int(result.status), " for ", in_words(product, like));
  return true;
}

template <class T>
void run(const cuda::GemmArgs<T>& args, const Tensor& like, const DeviceScope& device) {
  if (run_by_library<T>(args, nullptr, like, device)) return;
  const cuda::Precision precision = float32_precision();
  const Tensor memory = workspace(like, cuda::gemm_workspace(args, precision, device.info()));
  check_launch(cuda::gemm(args, precision, device.info(), pointer_to(memory), device.stream()));
}

template <class T>
void run_activation_backward(const Tensor& dy, Activation activation, const Tensor& saved,
                             const Tensor& dz, const Tensor& sums, const DeviceScope& device) {
  cuda::ActivationBackwardArgs<T> args{};
  args.rows = dy.size(0), args.columns = dy.size(1);
  args.activation = activation;
  args.dy = data_of<T>(dy), args.ld_dy = row_stride(dy);
  if (saved.defined()) args.saved = data_of<T>(saved), args.ld_saved = row_stride(saved);
  args.dz = mutable_data_of<T>(dz), args.ld_dz = args.columns;
  args.sum = mutable_data_of<T>(sums);
  const size_t bytes = sums.defined() ? cuda::activation_backward_workspace<T>(
                                            args.rows, args.columns, device.info())
                                      : 0;
  const Tensor memory = workspace(dy, bytes);
  check_launch(cuda::activation_backward(args, pointer_to(memory), device.info(), device.stream()));
}

// cuBLAS, through PyTorch.
void multiply(const Tensor& a, const Tensor& b, const Tensor& c) {
  Tensor out = c;
  at::mm_out(out, a, b);
}

}  // namespace

void LayerProducts::forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                            Activation activation, const Tensor& y, const Tensor& z) const {
  with_storage_type(x, [&](auto type) {
    using T = decltype(type);
    cuda::GemmArgs<T> args = product<T>(x, weight.t(), z.defined() ? z : y);
    args.bias = data_of<T>(bias);
    args.activation = activation;
    if (z.defined()) args.activated = mutable_data_of<T>(y), args.ld_activated = y.size(1);
    if constexpr (std::is_same_v<T, double>) {
      if (run_by_library<double>(args, nullptr, x, device_)) return;
      multiply(x, weight.t(), y);
      cuda::ActivationArgs<double> behind{};
      behind.rows = y.size(0), behind.columns = y.size(1), behind.activation = activation;
      behind.x = data_of<double>(y), behind.ld_x = behind.columns;
      behind.bias = data_of<double>(bias);
      behind.y = mutable_data_of<double>(y), behind.ld_y = behind.columns;
      behind.z = mutable_data_of<double>(z), behind.ld_z = behind.columns;
      if (bias.defined() || activation != Activation::none) {
        check_launch(cuda::activation(behind, device_.stream()));
      }
    } else {
      run(args, x, device_);
    }
  });
}

void LayerProducts::input_gradient(const Tensor& dz, const Tensor& weight, Activation below,
                                   const Tensor& saved, const Tensor& dx,
                                   const Tensor& sums) const {
  with_storage_type(dz, [&](auto type) {
    using T = decltype(type);
    cuda::GemmArgs<T> args = product<T>(dz, weight, dx);
    args.activation = below;
    if (saved.defined()) args.saved = data_of<T>(saved), args.ld_saved = row_stride(saved);
    args.column_sum = mutable_data_of<T>(sums);
    if constexpr (std::is_same_v<T, double>) {
      if (run_by_library<double>(args, nullptr, dz, device_)) return;
      multiply(dz, weight, dx);
      if (below != Activation::none || sums.defined()) {
        run_activation_backward<double>(dx, below, saved, dx, sums, device_);
      }
    } else {
      run(args, dz, device_);
    }
  });
}

void LayerProducts::weight_gradient(const Tensor& dz, const Tensor& x, const Tensor& dw,
                                    const Tensor& sums) const {
  with_storage_type(dz, [&](auto type) {
    using T = decltype(type);
    const cuda::GemmArgs<T> args = product<T>(dz.t(), x, dw);
    if (sums.defined()) {
      if (run_by_library(args, mutable_data_of<T>(sums), dz, device_)) return;
      run_activation_backward<T>(dz, Activation::none, Tensor(), Tensor(), sums, device_);
    }
    if constexpr (std::is_same_v<T, double>) {
      if (!run_by_library<double>(args, nullptr, dz, device_)) multiply(dz.t(), x, dw);
    } else {
      run(args, dz, device_);
    }
  });
}

void LayerProducts::activation_gradient(const Tensor& dy, Activation activation,
                                        const Tensor& saved, const Tensor& dz,
                                        const Tensor& sums) const {
  with_storage_type(dy, [&](auto type) {
    run_activation_backward<decltype(type)>(dy, activation, saved, dz, sums, device_);
  });
}

}  // namespace mlp_ext
