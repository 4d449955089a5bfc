#include "lt_plan.h"

#include <mutex>
#include <unordered_map>

namespace mlp_ext::cuda {

namespace {

using P = LtProblem;

// The library's descriptors of one problem.
class Descriptors {
 public:
  Descriptors(const LtFunctions& lt, const P& p) : lt_(lt) {
    const auto type = static_cast<cudaDataType_t>(p[P::kType]);
    const auto compute = static_cast<cublasComputeType_t>(p[P::kCompute]);
    const cudaDataType_t scale = type == CUDA_R_64F ? CUDA_R_64F : CUDA_R_32F;
    keep(lt.MatmulDescCreate(&product_, compute, scale));
    set(CUBLASLT_MATMUL_DESC_TRANSA, operation(p[P::kTransposeA]));
    set(CUBLASLT_MATMUL_DESC_TRANSB, operation(p[P::kTransposeB]));
    const auto epilogue = static_cast<LtEpilogue>(p[P::kEpilogue]);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{name_of(epilogue)});
    if (p[P::kLdMask] > 0) set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t{p[P::kLdMask]});
    const int64_t m = p[P::kM], n = p[P::kN], k = p[P::kK];
    a_ = layout(type, m, k, p[P::kTransposeA], p[P::kLdA]);
    b_ = layout(type, k, n, p[P::kTransposeB], p[P::kLdB]);
    d_ = layout(type, m, n, false, p[P::kLdD]);
  }
  ~Descriptors() {
    for (const cublasLtMatrixLayout_t layout : {a_, b_, d_}) {
      if (layout) lt_.MatrixLayoutDestroy(layout);
    }
    if (product_) lt_.MatmulDescDestroy(product_);
  }
  Descriptors(const Descriptors&) = delete;
  Descriptors& operator=(const Descriptors&) = delete;

  void set_pointers(const void* vector, const void* mask) {
    if (vector) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, vector);
    if (mask) set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, mask);
  }
  bool good() const { return good_; }
  cublasLtMatmulDesc_t product() const { return product_; }
  cublasLtMatrixLayout_t a() const { return a_; }
  cublasLtMatrixLayout_t b() const { return b_; }
  cublasLtMatrixLayout_t d() const { return d_; }

 private:
  static int32_t operation(int64_t transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; }
  static cublasLtEpilogue_t name_of(LtEpilogue epilogue) {
    switch (epilogue) {
      case LtEpilogue::bias:
        return CUBLASLT_EPILOGUE_BIAS;
      case LtEpilogue::relu_gradient:
        return CUBLASLT_EPILOGUE_DRELU;
      case LtEpilogue::relu_gradient_sum:
        return CUBLASLT_EPILOGUE_DRELU_BGRAD;
      case LtEpilogue::sum_of_b:
        return CUBLASLT_EPILOGUE_BGRADB;
      default:
        return CUBLASLT_EPILOGUE_DEFAULT;
    }
  }
  void keep(cublasStatus_t status) { good_ = good_ && status == CUBLAS_STATUS_SUCCESS; }
  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    if (good_) keep(lt_.MatmulDescSetAttribute(product_, attribute, &value, sizeof value));
  }
  cublasLtMatrixLayout_t layout(cudaDataType_t type, int64_t rows, int64_t columns, bool transposed,
                                int64_t ld) {
    cublasLtMatrixLayout_t made = nullptr;
    if (transposed) std::swap(rows, columns);
    if (good_) keep(lt_.MatrixLayoutCreate(&made, type, rows, columns, ld));
    return made;
  }

  const LtFunctions& lt_;
  bool good_ = true;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
};

class Preference {
 public:
  Preference(const LtFunctions& lt, const P& p) : lt_(lt) {
    good_ = lt.MatmulPreferenceCreate(&preference_) == CUBLAS_STATUS_SUCCESS;
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kLtMostWorkspace});
    // Not in the type of the output, as would be allowed for 16 bits.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t(p[P::kAlignA]));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t(p[P::kAlignB]));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t(p[P::kAlignD]));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t(p[P::kAlignD]));
  }
  ~Preference() {
    if (preference_) lt_.MatmulPreferenceDestroy(preference_);
  }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

  bool good() const { return good_; }
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  template <class Value>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) {
    good_ = good_ && lt_.MatmulPreferenceSetAttribute(preference_, attribute, &value,
                                                      sizeof value) == CUBLAS_STATUS_SUCCESS;
  }
  const LtFunctions& lt_;
  bool good_;
  cublasLtMatmulPreference_t preference_ = nullptr;
};

