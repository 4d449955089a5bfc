// Every rule, for every storage type.
#include "optimizers_launch.cuh"

namespace mlp_ext::cuda {

#define MLP_STORED(Name, S, W)                                                                \
  template cudaError_t optimizer_step<Name##Args, S, W>(const Name##Args&, const StepTensor*, \
                                                        int64_t, const StepScaling&,          \
                                                        const DeviceInfo&, cudaStream_t);     \
  template cudaError_t optimizer_step_on_device<Name##Args, S, W>(                            \
      const Name##Args&, const StepTensor*, const StepCounters*, int64_t, DeviceScalar,       \
      const StepScaling&, void*, const DeviceInfo&, cudaStream_t);
#define MLP_RULE(name, Name)           \
  MLP_STORED(Name, float, float)       \
  MLP_STORED(Name, double, double)     \
  MLP_STORED(Name, BFloat16, BFloat16) \
  MLP_STORED(Name, Float16, Float16)   \
  MLP_STORED(Name, BFloat16, float)    \
  MLP_STORED(Name, Float16, float)
MLP_FOR_EACH_RULE(MLP_RULE)

}  // namespace mlp_ext::cuda
