// The list of activations: one row each of (code name, functor, what backward needs).
//
// `kOutput`: the derivative is taken from the layer's output. `kInput`: from the pre-activation,
// which the forward pass then stores beside the output. PyTorch makes the same choice for each, so
// the two agree on which tensors may be changed in place before backward; elu and softplus also
// lose digits when their derivative is worked out from the output. The order of the rows is the
// integer code that the registered ops carry, so exported programs depend on it: append only.
#pragma once

#define MLP_FOR_EACH_ACTIVATION(X) \
  X(none, Identity, kOutput)       \
  X(relu, Relu, kOutput)           \
  X(gelu, Gelu, kInput)            \
  X(gelu_tanh, GeluTanh, kInput)   \
  X(silu, Silu, kInput)            \
  X(tanh, Tanh, kOutput)           \
  X(sigmoid, Sigmoid, kOutput)     \
  X(leaky_relu, LeakyRelu, kInput) \
  X(elu, Elu, kInput)              \
  X(softplus, Softplus, kInput)

namespace mlp_ext {

enum class Activation : int {
#define MLP_ROW(name, Functor, saves) name,
  MLP_FOR_EACH_ACTIVATION(MLP_ROW)
#undef MLP_ROW
};

enum class Saves { kOutput, kInput };

constexpr const char* kActivationNames[] = {
#define MLP_ROW(name, Functor, saves) #name,
    MLP_FOR_EACH_ACTIVATION(MLP_ROW)
#undef MLP_ROW
};

constexpr Saves kActivationSaves[] = {
#define MLP_ROW(name, Functor, saves) Saves::saves,
    MLP_FOR_EACH_ACTIVATION(MLP_ROW)
#undef MLP_ROW
};

constexpr int kActivationCount = sizeof(kActivationNames) / sizeof(kActivationNames[0]);

// True if backward reads the pre-activation rather than the output.
constexpr bool saves_input(Activation activation) {
  return kActivationSaves[static_cast<int>(activation)] == Saves::kInput;
}

}  // namespace mlp_ext
