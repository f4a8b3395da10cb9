/* The activations of an MLP. */
#pragma once

#include <math.h>

#include "vector.h"

/* library.py has the same numbers. */
enum Activation { RELU_SQUARED, SILU, GELU, GELU_TANH };

INLINE float sigmoid(float x) { return 1 / (1 + expf(-x)); }

INLINE vec sigmoids(vec x) { return 1.0f / (1.0f + exponential(-x)); }

/* Near 0, where the usual formula loses digits, a series is used. */
INLINE vec hyperbolic_tangent(vec u) {
  vec square = u * u;
  vec series = u + u * square * (square * (2.0f / 15) - 1.0f / 3);
  vec whole = 1.0f - 2.0f / (exponential(u + u) + 1.0f);
  return choose(square < splat(0.0025f), series, whole);
}

/* The probability that a standard normal number is less than x. For x < 0 it is e^(-x^2 / 2) times a polynomial of
1 / (1 - 0.35 x), fitted with a relative error of 3.2e-8; else 1 minus the same of -x. */
INLINE vec normal_distribution(vec x) {
  vec size = choose(x < splat(0), -x, x);
  vec t = 1.0f / (1.0f + 0.35f * size);
  vec p = t * -0.029145924f + 0.14397167f;
  p = p * t - 0.2557142f;
  p = p * t + 0.1591741f;
  p = p * t - 0.02310979f;
  p = p * t + 0.105507985f;
  p = p * t + 0.11983287f;
  p = p * t + 0.13986187f;
  p = p * t + 0.1396214f;
  vec below = p * t * exponential(-0.5f * size * size);
  return choose(x < splat(0), below, 1.0f - below);
}

/* Errors are a few units in the last place, for a GELU of a negative x also a few units of x in its last place. NaN
stays NaN. */
INLINE vec activate(const enum Activation activation, vec x) {
  if (activation == SILU) return x * sigmoids(x);
  if (activation == GELU) return x * normal_distribution(x);
  /* x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), and (1 + tanh(u)) / 2 is sigmoid(2 u) */
  if (activation == GELU_TANH) return x * sigmoids(x * (1.5957691216f + 0.0713548162726f * (x * x)));
  vec positive = choose(x < splat(0), splat(0), x);
  return positive * positive;
}
