/* Attention of one position to the keys and values of its sequence, which are contiguous. */
#pragma once

#include <math.h>

#include "vector.h"

/* scores (count) = the dot products of a query (dim) and keys (count, dim). Returns the largest. */
INLINE float score_keys(const int vectors, const float *q, const float *keys, long count, long dim, float *scores) {
  vec query[16];
  UNROLL for (int i = 0; i < vectors; i++) query[i] = load(q + i * LANES);
  float largest = -INFINITY;
  for (long j = 0; j < count; j++) {
    const float *key = keys + j * dim;
    vec total = query[0] * load(key);
    UNROLL for (int i = 1; i < vectors; i++) total += query[i] * load(key + i * LANES);
    scores[j] = sum(total);
    if (scores[j] > largest) largest = scores[j];
  }
  return largest;
}

/* out (dim) = the sum of values (count, dim), each times its weight, times `factor`. */
INLINE void mix_values(const int vectors, const float *weights, const float *values, long count, long dim, float factor,
                       float *out) {
  vec total[16];
  UNROLL for (int i = 0; i < vectors; i++) total[i] = (vec){0};
  for (long j = 0; j < count; j++) {
    vec weight = splat(weights[j]);
    UNROLL for (int i = 0; i < vectors; i++) total[i] += weight * load(values + j * dim + i * LANES);
  }
  UNROLL for (int i = 0; i < vectors; i++) store(out + i * LANES, total[i] * factor);
}

/* The same for heads of any size. */
static float score_keys_of_any_size(const float *q, const float *keys, long count, long dim, float *scores) {
  float largest = -INFINITY;
  for (long j = 0; j < count; j++) {
    float total = 0;
    for (long i = 0; i < dim; i++) total += q[i] * keys[j * dim + i];
    scores[j] = total;
    if (total > largest) largest = total;
  }
  return largest;
}

static void mix_values_of_any_size(const float *weights, const float *values, long count, long dim, float factor,
                                   float *out) {
  for (long i = 0; i < dim; i++) out[i] = 0;
  for (long j = 0; j < count; j++) {
    for (long i = 0; i < dim; i++) out[i] += weights[j] * values[j * dim + i];
  }
  for (long i = 0; i < dim; i++) out[i] *= factor;
}

/* Replace each score by its weight, e^(score - largest). Returns the sum of the weights. `scores` has room for one more
vector. */
INLINE float softmax_weights(float *scores, long count, float largest) {
  for (long j = count; j % LANES; j++) scores[j] = -INFINITY;
  vec total = {0};
  for (long j = 0; j < count; j += LANES) {
    vec x = load(scores + j);
    vec weights = exponential(x - largest);
    weights = choose(x == -INFINITY, (vec){0}, weights);
    store(scores + j, weights);
    total += weights;
  }
  return sum(total);
}

/* out (dim) = softmax(q . keys) . values. The query is already scaled. `scores` has room for `count` scores and one
more vector. */
static void attend(const float *q, const float *keys, const float *values, long count, long dim, float *scores,
                   float *out) {
  float largest;
#define SIZES(DO) DO(1) DO(2) DO(4) DO(8) DO(16)
#define SCORE(V) case V: largest = score_keys(V, q, keys, count, dim, scores); break;
  switch (dim % LANES ? 0 : dim / LANES) {
    SIZES(SCORE)
    default: largest = score_keys_of_any_size(q, keys, count, dim, scores);
  }
  float factor = 1 / softmax_weights(scores, count, largest);
#define MIX(V) case V: mix_values(V, scores, values, count, dim, factor, out); break;
  switch (dim % LANES ? 0 : dim / LANES) {
    SIZES(MIX)
    default: mix_values_of_any_size(scores, values, count, dim, factor, out);
  }
#undef SIZES
#undef SCORE
#undef MIX
}
