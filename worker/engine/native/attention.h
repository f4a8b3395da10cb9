/* Attention of one position to the keys and values of its sequence, which are contiguous.

Query heads that share a key-value head are processed together, so that its keys and values are read from a far cache
once. The result of a head has the same bits as alone. */
#pragma once

#include <math.h>

#include "vector.h"

/* Heads whose values are mixed at once, at most. */
enum { HEADS_AT_ONCE = 4 };

/* Vectors of values that are mixed at once for this number of heads: as many as leave registers for the sums. */
INLINE int vectors_at_once(int heads) {
  if (LANES == 16) return heads <= 2 ? 8 : 4;
  return heads == 1 ? 8 : heads == 2 ? 4 : 2;
}

#if LANES == 16
#define HALVES(A, B, LEFT, RIGHT) \
  ((vec)_mm512_add_ps(_mm512_shuffle_f32x4((__m512)(A), (__m512)(B), LEFT), \
                      _mm512_shuffle_f32x4((__m512)(A), (__m512)(B), RIGHT)))
#define QUARTERS(A, B, LEFT, RIGHT) \
  ((vec)_mm512_add_ps(_mm512_shuffle_ps((__m512)(A), (__m512)(B), LEFT), \
                      _mm512_shuffle_ps((__m512)(A), (__m512)(B), RIGHT)))
/* The lane of the result of `sums` that has the sum of v[i]. */
INLINE int lane_of(int i) { return i % 4 * 4 + i / 4; }
#elif LANES == 8
#define HALVES(A, B, LEFT, RIGHT) \
  ((vec)_mm256_add_ps(_mm256_permute2f128_ps((__m256)(A), (__m256)(B), LEFT), \
                      _mm256_permute2f128_ps((__m256)(A), (__m256)(B), RIGHT)))
#define QUARTERS(A, B, LEFT, RIGHT) \
  ((vec)_mm256_add_ps(_mm256_shuffle_ps((__m256)(A), (__m256)(B), LEFT), \
                      _mm256_shuffle_ps((__m256)(A), (__m256)(B), RIGHT)))
INLINE int lane_of(int i) { return i % 2 * 4 + i / 2; }
#else
INLINE int lane_of(int i) { return i; }
#endif

/* The sums of the lanes of LANES vectors, each with the additions of `sum`. It takes a third of the instructions: each
adds the halves, quarters ... of two vectors at once. */
INLINE vec sums(const vec *v) {
#if LANES == 16
  vec a[8], b[4];
  UNROLL for (int i = 0; i < 8; i++) a[i] = HALVES(v[2 * i], v[2 * i + 1], 0x44, 0xEE);
  UNROLL for (int i = 0; i < 4; i++) b[i] = HALVES(a[2 * i], a[2 * i + 1], 0x88, 0xDD);
  return QUARTERS(QUARTERS(b[0], b[1], 0x44, 0xEE), QUARTERS(b[2], b[3], 0x44, 0xEE), 0x88, 0xDD);
#elif LANES == 8
  vec a[4];
  UNROLL for (int i = 0; i < 4; i++) a[i] = HALVES(v[2 * i], v[2 * i + 1], 0x20, 0x31);
  return QUARTERS(QUARTERS(a[0], a[1], 0x44, 0xEE), QUARTERS(a[2], a[3], 0x44, 0xEE), 0x88, 0xDD);
#else
  vec all;
  for (int i = 0; i < LANES; i++) all[i] = sum(v[i]);
  return all;
#endif
}

/* The dot products of a query (dim) and LANES keys. `dim` is a multiple of LANES. The order of the additions is that of
earlier versions: the second vector comes first. */
INLINE vec score_block(const float *q, const float *keys, const long dim) {
  vec totals[LANES] = {0};
  if (dim > LANES) {
    vec part = load(q + LANES);
    UNROLL for (int i = 0; i < LANES; i++) totals[i] = part * load(keys + lane_of(i) * dim + LANES);
  }
  UNROLL for (long c = 0; c < dim; c += c ? LANES : 2 * LANES) {
    vec part = load(q + c);
    UNROLL for (int i = 0; i < LANES; i++) {
      totals[i] = multiply_add(part, load(keys + lane_of(i) * dim + c), totals[i]);
    }
  }
  return sums(totals);
}

/* The same for heads of any size, and `count` keys. Other lanes are 0. */
static vec score_keys_of_any_size(const float *q, const float *keys, long count, long dim) {
  vec scores = {0};
  for (long j = 0; j < count; j++) {
    float total = 0;
    for (long i = 0; i < dim; i++) total += q[i] * keys[j * dim + i];
    scores[j] = total;
  }
  return scores;
}

/* Fetch floats into the nearest cache. */
INLINE void prefetch_floats(const float *from, long count) {
  for (long i = 0; i < count; i += 64 / sizeof(float)) __builtin_prefetch(from + i);
}

/* scores (heads, stride) = the dot products of queries (heads, dim) and keys (count, dim), filled up with -infinity to
whole vectors. With `far`, the next keys, and the values of these keys, are fetched meanwhile. */
INLINE void score_keys_of(const long dim, const float *q, long heads, const float *keys, const float *values,
                          long count, int far, float *scores, long stride) {
  for (long j = 0; j < count; j += LANES) {
    const float *block = keys + j * dim;
    long left = count - j < LANES ? count - j : LANES;
    if (far) {
      prefetch_floats(block + LANES * dim, LANES * dim);
      prefetch_floats(values + j * dim, LANES * dim);
    }
    for (long h = 0; h < heads; h++) {
      const float *query = q + h * dim;
      float *to = scores + h * stride + j;
      store(to, dim % LANES ? score_keys_of_any_size(query, block, left, dim) : score_block(query, block, dim));
      for (long i = left; i < LANES; i++) to[i] = -INFINITY;
    }
  }
}

