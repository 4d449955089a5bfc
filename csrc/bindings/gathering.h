// Batches of a dataset's tensors by index_select, where torch.stack of their rows gives the same.
#pragma once

#include <string>

#include "python.h"

namespace mlp_ext {

// `tensors`: of a TensorDataset. "" if that is so of all, else which one is not so and why.
std::string why_not_gathered(PyObject* tensors);

// A list of each tensor's rows `index` (int64). None where they cannot be gathered, or where not
// all is as usual (surroundings.h): what a dataset holds may change in the middle of a pass.
pybind11::object gather(PyObject* tensors, const at::Tensor& index);

}  // namespace mlp_ext
