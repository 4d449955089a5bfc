// A pass over a data set in memory: steps on gathered batches, without Python between them.
#include <ATen/ops/empty.h>

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

}  // namespace

// Targets of one batch at a time, in memory of its own.
class Targets {
 public:
  // y: not empty, `size` at least 1.
  Targets(const Tensor& y, int64_t size) : from_(y.contiguous().resolve_neg()) {
    std::vector<int64_t> sizes = from_.sizes().vec();
    sizes[0] = size;
    batch_ = at::empty(sizes, from_.options());
    bytes_ = batch_.nbytes() / size;
  }
  int64_t size() const { return batch_.size(0); }
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

// One interval, on from batch `done`, which is moved on.
template <class T>
StepOutcome TrainStepCore::steps(const Tensor& features, Targets& targets, const Tensor& index,
                                 const Tensor& losses, int64_t& done) {
  const int64_t size = targets.size(), batches = losses.size(0);
  const int64_t* rows = index.const_data_ptr<int64_t>();
  T* const results = losses.mutable_data_ptr<T>();
  LivePlan<T>& live = current<T>(/*gathers=*/true);
  live.check_input(features, features);
  live.check_rows(size);
  const LossOptions options(spec_.loss);
  if (live.lacks_state()) {
    // What the batch would be refused for is to be seen before states are made.
    CheckedLoss<T>(options, targets.gather(rows + done * size), size, live.out_features());
    return StepOutcome::kMissingState;
  }
  live.begin(size);
  auto& plan = live.plan();
  std::exception_ptr error;
  int64_t run = 0;
  {
    const WithoutGil without_gil;
    const auto until = std::chrono::steady_clock::now() + kInterval;
    try {
      for (; done + run < batches; ++run) {
        const bool looks = run > 0 && (run % 16 == 0 || plan.work() > kLongWork);
        if (looks && std::chrono::steady_clock::now() > until) break;
        const int64_t* const batch = rows + (done + run) * size;
        const CheckedLoss<T> loss(options, targets.gather(batch), size, live.out_features());
        plan.set_gather({data_of<T>(features), row_stride(features), features.stride(1), batch});
        plan.set_loss(loss.with(plan.output(), plan.output_grad()));
        live.next();
        live.run();
        live.advance();
        results[done + run] = T(plan.loss());
      }
    } catch (...) {
      error = std::current_exception();
    }
  }
  live.end(run);
  done += run;
  if (error) std::rethrow_exception(error);
  return StepOutcome::kDone;
}

std::pair<int, int64_t> TrainStepCore::epoch(const Tensor& x, const Tensor& y, const Tensor& index,
                                             int64_t size, const Tensor& losses, int64_t first) {
  TORCH_CHECK_VALUE(
      size > 0 && index.scalar_type() == at::kLong && index.is_contiguous() &&
          losses.is_contiguous() && losses.dim() == 1 && losses.scalar_type() == x.scalar_type() &&
          losses.numel() == index.numel() / size && first >= 0,
      "TrainStep.epoch: ", index.numel(), " indices for ", losses.numel(), " batches of ", size);
  TORCH_CHECK_VALUE(x.size(0) == y.size(0), "TrainStep got ", x.size(0), " features and ",
                    y.size(0), " targets");
  int64_t done = first;
  Tensor features;
  std::optional<Targets> targets;
  while (done < losses.size(0)) {
    {
      const auto lock = lock_->lock();
      if (const StepOutcome outcome = check(x, y); outcome != StepOutcome::kDone) {
        return {int(outcome), done};
      }
      if (!targets) {
        // Aliases: whatever becomes of x and y, this memory stays.
        features = as_matrix(x, form_).detach();
        const bool narrow = y.scalar_type() == at::kByte && spec_.loss.is_cross_entropy();
        targets.emplace(narrow ? y.to(at::kLong) : y.detach(), size);
        const int64_t* rows = index.const_data_ptr<int64_t>();
        for (int64_t i = 0; i < index.numel(); ++i) {
          TORCH_CHECK_INDEX(rows[i] >= 0 && rows[i] < features.size(0), "index ", rows[i],
                            " is out of range for a data set of ", features.size(0));
        }
      }
      const StepOutcome outcome = with_type_of(features, [&](auto type) {
        return steps<decltype(type)>(features, *targets, index, losses, done);
      });
      if (outcome != StepOutcome::kDone) return {int(outcome), done};
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();  // a handler may call the step
    lock_->yield();
  }
  return {int(StepOutcome::kDone), done};
}

}  // namespace mlp_ext
