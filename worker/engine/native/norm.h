/* Norms of rows. */
#pragma once

#include <math.h>
#include <string.h>

#include "vector.h"

/* RMS norm, or layer norm if it `centers` the row first. */
typedef struct {
  long centers;
  float epsilon;
} Norm;

/* The learned factors and summands of a norm. NULL: none. */
typedef struct {
  const float *weights, *biases;
} NormWeights;

/* The sum of n floats. The order of the additions depends only on n. */
INLINE float row_sum(const float *x, long n) {
  vec total = {0};
  long i = 0;
  for (; i + LANES <= n; i += LANES) total += load(x + i);
  float rest = sum(total);
  for (; i < n; i++) rest += x[i];
  return rest;
}

INLINE float root_mean_square(const float *x, long n, float epsilon) { return sqrtf(square_sum(x, n) / n + epsilon); }

/* `out` may be x. */
INLINE void normalize(const Norm *norm, const NormWeights *learned, const float *x, float *out, long n) {
  if (norm->centers) {
    float mean = row_sum(x, n) / n;
    for (long i = 0; i < n; i++) out[i] = x[i] - mean;
    x = out;
  }
  float factor = 1 / root_mean_square(x, n, norm->epsilon);
  const float *weights = learned->weights, *biases = learned->biases;
  if (weights == NULL) {
    for (long i = 0; i < n; i++) out[i] = x[i] * factor;
  } else if (biases == NULL) {
    for (long i = 0; i < n; i++) out[i] = x[i] * factor * weights[i];
  } else {
    for (long i = 0; i < n; i++) out[i] = x[i] * factor * weights[i] + biases[i];
  }
}
