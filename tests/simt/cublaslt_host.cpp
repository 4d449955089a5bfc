// The library's side of cublaslt_host.h.
#include "cublaslt_host.h"

#include <cstring>
#include <vector>

#include "../../csrc/common/half.h"

namespace lt_host {

struct Desc {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  int32_t transpose_a = 0, transpose_b = 0;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void* vector = nullptr;
  void* mask = nullptr;
  int64_t ld_mask = 0;

  bool masked() const { return epilogue & 128; }
};
struct Layout {
  cudaDataType_t type;
  int64_t rows, columns, ld;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t reductions = 7, align[4] = {256, 256, 256, 256};
};

cublasLtEpilogue_t last_epilogue = CUBLASLT_EPILOGUE_DEFAULT, lacking = cublasLtEpilogue_t(0);
cublasComputeType_t last_compute = CUBLAS_COMPUTE_32F;
cublasStatus_t ending = CUBLAS_STATUS_SUCCESS;
int products = 0, questions = 0;

namespace {

// What an algorithm was chosen for.
struct Promise {
  int64_t m, n, k;
  uint32_t epilogue, align[3];
};
static_assert(sizeof(Promise) <= sizeof(cublasLtMatmulAlgo_t));

// All this library's algorithms want a little; its bytes are written.
constexpr size_t kWorkspace = 48;

double load(const void* p, cudaDataType_t type, int64_t i) {
  switch (type) {
    case CUDA_R_64F:
      return static_cast<const double*>(p)[i];
    case CUDA_R_16F:
      return mlp_ext::to_float(static_cast<const mlp_ext::Float16*>(p)[i]);
    case CUDA_R_16BF:
      return mlp_ext::to_float(static_cast<const mlp_ext::BFloat16*>(p)[i]);
    default:
      return static_cast<const float*>(p)[i];
  }
}
void store(void* p, cudaDataType_t type, int64_t i, double x) {
  switch (type) {
    case CUDA_R_64F:
      static_cast<double*>(p)[i] = x;
      return;
    case CUDA_R_16F:
      static_cast<mlp_ext::Float16*>(p)[i] = mlp_ext::to_float16(float(x));
      return;
    case CUDA_R_16BF:
      static_cast<mlp_ext::BFloat16*>(p)[i] = mlp_ext::to_bfloat16(float(x));
      return;
    default:
      static_cast<float*>(p)[i] = float(x);
  }
}

// Of op(X).
double element(const void* p, const Layout& x, bool transposed, int64_t i, int64_t j) {
  return load(p, x.type, transposed ? j + i * x.ld : i + j * x.ld);
}

bool is_aligned(const void* p, uint32_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// m, n, k, or false for layouts that do not belong together.
bool sizes(const Desc& desc, const Layout& a, const Layout& b, const Layout& d, Promise& p) {
  p.m = desc.transpose_a ? a.columns : a.rows, p.k = desc.transpose_a ? a.rows : a.columns;
  p.n = desc.transpose_b ? b.rows : b.columns;
  const int64_t k = desc.transpose_b ? b.columns : b.rows;
  bool good = k == p.k && d.rows == p.m && d.columns == p.n && p.m > 0 && p.n > 0 && p.k > 0;
  for (const Layout* x : {&a, &b, &d}) good = good && x->ld >= x->rows && x->type == d.type;
  const bool f64 = d.type == CUDA_R_64F;
  return good && f64 == (desc.compute == CUBLAS_COMPUTE_64F) && f64 == (desc.scale == CUDA_R_64F);
}

template <class Value>
cublasStatus_t set(Value& field, const void* value, size_t bytes) {
  if (bytes != sizeof field) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace
}  // namespace lt_host

using namespace lt_host;

size_t cublasLtGetVersion() { return 0; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *desc = new Desc{compute, scale};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(desc->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set(desc->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(desc->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(desc->vector, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return set(desc->mask, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return set(desc->ld_mask, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns, int64_t ld) {
  *layout = new Layout{type, int64_t(rows), int64_t(columns), ld};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new Preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return set(preference->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return set(preference->reductions, value, bytes);
    default:
      return set(preference->align[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value,
                 bytes);
  }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int,
                                              cublasLtMatmulHeuristicResult_t* result, int* found) {
  ++questions;
  *found = 0;
  Promise promise{};
  if (!sizes(*desc, *a, *b, *d, promise) || c->ld != d->ld || c->type != d->type) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const bool plain = desc->epilogue == CUBLASLT_EPILOGUE_DEFAULT;
  const bool has_vector = !plain && desc->epilogue != CUBLASLT_EPILOGUE_DRELU;
  if (has_vector && (!desc->vector || !is_aligned(desc->vector, 16))) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (desc->masked() && (!desc->mask || desc->ld_mask % 128 != 0 || desc->ld_mask < promise.m)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  // As its own Python bindings' tests have it.
  const bool refused = desc->epilogue == lacking || (desc->masked() && promise.k == 1) ||
                       (desc->epilogue == CUBLASLT_EPILOGUE_BGRADB && promise.n == 1) ||
                       preference->workspace < kWorkspace;
  if (refused) return CUBLAS_STATUS_NOT_SUPPORTED;
  promise.epilogue = desc->epilogue;
  for (int i = 0; i < 2; ++i) promise.align[i] = preference->align[i];
  promise.align[2] = std::max(preference->align[2], preference->align[3]);
  *result = {};
  std::memcpy(&result->algo, &promise, sizeof promise);
  result->workspaceSize = kWorkspace;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t layout_a, const void* b,
                              cublasLtMatrixLayout_t layout_b, const void* beta, const void* c,
                              cublasLtMatrixLayout_t, void* d, cublasLtMatrixLayout_t layout_d,
                              const cublasLtMatmulAlgo_t* algo, void* workspace, size_t bytes,
                              cudaStream_t) {
  Promise now{}, promised;
  std::memcpy(&promised, algo, sizeof promised);
  const bool same = sizes(*desc, *layout_a, *layout_b, *layout_d, now) && now.m == promised.m &&
                    now.n == promised.n && now.k == promised.k &&
                    desc->epilogue == promised.epilogue;
  const bool aligned = is_aligned(a, promised.align[0]) && is_aligned(b, promised.align[1]) &&
                       is_aligned(d, promised.align[2]) && is_aligned(desc->vector, 16) &&
                       is_aligned(desc->mask, 16) && is_aligned(workspace, 16);
  const double scale = load(alpha, desc->scale, 0);
  if (!same || !aligned || bytes < kWorkspace || c != d || load(beta, desc->scale, 0) != 0) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (ending != CUBLAS_STATUS_SUCCESS) return std::exchange(ending, CUBLAS_STATUS_SUCCESS);
  ++products;
  last_epilogue = cublasLtEpilogue_t(desc->epilogue), last_compute = desc->compute;
  std::memset(workspace, 0x5A, kWorkspace);
  const bool sums_rows = desc->epilogue == CUBLASLT_EPILOGUE_DRELU_BGRAD;
  std::vector<double> row_sums(now.m), sums_of_b(now.n);
  for (int64_t j = 0; j < now.n; ++j) {
    for (int64_t i = 0; i < now.m; ++i) {
      double x = 0;
      for (int64_t k = 0; k < now.k; ++k) {
        x += element(a, *layout_a, desc->transpose_a, i, k) *
             element(b, *layout_b, desc->transpose_b, k, j);
      }
      x *= scale;
      if (desc->epilogue == CUBLASLT_EPILOGUE_BIAS) x += load(desc->vector, layout_d->type, i);
      if (desc->masked()) {
        const int64_t bit = i + j * desc->ld_mask;
        if (!(static_cast<const uint8_t*>(desc->mask)[bit / 8] >> bit % 8 & 1)) x = 0;
      }
      row_sums[i] += x;
      store(d, layout_d->type, i + j * layout_d->ld, x);
    }
    for (int64_t k = 0; k < now.k; ++k) {
      sums_of_b[j] += element(b, *layout_b, desc->transpose_b, k, j);
    }
  }
  const auto write = [&](const std::vector<double>& sums) {
    for (size_t i = 0; i < sums.size(); ++i) store(desc->vector, layout_d->type, i, sums[i]);
  };
  if (sums_rows) write(row_sums);
  if (desc->epilogue == CUBLASLT_EPILOGUE_BGRADB) write(sums_of_b);
  return CUBLAS_STATUS_SUCCESS;
}
