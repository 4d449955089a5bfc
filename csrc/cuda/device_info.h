// What launchers and heuristics ask of a device.
#pragma once

#include <cstddef>

namespace mlp_ext::cuda {

struct DeviceInfo {
  int arch;             // 10 * major + minor of the compute capability: 80, 90
  int multiprocessors;  // 132 on an H100 SXM
  size_t most_shared;   // bytes of shared memory that a block may ask for
};

constexpr DeviceInfo kH100{90, 132, 227 << 10};
constexpr DeviceInfo kA100{80, 108, 163 << 10};

}  // namespace mlp_ext::cuda
