// A pass over a data set in memory: steps on gathered batches, without Python between them.
#include <ATen/EmptyTensor.h>

#include <chrono>
#include <cstring>

#include "cpu_kernels.h"
#include "train_step.h"

namespace mlp_ext {

namespace py = pybind11;
using at::Tensor;

namespace {

// How long the GIL is left alone: an interrupt is seen, and other threads' changes to options are
// read, as often as this.
constexpr auto kInterval = std::chrono::milliseconds(20);

// Steps so long that the clock may be read at each.
constexpr int64_t kLongWork = 10'000;

// Targets of one batch at a time, in memory of its own.
class Targets {
 public:
  Targets(const Tensor& y, int64_t size) : from_(y.contiguous().resolve_neg()) {
    std::vector<int64_t> sizes = from_.sizes().vec();
    sizes[0] = size;
    batch_ = at::empty(sizes, from_.options());
    bytes_ = batch_.nbytes() / size;
  }
  const Tensor& gather(const int64_t* index) {
    const char* from = static_cast<const char*>(from_.const_data_ptr());
    char* to = static_cast<char*>(batch_.mutable_data_ptr());
    for (int64_t m = 0; m < batch_.size(0); ++m) {
      std::memcpy(to + m * bytes_, from + index[m] * bytes_, bytes_);
    }
    return batch_;
  }

 private:
  Tensor from_, batch_;
  size_t bytes_;
};

}  // namespace

template <class T>
int TrainStepCore::steps(const Tensor& x, const Tensor& y, const Tensor& index, int64_t size,
                         const Tensor& losses) {
  const int64_t batches = index.size(0) / size;
  const int64_t* rows = index.const_data_ptr<int64_t>();
  T* const results = losses.mutable_data_ptr<T>();
  Targets targets(y, size);
  for (int64_t b = 0; b < batches;) {
    LivePlan<T>& live = current<T>(/*gathers=*/true);
    const Tensor features = as_matrix(x, flattens_, live.in_features());
    live.check_rows(size);
    if (live.lacks_state()) {
      TORCH_CHECK(b == 0, "TrainStep: states of the optimizer were removed during an epoch");
      // What the first batch would be refused for is to be seen before states are made.
      CheckedLoss<T>(spec_.loss, targets.gather(rows), size, live.out_features());
      return int(StepOutcome::kMissingState);
    }
    live.begin(size);
    auto& plan = live.plan();
    std::exception_ptr error;
    int64_t run = 0;
    {
      const py::gil_scoped_release without_gil;
      const auto until = std::chrono::steady_clock::now() + kInterval;
      try {
        for (; b + run < batches; ++run) {
          const bool looks = run > 0 && (run % 16 == 0 || plan.work() > kLongWork);
          if (looks && std::chrono::steady_clock::now() > until) break;
          const int64_t* const batch = rows + (b + run) * size;
          const CheckedLoss<T> loss(spec_.loss, targets.gather(batch), size, live.out_features());
          plan.set_gather({data_of<T>(features), row_stride(features), batch});
          plan.set_loss(loss.with(plan.output(), plan.output_grad()));
          live.next();
          run_plan(plan);
          live.advance();
          results[b + run] = T(plan.loss());
        }
      } catch (...) {
        error = std::current_exception();
      }
    }
    live.end(run);
    b += run;
    if (error) std::rethrow_exception(error);
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
  return int(StepOutcome::kDone);
}

int TrainStepCore::epoch(const Tensor& x, const Tensor& y, const Tensor& index, int64_t size,
                         const Tensor& losses) {
  if (const StepOutcome outcome = check(x); outcome != StepOutcome::kDone) return int(outcome);
  TORCH_CHECK_VALUE(x.size(0) == y.size(0), "TrainStep got ", x.size(0), " features and ",
                    y.size(0), " targets");
  const int64_t* rows = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.numel(); ++i) {
    TORCH_CHECK_INDEX(rows[i] >= 0 && rows[i] < x.size(0), "index ", rows[i],
                      " is out of range for a data set of ", x.size(0));
  }
  const auto lock = locked();
  return with_type_of(x,
                      [&](auto type) { return steps<decltype(type)>(x, y, index, size, losses); });
}

}  // namespace mlp_ext
