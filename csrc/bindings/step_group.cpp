#include "step_group.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include "../step/train_step.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

// Of the step's exchange().
template <class T>
int64_t exchange_size(const std::vector<int64_t>& grad_sizes) {
  return step::TrainStep<T>::kNotes + step::Placer<T>::taken(grad_sizes);
}

}  // namespace

StepGroup::StepGroup(py::object group, int processes, std::vector<int64_t> grad_sizes,
                     bool is_double)
    : group_(std::move(group)),
      processes_(processes),
      grad_sizes_(std::move(grad_sizes)),
      type_(is_double ? at::kDouble : at::kFloat),
      size_(is_double ? exchange_size<double>(grad_sizes_) : exchange_size<float>(grad_sizes_)) {}

void StepGroup::check(const std::vector<int64_t>& grad_sizes, at::ScalarType type) const {
  TORCH_CHECK(grad_sizes == grad_sizes_ && type == type_,
              "TrainStep: the model's parameters, their sizes, dtype or which of them require a "
              "gradient are not as this TrainStep was made with; with a process group, make "
              "another in every process");
}

// By calls of compiled functions from compiled code: Python looks for signals between two lines of
// its own, and a KeyboardInterrupt behind the all-reduce would lose the step here alone.
void StepGroup::meet(const Tensor& message) {
  ++meetings_;
  is_apart_ = true;
  py::list tensors;
  tensors.append(as_python(message));
  group_.attr("allreduce")(tensors).attr("wait")();
}

void StepGroup::expect_all(Note note, double steps, double ends) {
  is_apart_ = (note == kSteps ? steps : ends) != processes_;
  TORCH_CHECK(!is_apart_, "TrainStep: of the ", processes_, " processes of the group ", steps,
              " came for a step, ", ends, " to the end of their batches, and ",
              processes_ - steps - ends, " failed. None of them has taken this step.");
}

template <class T>
void StepGroup::add_up(std::span<T> exchange) {
  const WithGil gil;
  TORCH_INTERNAL_ASSERT(int64_t(exchange.size()) == size_);
  exchange[kSteps] = 1, exchange[kEnds] = 0;
  meet(at::from_blob(exchange.data(), {size_}, at::dtype(type_)));
  expect_all(kSteps, exchange[kSteps], exchange[kEnds]);
}

void StepGroup::end() {
  const Tensor message = at::zeros({size_}, type_);
  message[kEnds] = 1;
  meet(message);
  expect_all(kEnds, message[kSteps].item<double>(), message[kEnds].item<double>());
}

void StepGroup::leave() { meet(at::zeros({size_}, type_)); }

template void StepGroup::add_up<float>(std::span<float>);
template void StepGroup::add_up<double>(std::span<double>);

}  // namespace mlp_ext
