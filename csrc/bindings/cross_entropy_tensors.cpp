#include "cross_entropy_tensors.h"

#include <ATen/core/Reduction.h>

#include "stack_tensors.h"

namespace mlp_ext {

using at::Tensor;

namespace {

// Below this many pixels an image fills few of the lanes, and turning the classes to the end is
// cheaper.
constexpr int64_t kFewestPixels = 8;

// True if a row's classes are neighbours, in a tensor of more than two dimensions: channels_last.
bool is_channels_last(const Tensor& t) {
  return t.dim() > 2 && !t.is_contiguous() && t.movedim(1, -1).is_contiguous();
}

}  // namespace

CrossEntropyLayout layout_of(const Tensor& input) {
  if (input.dim() <= 2) return {1, input.numel() / input.size(-1), input.size(-1), false};
  const int64_t images = input.size(0), classes = input.size(1);
  const int64_t pixels = input.numel() / images / classes;
  const bool side_by_side = pixels >= kFewestPixels && !is_channels_last(input);
  if (side_by_side) return {images, pixels, classes, true};
  return {1, images * pixels, classes, false};
}

Tensor arranged(const Tensor& t, const CrossEntropyLayout& layout, at::ScalarType type) {
  const bool turned = t.dim() > 2 && !layout.side_by_side;
  const Tensor in_order = turned ? t.movedim(1, -1) : t;
  if (in_order.dim() <= 2 && in_order.stride(-1) == 1) {
    return converted_to(in_order, type).resolve_neg();
  }
  return contiguous_in(in_order, type).resolve_neg();
}

int64_t row_stride_of(const Tensor& t, const CrossEntropyLayout& layout) {
  if (layout.side_by_side) return 1;
  return t.dim() == 2 ? t.stride(0) : layout.classes;
}

Tensor in_order_of(const Tensor& input, Tensor grad, const CrossEntropyLayout& layout) {
  if (input.dim() > 2 && !layout.side_by_side) grad = grad.movedim(-1, 1);
  return is_channels_last(input) ? grad : grad.contiguous();
}

std::vector<int64_t> cross_entropy_sizes(const Tensor& input, int64_t reduction) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; reduction == at::Reduction::None && input.dim() > 1 && d < input.dim(); ++d) {
    if (d != 1) sizes.push_back(input.size(d));
  }
  return sizes;
}

void check_reduction(int64_t reduction) {
  TORCH_CHECK_VALUE(reduction >= at::Reduction::None && reduction <= at::Reduction::Sum,
                    "reduction ", reduction, " is not 0 (none), 1 (mean) or 2 (sum)");
}

}  // namespace mlp_ext