/* The usual sizes of a head are compiled for themselves. */
static void score_keys(const float *q, long heads, const float *keys, const float *values, long count, long dim,
                       int far, float *scores, long stride) {
  switch (dim) {
    case 64: score_keys_of(64, q, heads, keys, values, count, far, scores, stride); break;
    case 128: score_keys_of(128, q, heads, keys, values, count, far, scores, stride); break;
    default: score_keys_of(dim, q, heads, keys, values, count, far, scores, stride);
  }
}

/* Replace each score by its weight, e^(score - largest). Returns the sum of the weights. There are -infinities up to
a whole vector. */
INLINE float softmax_weights(float *scores, long count) {
  vec most = splat(-INFINITY), total = {0};
  for (long j = 0; j < count; j += LANES) most = choose(load(scores + j) > most, load(scores + j), most);
  float largest = most[0];
  for (int i = 1; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
  for (long j = 0; j < count; j += LANES) {
    vec x = load(scores + j);
    vec weights = exponential(x - largest);
    weights = choose(x == -INFINITY, (vec){0}, weights);
    store(scores + j, weights);
    total += weights;
  }
  return sum(total);
}

/* out (heads, dim) = the sums of values (count, dim), each times its weight, and `factors`, for some vectors. */
INLINE void mix_tile(const int heads, const int vectors, const float *weights, long stride, const float *values,
                     long count, long dim, const float *factors, float *out) {
  vec total[HEADS_AT_ONCE][8];
  UNROLL for (int h = 0; h < heads; h++) {
    UNROLL for (int i = 0; i < vectors; i++) total[h][i] = (vec){0};
  }
  for (long j = 0; j < count; j++) {
    vec value[8];
    UNROLL for (int i = 0; i < vectors; i++) value[i] = load(values + j * dim + i * LANES);
    UNROLL for (int h = 0; h < heads; h++) {
      vec weight = splat(weights[h * stride + j]);
      UNROLL for (int i = 0; i < vectors; i++) total[h][i] += weight * value[i];
    }
  }
  UNROLL for (int h = 0; h < heads; h++) {
    UNROLL for (int i = 0; i < vectors; i++) store(out + h * dim + i * LANES, total[h][i] * factors[h]);
  }
}

static void mix_tiles(int heads, int vectors, const float *weights, long stride, const float *values, long count,
                      long dim, const float *factors, float *out) {
#define CASE(H, V) \
  case H * 16 + V: \
    if (V <= vectors_at_once(H)) mix_tile(H, V, weights, stride, values, count, dim, factors, out); \
    break;
#define CASES(H) CASE(H, 1) CASE(H, 2) CASE(H, 3) CASE(H, 4) CASE(H, 5) CASE(H, 6) CASE(H, 7) CASE(H, 8)
  switch (heads * 16 + vectors) { CASES(1) CASES(2) CASES(3) CASES(4) }
#undef CASES
#undef CASE
}

static void mix_values_of_any_size(const float *weights, const float *values, long count, long dim, float factor,
                                   float *out) {
  for (long i = 0; i < dim; i++) out[i] = 0;
  for (long j = 0; j < count; j++) {
    for (long i = 0; i < dim; i++) out[i] += weights[j] * values[j * dim + i];
  }
  for (long i = 0; i < dim; i++) out[i] *= factor;
}

/* out (heads, dim) = the sums of values (count, dim), each times its weight of weights (heads, stride), times the
head's factor. */
static void mix_values(const float *weights, long stride, long heads, const float *values, long count, long dim,
                       const float *factors, float *out) {
  if (dim % LANES) {
    for (long h = 0; h < heads; h++) {
      mix_values_of_any_size(weights + h * stride, values, count, dim, factors[h], out + h * dim);
    }
    return;
  }
  int at_once = vectors_at_once((int)heads);
  long tiles = (dim / LANES + at_once - 1) / at_once;
  for (long i = 0; i < tiles; i++) {
    long begin = dim / LANES * i / tiles, end = dim / LANES * (i + 1) / tiles;
    mix_tiles((int)heads, (int)(end - begin), weights, stride, values + begin * LANES, count, dim, factors,
              out + begin * LANES);
  }
}

/* Floats of the scores of a head. */
INLINE long score_floats(long count) { return (count + LANES - 1) / LANES * LANES; }

/* out (heads, dim) = softmax(q . keys) . values, for queries (heads, dim) that share a key-value head. They are already
scaled. `scores` has room for the scores of all heads. LANES - 1 keys after the last one are read, and have no effect.
`far`: the keys and values are not in a near cache. They are too few for the processor to notice in time that they are
read one after the other. */
static void attend(const float *q, long heads, const float *keys, const float *values, long count, long dim, int far,
                   float *scores, float *out) {
  long stride = score_floats(count), tiles = (heads + HEADS_AT_ONCE - 1) / HEADS_AT_ONCE;
  score_keys(q, heads, keys, values, count, dim, far, scores, stride);
  for (long tile = 0; tile < tiles; tile++) {
    long begin = heads * tile / tiles, end = heads * (tile + 1) / tiles;
    float factors[HEADS_AT_ONCE];
    for (long h = begin; h < end; h++) factors[h - begin] = 1 / softmax_weights(scores + h * stride, count);
    mix_values(scores + begin * stride, stride, end - begin, values, count, dim, factors, out + begin * dim);
  }
}
