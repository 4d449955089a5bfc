// The mask of ReLU that cuBLASLt's epilogues read: every bit, and nothing behind it.
#include "../../csrc/cuda/elementwise/relu_mask.cu"
#include "check.h"

namespace mlp_ext::cuda {
namespace {

using namespace check;

template <class T>
void masks() {
  for (const int columns : {1, 8, 9, 128, 200}) {
    for (const int pad : {0, 3, 8}) {
      run_case(text("mask-%s-%d-pad%d", kName<T>, columns, pad), [=] {
        const int64_t rows = 37, ld = columns + pad, ld_mask = (columns + 127) / 128 * 128;
        auto y = normal<T>(rows * ld, 5);
        y[0] = rounded<T>(0.0), y[ld] = rounded<T>(-0.0), y[2 * ld] = rounded<T>(NAN);
        Buffer<unsigned char> mask(rows * ld_mask / 8);
        expect(relu_mask<T>({rows, columns, y.data(), ld, mask.data(), ld_mask}, nullptr) ==
                   cudaSuccess,
               "launched");
        expect(mask.intact(), "nothing is written outside");
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t n = 0; n < ld_mask; ++n) {
            const bool bit = mask[m * ld_mask / 8 + n / 8] >> n % 8 & 1;
            const bool wanted = n < columns && !(y.at(m * ld + n) <= 0);
            if (bit != wanted) fail("bit %d of row %d is %d", int(n), int(m), int(bit));
          }
        }
        return bytes_of(mask);
      });
    }
  }
}

}  // namespace
}  // namespace mlp_ext::cuda

int main() {
  using namespace mlp_ext::cuda;
  masks<float>();
  masks<double>();
  masks<mlp_ext::BFloat16>();
  masks<mlp_ext::Float16>();
  return finish();
}
