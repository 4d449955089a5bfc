// The optimizers' steps over whole parameter lists: torch.optim's param_groups and state, read as
// they stand, one parallel region for all tensors of all groups on the CPU, a few launches for
// those on CUDA, where nothing is waited for. They return a StepResult (the Python half is
// mlp_ext/optim.py), and throw RuntimeError, with nothing changed, for states that do not fit and
// for memory that has been freed.
#pragma once

#include "optimizer_rules.h"

namespace mlp_ext {

// `groups`: optimizer.param_groups; `state`: optimizer.state, whatever their types; `grad_scale`,
// `found_inf`: what torch.amp.GradScaler sets, or None.
int optimizer_step(const UpdateRule& rule, const pybind11::object& groups,
                   const pybind11::object& state, const pybind11::object& grad_scale,
                   const pybind11::object& found_inf);

// Throws RuntimeError for a tensor of the list whose memory has been freed or cut: torch's own
// functions would read and write there.
void refuse_freed(const pybind11::list& tensors);

// torch.nn.utils.clip_grad_norm_ with norm_type 2: scales the gradients and returns their norm.
// None, with nothing changed, for what is torch's to do or to refuse: gradients other than dense
// float32 or float64, of one device and dtype and without shared memory; no gradients; and with
// error_if_nonfinite a norm that is not finite. On CUDA the norm stays on the device, so that with
// error_if_nonfinite it is torch's to wait for it. Throws as refuse_freed() does.
pybind11::object clip_grad_norm(const pybind11::list& parameters, double max_norm,
                                bool error_if_nonfinite);

// Sets every parameter's grad to None. False, with nothing changed, if one of them is of a subclass
// of Tensor, for which grad may be more than a field, or if groups, or a group's params, are no
// list or tuple.
bool clear_grads(const pybind11::object& groups);

}  // namespace mlp_ext
