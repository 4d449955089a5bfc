// What is done to the gradients of all parameters at once, in one call each: their 2-norm together
// and their scaling to at most max_norm, in one parallel region; and optimizer.zero_grad(), on
// which torch spends a microsecond a parameter in Python.
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu_kernels.h"
#include "extents.h"
#include "optimizer_cuda.h"
#include "optimizer_state.h"
#include "optimizers.h"
#include "param_group.h"
#include "stack_tensors.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

template <class T>
struct Flat {
  T* values;
  int64_t size;
};

// Returns the norm; `raises`: leave the gradients alone if it is not finite.
template <class T>
T clip(const std::vector<Flat<T>>& grads, double max_norm, bool raises) {
  const cpu::ComputeKernels<T>& kernels = compute_kernels<T>(cpu::kernels());
  const auto length = [](const Flat<T>& grad) { return grad.size; };
  int64_t total = 0;
  for (const auto& grad : grads) total += grad.size;
  const int threads = threads_for(total / step::kTouchedElementsPerWork);
  std::vector<double> squares(threads, 0);
  const auto norm = [&squares] {
    double sum = 0;
    for (const double share : squares) sum += share;
    return static_cast<T>(std::sqrt(sum));
  };
  parallel_phases(2, threads, [&](int phase, int thread) {
    if (phase == 0) {
      double sum = 0;
      step::for_share_of_elements(grads, length, thread, threads,
                                  [&](const Flat<T>& grad, int64_t first, int64_t n) {
                                    sum += kernels.sum_of_squares(grad.values + first, n);
                                  });
      squares[thread] = sum;
      return;
    }
    const T found = norm();
    if (raises && !std::isfinite(found)) return;
    // In the gradients' precision, as torch does it. NaN is not above 1, and so makes all NaN.
    const T wanted = static_cast<T>(max_norm) * (T(1) / (found + static_cast<T>(1e-6)));
    if (wanted >= 1) return;
    step::for_share_of_elements(grads, length, thread, threads,
                                [&](const Flat<T>& grad, int64_t first, int64_t n) {
                                  kernels.scale(grad.values + first, wanted, n);
                                });
  });
  return norm();
}

template <class T>
py::object clip_all(const std::vector<Tensor>& grads, double max_norm, bool raises) {
  std::vector<Flat<T>> flat;
  for (const Tensor& grad : grads) flat.push_back({mutable_data_of<T>(grad), grad.numel()});
  const Tensor result = at::empty({}, grads.front().options().requires_grad(false));
  T norm;
  {
    const WithoutGil without_gil;
    norm = clip(flat, max_norm, raises);
  }
  if (raises && !std::isfinite(norm)) return py::none();
  *result.mutable_data_ptr<T>() = norm;
  // Scaled or not: torch multiplies in any case, and autograd is to notice alike.
  for (const Tensor& grad : grads) grad.unsafeGetTensorImpl()->bump_version();
  return as_python(result);
}

py::object clip_on_cuda(const std::vector<Tensor>& grads, double max_norm, bool raises) {
  const auto type = grads.front().scalar_type();
  const bool empty =
      std::all_of(grads.begin(), grads.end(), [](const Tensor& grad) { return grad.numel() == 0; });
  if (raises || empty || (type != at::kFloat && type != at::kDouble)) return py::none();
  const Tensor norm = clip_cuda(grads, max_norm);
  for (const Tensor& grad : grads) grad.unsafeGetTensorImpl()->bump_version();
  return as_python(norm);
}

}  // namespace

py::object clip_grad_norm(const py::list& parameters, double max_norm, bool error_if_nonfinite) {
  std::vector<Tensor> grads;
  Extents extents;
  for (const py::handle object : parameters) {
    if (!is_exactly_tensor(object.ptr())) return py::none();
    const Tensor& grad = tensor_of(object.ptr()).grad();
    if (!grad.defined()) continue;
    const bool alike = grads.empty() || (grad.scalar_type() == grads.front().scalar_type() &&
                                         grad.device() == grads.front().device());
    check_memory(grad, "a gradient");
    if (!is_plain(grad) || !alike) return py::none();
    extents.add(grad);
    grads.push_back(grad);
  }
  if (grads.empty() || extents.overlap()) return py::none();
  if (is_cuda_kernel_device(grads.front().device())) {
    return clip_on_cuda(grads, max_norm, error_if_nonfinite);
  }
  switch (grads.front().scalar_type()) {
    case at::kFloat:
      return clip_all<float>(grads, max_norm, error_if_nonfinite);
    case at::kDouble:
      return clip_all<double>(grads, max_norm, error_if_nonfinite);
    default:
      return py::none();
  }
}

void refuse_freed(const py::list& tensors) {
  for (const py::handle object : tensors) {
    if (is_tensor(object.ptr())) check_memory(tensor_of(object.ptr()), "a tensor");
  }
}

bool clear_grads(const py::object& groups) {
  static PyObject* const kParams = interned("params");
  if (!reads_as_sequence(groups.ptr())) return false;
  for (const bool clearing : {false, true}) {
    for (Py_ssize_t g = 0; g < PySequence_Fast_GET_SIZE(groups.ptr()); ++g) {
      PyObject* const group = PySequence_Fast_GET_ITEM(groups.ptr(), g);
      if (!reads_as_dict(group)) return false;
      // References are held: a gradient that goes may run Python code.
      const auto params = py::reinterpret_borrow<py::object>(PyDict_GetItem(group, kParams));
      if (!params || !reads_as_sequence(params.ptr())) return false;
      for (Py_ssize_t p = 0; p < PySequence_Fast_GET_SIZE(params.ptr()); ++p) {
        const auto param =
            py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(params.ptr(), p));
        if (!is_exactly_tensor(param.ptr())) return false;
        if (clearing) tensor_of(param.ptr()).mutable_grad().reset();
      }
    }
  }
  return true;
}

}  // namespace mlp_ext
