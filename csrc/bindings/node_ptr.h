// How an autograd node is held: std::shared_ptr up to torch 2.12, c10::intrusive_ptr from 2.13 on.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/version.h>

#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
#include <c10/util/intrusive_ptr.h>
#endif

namespace mlp_ext {

#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
template <class Node>
using NodePtr = c10::intrusive_ptr<Node>;

template <class Node>
NodePtr<Node> make_node_ptr() {
  return c10::make_intrusive<Node>();
}
#else
template <class Node>
using NodePtr = std::shared_ptr<Node>;

template <class Node>
NodePtr<Node> make_node_ptr() {
  return NodePtr<Node>(new Node(), torch::autograd::deleteNode);
}
#endif

}  // namespace mlp_ext
