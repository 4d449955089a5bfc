// The activations of common/activation.h on elements of a storage type, for kernels.
#pragma once

#include "../../common/activation_kind.h"
#include "../pack.h"
#include "../vec.h"

#include "../../common/activation.h"

MLP_NAMESPACE_BEGIN

template <class F, class C>
MLP_DEVICE C activated(C x) {
  return F::forward(Vec<C>(x)).v;
}
template <class F, class C>
MLP_DEVICE C derived(C dy, C saved) {
  return F::backward(Vec<C>(dy), Vec<C>(saved)).v;
}

MLP_NAMESPACE_END
