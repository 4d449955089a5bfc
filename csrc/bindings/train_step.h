// TrainStep's compiled half: a model's layers, a loss and an optimizer, read as they stand at each
// call, and one plan over them. What may be in it was decided in mlp_ext/train_step.py.
#pragma once

#include <pybind11/pybind11.h>

#include <mutex>
#include <vector>

#include "optimizer_rules.h"
#include "train_loss.h"

namespace mlp_ext {

// One nn.Linear with what follows it.
struct LayerSpec {
  pybind11::dict parameters;  // the module's _parameters
  Activation activation = Activation::none;
  pybind11::object dropout;  // the nn.Dropout behind the activation, or None
};

class TrainStepCore {
 public:
  // rule: the name of one of kRules. max_norm: 0 for no clipping. hooks: the dictionaries in which
  // a hook that is registered later would appear; a call with one in them is refused.
  TrainStepCore(std::vector<LayerSpec> layers, LossSpec loss, pybind11::object optimizer,
                const std::string& rule, double max_norm, std::vector<pybind11::dict> hooks);

  // One step on x (rows, in_features) and y. Returns the loss, or None, with nothing changed, if a
  // parameter of the optimizer has no state yet.
  pybind11::object call(const at::Tensor& x, const at::Tensor& y, bool keep_grad);

 private:
  template <class T>
  pybind11::object run(const at::Tensor& x, const at::Tensor& y, bool keep_grad);

  std::vector<LayerSpec> layers_;
  LossSpec loss_;
  pybind11::object optimizer_;
  const UpdateRule* rule_;
  double max_norm_;
  std::vector<pybind11::dict> hooks_;
  std::mutex mutex_;   // of buffer_: one call at a time
  at::Tensor buffer_;  // grown to the largest batch
};

}  // namespace mlp_ext
