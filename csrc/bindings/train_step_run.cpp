// The steps of a plan that is up to date.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>

#include <cmath>

#include "cpu_kernels.h"
#include "train_step_plan.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

// The seed of a step's Dropouts, from PyTorch's default generator: manual_seed makes a run
// reproducible. before: receives the state that it was drawn from, unless null.
uint64_t draw_seed(std::optional<at::mt19937>* before) {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  auto* const engine = at::check_generator<at::CPUGeneratorImpl>(generator);
  if (before) *before = engine->engine();
  return engine->random64();
}

// Unless somebody else has drawn meanwhile, whose numbers are not to come again.
void put_back(const at::mt19937& state) {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  auto* const engine = at::check_generator<at::CPUGeneratorImpl>(generator);
  at::mt19937 drawn = state;
  drawn(), drawn();  // random64()
  const auto now = engine->engine().data(), then = drawn.data();
  const bool stands = now.seed_ == then.seed_ && now.left_ == then.left_ &&
                      now.next_ == then.next_ && now.state_ == then.state_;
  if (stands) engine->set_engine(state);
}

// Laid out as `t`, of which a side of length 1 may have any stride. Not by the dispatcher, where a
// mode may run Python code.
template <class T>
Tensor empty_like(const Tensor& t) {
  return at::detail::empty_strided_cpu(t.sizes(), t.strides(), kType<T>);
}

// Of what a step has written to, past autograd; null: nothing.
void bump_version(PyObject* tensor) {
  if (tensor) tensor_of(tensor).unsafeGetTensorImpl()->bump_version();
}

}  // namespace

template <class T>
void LivePlan<T>::begin(int64_t rows, bool keep_grad) {
  plan_->lay_out(rows);
  grads_.clear();
  for (const Slot& slot : model_.slots) {
    if (keep_grad) grads_.push_back(empty_like<T>(slot.param()));
  }
  auto& updates = plan_->updates();
  for (size_t i = 0; i < changed_.size(); ++i) {
    Changed& changed = changed_[i];
    if (changed.makes_first_state && !changed.first_state.defined()) {
      changed.first_state = empty_like<T>(tensor_of(changed.object));
      updates[i].states[0] = mutable_data_of<T>(changed.first_state);
    }
    if (changed.step) changed.counters.step = counter_value(tensor_of(changed.step));
    if (changed.mu_product) {
      changed.counters.mu_product = counter_value(tensor_of(changed.mu_product));
    }
  }
}

template <class T>
void LivePlan<T>::next(bool may_fail) {
  auto& updates = plan_->updates();
  for (size_t i = 0; spec_.rule->counts && i < changed_.size(); ++i) {
    Changed& changed = changed_[i];
    // Mostly all parameters of a group have the same counters.
    const Changed* const before = i > 0 ? &changed_[i - 1] : nullptr;
    if (before && before->group == changed.group && before->counters.same_as(changed.counters)) {
      changed.next = before->next;
      updates[i].args = updates[i - 1].args;
      continue;
    }
    changed.next = changed.counters;
    ++changed.next.step;
    spec_.rule->at_step(updates[i].args, changed.next);
    check_options(spec_.rule->strange(updates[i].args));  // a decay may come to divide by zero
  }
  before_draw_.reset();
  if (model_.is_random) plan_->set_seed(draw_seed(may_fail ? &before_draw_ : nullptr));
  plan_->prepare();
}

template <class T>
void LivePlan<T>::run(const std::function<void()>& host_loss) {
  plan_->set_host_loss(bool(host_loss));
  if (!spec_.group && !host_loss) return run_plan(*plan_);
  std::function<void()> exchange;
  if (spec_.group) exchange = [&] { spec_.group->add_up(plan_->exchange()); };
  try {
    run_plan(*plan_, host_loss, exchange);
  } catch (...) {
    if (before_draw_) put_back(*before_draw_);
    throw;
  }
}

template <class T>
void LivePlan<T>::advance() {
  for (size_t i = 0; i < changed_.size(); ++i) {
    if (spec_.rule->counts) {
      changed_[i].counters = changed_[i].next;
    } else if (changed_[i].makes_first_state) {
      std::get<SgdArgs>(plan_->updates()[i].args).first = false;
    }
  }
  for (const RunningStatistics<T>& moving : model_.running) {
    const step::LayerBuffers<T>& buffers = plan_->buffers(moving.layer);
    const double rows = double(plan_->rows());
    double momentum = moving.momentum;
    if (moving.batches_data != nullptr) {
      const int64_t count = ++*moving.batches_data;
      if (std::isnan(momentum)) momentum = 1.0 / double(count);
    }
    T* const mean = moving.mean_data;
    T* const variance = moving.variance_data;
    for (int64_t n = 0; n < plan_->layers()[moving.layer].out; ++n) {
      const double unbiased = buffers.variance[n] * (rows / (rows - 1));
      mean[n] = T(momentum * buffers.mean[n] + (1 - momentum) * mean[n]);
      variance[n] = T(momentum * unbiased + (1 - momentum) * variance[n]);
    }
  }
}

template <class T>
void LivePlan<T>::end(int64_t steps) {
  if (steps == 0) return;
  keep_gradients();
  if (!std::exchange(told_, true)) {
    // An LR scheduler warns if no step was taken before it, and looks here.
    spec_.optimizer.attr("_opt_called") = true;
  }
  for (Changed& changed : changed_) {
    bump_version(changed.object);
    for (PyObject* const state : changed.states) bump_version(state);
    if (changed.step) set_counter(tensor_of(changed.step), changed.counters.step);
    if (changed.mu_product) set_counter(tensor_of(changed.mu_product), changed.counters.mu_product);
    if (!std::exchange(changed.makes_first_state, false)) continue;
    const py::object made = as_python(std::exchange(changed.first_state, {}));
    if (PyDict_SetItem(changed.own, spec_.rule->state_key(0), made.ptr()) != 0) {
      throw py::error_already_set();
    }
  }
  for (const RunningStatistics<T>& moving : model_.running) {
    for (PyObject* const object : {moving.mean, moving.variance, moving.batches}) {
      bump_version(object);
    }
  }
}

template <class T>
void LivePlan<T>::keep_gradients() {
  if (grads_.empty()) return;
  // The loop's zero_grad() would have cleared what an earlier step left there.
  for (PyObject* const other : others_) tensor_of(other).mutable_grad().reset();
  const T scale = T(plan_->grad_scale());
  for (size_t g = 0; g < grads_.size(); ++g) {
    const Slot& slot = model_.slots[g];
    const step::LayerBuffers<T>& buffers = plan_->buffers(slot.layer);
    const T* from = slot.is_bias ? buffers.db : buffers.dw;
    T* to = mutable_data_of<T>(grads_[g]);
    for (int64_t i = 0; i < grads_[g].numel(); ++i) to[i] = scale * from[i];
    slot.param().mutable_grad() = std::exchange(grads_[g], {});
  }
}

template void LivePlan<float>::begin(int64_t, bool);
template void LivePlan<double>::begin(int64_t, bool);
template void LivePlan<float>::next(bool);
template void LivePlan<double>::next(bool);
template void LivePlan<float>::run(const std::function<void()>&);
template void LivePlan<double>::run(const std::function<void()>&);
template void LivePlan<float>::advance();
template void LivePlan<double>::advance();
template void LivePlan<float>::end(int64_t);
template void LivePlan<double>::end(int64_t);

}  // namespace mlp_ext
