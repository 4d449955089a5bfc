// Describes products to the cuBLASLt that is linked: see test_cublaslt.py. Prints its version.
#include <cstdio>

#include "../csrc/cuda/cublaslt/lt_api.cpp"
#include "../csrc/cuda/cublaslt/lt_plan.cpp"

using namespace mlp_ext::cuda;

int main() {
  const LtFunctions* const functions = lt_functions();
  if (!functions) return std::puts("the library is not there, or lacks a function"), 1;
  int failures = 0;
  const auto describe = [&](cudaDataType_t type, cublasComputeType_t compute, LtEpilogue epilogue) {
    using P = LtProblem;
    P p;
    p[P::kType] = type, p[P::kCompute] = compute, p[P::kEpilogue] = int64_t(epilogue);
    p[P::kM] = 200, p[P::kN] = 300, p[P::kK] = 400;
    p[P::kTransposeA] = 1, p[P::kLdA] = 400, p[P::kLdB] = 400, p[P::kLdD] = 200;
    p[P::kLdMask] =
        epilogue == LtEpilogue::relu_gradient || epilogue == LtEpilogue::relu_gradient_sum ? 256
                                                                                           : 0;
    p[P::kAlignA] = p[P::kAlignB] = p[P::kAlignD] = 16;
    const bool good = lt_describes(*functions, p);
    if (!good) std::printf("type %d, compute %d, epilogue %d\n", type, compute, int(epilogue));
    failures += !good;
  };
  for (const LtEpilogue e : {LtEpilogue::none, LtEpilogue::bias, LtEpilogue::relu_gradient,
                             LtEpilogue::relu_gradient_sum, LtEpilogue::sum_of_b}) {
    describe(CUDA_R_32F, CUBLAS_COMPUTE_32F, e);
    describe(CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32, e);
    describe(CUDA_R_64F, CUBLAS_COMPUTE_64F, e);
    describe(CUDA_R_16BF, CUBLAS_COMPUTE_32F, e);
    describe(CUDA_R_16F, CUBLAS_COMPUTE_32F, e);
  }
  std::printf("cuBLASLt %zu, %d refused\n", functions->GetVersion(), failures);
  return failures;
}