// Addresses that are as little aligned as those of any call may be: the heuristic looks at them.
void set_example_pointers(Descriptors& descriptors, const P& p) {
  const auto at = [](uintptr_t address) { return reinterpret_cast<const void*>(address); };
  const bool masked = p[P::kLdMask] > 0, plain = p[P::kEpilogue] == int64_t(LtEpilogue::none);
  constexpr uintptr_t kSomewhere = 1 << 20;
  descriptors.set_pointers(plain ? nullptr : at(kSomewhere + kLtVectorAlign),
                           masked ? at(kSomewhere + kLtMaskAlign) : nullptr);
}

LtPlan ask(const Library& library, const P& problem) {
  const LtFunctions& lt = *library.functions;
  Descriptors described(lt, problem);
  set_example_pointers(described, problem);
  const Preference preference(lt, problem);
  LtPlan plan;
  if (!described.good() || !preference.good()) return plan;
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status =
      lt.MatmulAlgoGetHeuristic(library.handle, described.product(), described.a(), described.b(),
                                described.d(), described.d(), preference.get(), 1, &result, &found);
  plan.possible = status == CUBLAS_STATUS_SUCCESS && found > 0 &&
                  result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= kLtMostWorkspace;
  plan.algo = result.algo;
  plan.workspace = result.workspaceSize;
  return plan;
}

struct HashOfProblem {
  size_t operator()(const P& p) const {
    uint64_t hash = 0xcbf29ce484222325;  // FNV-1a, by words
    for (const int64_t field : p.field) hash = (hash ^ uint64_t(field)) * 0x100000001b3;
    return size_t(hash ^ hash >> 32);
  }
};

// A loop has some tens of problems; batches of ever new sizes would have no end of them.
constexpr size_t kMostPlans = 4096;

struct Plans {
  std::mutex mutex;
  std::unordered_map<P, LtPlan, HashOfProblem> of;

  // Never destroyed: a thread may still multiply while the process ends.
  static Plans& get() {
    static Plans* const plans = new Plans;
    return *plans;
  }
};

}  // namespace

LtPlan lt_plan(const Library& library, const LtProblem& problem) {
  Plans& plans = Plans::get();
  const std::lock_guard<std::mutex> lock(plans.mutex);
  const auto known = plans.of.find(problem);
  if (known != plans.of.end()) return known->second;
  const LtPlan plan = ask(library, problem);
  if (plans.of.size() >= kMostPlans) plans.of.clear();
  plans.of.emplace(problem, plan);
  return plan;
}

void lt_forget(const LtProblem& problem) {
  Plans& plans = Plans::get();
  const std::lock_guard<std::mutex> lock(plans.mutex);
  plans.of.insert_or_assign(problem, LtPlan{});
}

cublasStatus_t lt_matmul(const Library& library, const LtProblem& problem, const LtPlan& plan,
                         const LtOperands& operands, void* workspace, cudaStream_t stream) {
  const LtFunctions& lt = *library.functions;
  Descriptors described(lt, problem);
  described.set_pointers(operands.vector, operands.mask);
  if (!described.good()) return CUBLAS_STATUS_INVALID_VALUE;
  const float one = 1, zero = 0;
  const double one_f64 = 1, zero_f64 = 0;
  const bool f64 = problem[P::kType] == CUDA_R_64F;
  const void* const alpha = f64 ? static_cast<const void*>(&one_f64) : &one;
  const void* const beta = f64 ? static_cast<const void*>(&zero_f64) : &zero;
  return lt.Matmul(library.handle, described.product(), alpha, operands.a, described.a(),
                   operands.b, described.b(), beta, operands.d, described.d(), operands.d,
                   described.d(), &plan.algo, workspace, plan.workspace, stream);
}

bool lt_describes(const LtFunctions& functions, const LtProblem& problem) {
  Descriptors described(functions, problem);
  set_example_pointers(described, problem);
  return described.good() && Preference(functions, problem).good();
}

}  // namespace mlp_ext::cuda
