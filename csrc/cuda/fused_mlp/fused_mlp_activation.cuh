// Activations and derivatives on a warp's accumulators, chosen at run time: a switch that all lanes
// take the same way.
//
// Registers have no index, so a loop over them is unrolled; ten activations of 64 elements would be
// some 200 kB of instructions. Only the short formulas are. The others take 8 elements a turn of a
// loop that then moves the array on by 8, so that the next come to the same registers and after the
// last turn all are back: at width 128 that is 8 moves an element, less than the formula.
#pragma once

#include "../elementwise/activation_functors.h"

MLP_NAMESPACE_BEGIN

template <class F>
constexpr bool kShort =
    std::is_same_v<F, Identity> || std::is_same_v<F, Relu> || std::is_same_v<F, LeakyRelu>;

// The array, moved on by two tiles.
template <int TILES>
MLP_DEVICE void rotate(float (&c)[TILES][4]) {
  if constexpr (TILES > 2) {
    MLP_UNROLL
    for (int i = 0; i < 8; ++i) {
      const float first = c[i / 4][i % 4];
      MLP_UNROLL
      for (int n = i / 4; n + 2 < TILES; n += 2) c[n][i % 4] = c[n + 2][i % 4];
      c[TILES - 2 + i / 4][i % 4] = first;
    }
  }
}

template <class F, int TILES>
MLP_DEVICE void activate_by(float (&c)[TILES][4]) {
  if constexpr (kShort<F>) {
    MLP_UNROLL
    for (int n = 0; n < TILES; ++n) {
      MLP_UNROLL
      for (int i = 0; i < 4; ++i) c[n][i] = activated<F>(c[n][i]);
    }
  } else {
#pragma unroll 1
    for (int turn = 0; turn < TILES / 2; ++turn) {
      MLP_UNROLL
      for (int i = 0; i < 8; ++i) {
        c[i / 4][i % 4] = activated<F>(c[i / 4][i % 4]);
      }
      rotate(c);
    }
  }
}

// The derivatives of the long formulas are factors of dy: one array moves, not two.
template <class F, int TILES>
MLP_DEVICE void derive_by(float (&dy)[TILES][4], float (&saved)[TILES][4]) {
  if constexpr (!kShort<F>) {
#pragma unroll 1
    for (int turn = 0; turn < TILES / 2; ++turn) {
      MLP_UNROLL
      for (int i = 0; i < 8; ++i) {
        float& x = saved[i / 4][i % 4];
        x = derived<F>(1.0f, x);
      }
      rotate(saved);
    }
  }
  MLP_UNROLL
  for (int n = 0; n < TILES; ++n) {
    MLP_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (kShort<F>) {
        dy[n][i] = derived<F>(dy[n][i], saved[n][i]);
      } else {
        dy[n][i] *= saved[n][i];
      }
    }
  }
}

template <int TILES>
MLP_DEVICE void activate(float (&c)[TILES][4], Activation activation) {
  switch (activation) {
#define MLP_CASE(name, Functor, saves) \
  case Activation::name:               \
    return activate_by<Functor>(c);
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
}

// dy f'(saved). `saved` is used up.
template <int TILES>
MLP_DEVICE void derive(float (&dy)[TILES][4], float (&saved)[TILES][4], Activation activation) {
  switch (activation) {
#define MLP_CASE(name, Functor, saves) \
  case Activation::name:               \
    return derive_by<Functor>(dy, saved);
    MLP_FOR_EACH_ACTIVATION(MLP_CASE)
#undef MLP_CASE
  }
}

MLP_NAMESPACE_END
