/* Attention of one position over its own keys and values, which lie in a row. */
#pragma once

#include <math.h>

#include "vector.h"

/* Scores of `count` keys (count, dim) with a query. Returns the largest. */
INLINE float score(const int vectors, const float *q, const float *keys, long count, long dim, float *scores) {
  vec query[16];
  UNROLL for (int i = 0; i < vectors; i++) query[i] = load(q + i * LANES);
  float most = -INFINITY;
  for (long j = 0; j < count; j++) {
    const float *key = keys + j * dim;
    vec total = query[0] * load(key);
    UNROLL for (int i = 1; i < vectors; i++) total += query[i] * load(key + i * LANES);
    scores[j] = sum(total);
    if (scores[j] > most) most = scores[j];
  }
  return most;
}

/* out (dim) = the values (count, dim) by their weights, times `factor`. */
INLINE void mix(const int vectors, const float *weights, const float *values, long count, long dim, float factor,
                float *out) {
  vec total[16];
  UNROLL for (int i = 0; i < vectors; i++) total[i] = (vec){0};
  for (long j = 0; j < count; j++) {
    vec weight = splat(weights[j]);
    UNROLL for (int i = 0; i < vectors; i++) total[i] += weight * load(values + j * dim + i * LANES);
  }
  UNROLL for (int i = 0; i < vectors; i++) store(out + i * LANES, total[i] * factor);
}

/* Heads of any size. */
static float score_any(const float *q, const float *keys, long count, long dim, float *scores) {
  float most = -INFINITY;
  for (long j = 0; j < count; j++) {
    float total = 0;
    for (long i = 0; i < dim; i++) total += q[i] * keys[j * dim + i];
    scores[j] = total;
    if (total > most) most = total;
  }
  return most;
}

static void mix_any(const float *weights, const float *values, long count, long dim, float factor, float *out) {
  for (long i = 0; i < dim; i++) out[i] = 0;
  for (long j = 0; j < count; j++) {
    for (long i = 0; i < dim; i++) out[i] += weights[j] * values[j * dim + i];
  }
  for (long i = 0; i < dim; i++) out[i] *= factor;
}

/* Scores become weights, e^(score - most). Returns their sum. `scores` has room for a whole vector more. */
INLINE float weigh(float *scores, long count, float most) {
  for (long j = count; j % LANES; j++) scores[j] = -INFINITY;
  vec total = {0};
  for (long j = 0; j < count; j += LANES) {
    vec x = load(scores + j);
    vec weights = exponential(x - most);
    weights = choose(x == -INFINITY, (vec){0}, weights);
    store(scores + j, weights);
    total += weights;
  }
  return sum(total);
}

/* out (dim) = softmax(q . keys) . values; the query's scale is in it already. */
static void attend(const float *q, const float *keys, const float *values, long count, long dim, float *scores,
                   float *out) {
  float most;
#define SIZES(DO) DO(1) DO(2) DO(4) DO(8) DO(16)
#define SCORE(V) case V: most = score(V, q, keys, count, dim, scores); break;
  switch (dim % LANES ? 0 : dim / LANES) {
    SIZES(SCORE)
    default: most = score_any(q, keys, count, dim, scores);
  }
  float factor = 1 / weigh(scores, count, most);
#define MIX(V) case V: mix(V, scores, values, count, dim, factor, out); break;
  switch (dim % LANES ? 0 : dim / LANES) {
    SIZES(MIX)
    default: mix_any(scores, values, count, dim, factor, out);
  }
#undef SIZES
#undef SCORE
#undef MIX
}
