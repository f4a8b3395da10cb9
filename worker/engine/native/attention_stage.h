/* The attention of a layer: its queries, keys and values are prepared, cached, and attended to. */
#pragma once

#include "activation.h"
#include "attention.h"
#include "step.h"

INLINE float dot(const float *a, const float *b, long n) {
  float total = 0;
  for (long i = 0; i < n; i++) total += a[i] * b[i];
  return total;
}

/* Rotate a head by its position (RoPE): the pairs of channels j and j + D/2. */
INLINE void rotate(const Model *m, int64_t position, float *x) {
  long half = m->dim / 2, j = 0;
  const float *cosines = m->cosines + position * half, *sines = m->sines + position * half;
  for (; j + LANES <= half; j += LANES) {
    vec left = load(x + j), right = load(x + j + half), cosine = load(cosines + j), sine = load(sines + j);
    store(x + j, left * cosine - right * sine);
    store(x + j + half, right * cosine + left * sine);
  }
  for (; j < half; j++) {
    float left = x[j], right = x[j + half];
    x[j] = left * cosines[j] - right * sines[j];
    x[j + half] = right * cosines[j] + left * sines[j];
  }
}

/* Normalize a head of queries or keys, with weights or NULL, and multiply it by `scale`. */
INLINE void normalize_head(const Model *m, const float *weights, float scale, float *x) {
  float factor = scale / root_mean_square(x, m->dim, m->qk_epsilon);
  if (weights == NULL) {
    for (long j = 0; j < m->dim; j++) x[j] *= factor;
  } else {
    for (long j = 0; j < m->dim; j++) x[j] = x[j] * factor * weights[j];
  }
}

/* Normalize and rotate a head of queries or keys as the layer has it, and multiply it by `scale`. */
static void prepare_head(const Model *m, const Layer *layer, const float *weights, int64_t position, float scale,
                         float *x) {
  if (m->qk_norm == BEFORE_ROTATION) normalize_head(m, weights, scale, x);
  if (layer->rotates) rotate(m, position, x);
  if (m->qk_norm == AFTER_ROTATION) normalize_head(m, weights, scale, x);
  if (m->qk_norm == NO_QK_NORM && scale != 1) {
    for (long j = 0; j < m->dim; j++) x[j] *= scale;
  }
}

/* The keys and values of a layer in the cache: (G, P, D) each. */
typedef struct {
  float *keys, *values;
} LayerCache;

/* Prepare the queries of position t that read key-value head g, in place, and write the key and value of this head to
the cache. */
static void place_group(StepThread *self, const Layer *layer, LayerCache cache, long t, long g) {
  const Step *s = self->step;
  const Model *m = s->model;
  const Pass *b = s->pass;
  long shared = m->heads / m->groups, dim = m->dim;
  float *row = s->qkv + t * s->qkv_stride;
  float *q = row + g * shared * dim, *k = row + (m->heads + g) * dim, *v = k + m->groups * dim;
  long at = (g * b->places + b->place[t]) * dim;
  for (long head = 0; head < shared; head++) {
    prepare_head(m, layer, layer->q_norm, b->position[t], m->attention_scale, q + head * dim);
  }
  prepare_head(m, layer, layer->k_norm, b->position[t], 1, k);
  memcpy(cache.keys + at, k, dim * sizeof(float));
  if (layer->value_table.rows) {
    float *added = self->scratch;
    look_up(&layer->value_table, b->tokens[t], m->groups * dim, g * dim, dim, added);
    float gate =
        m->gate_scale * sigmoid(dot(self->h + t * s->stride, layer->value_gate + g * m->gate_width, m->gate_width));
    for (long i = 0; i < dim; i++) v[i] += gate * added[i];
  }
  memcpy(cache.values + at, v, dim * sizeof(float));
}

static void attention(StepThread *self, const Layer *layer, LayerCache cache) {
  const Step *s = self->step;
  const Model *m = s->model;
  const Pass *b = s->pass;
  long shared = m->heads / m->groups, items = b->positions * m->groups;
  /* A position that is alone reads no key of another one of this pass: its own keys are written just before. */
  if (!b->alone) {
    FOR_ROWS(self, b->positions, t) {
      for (long g = 0; g < m->groups; g++) place_group(self, layer, cache, t, g);
    }
    next_stage(self);
  }
  /* With the positions of a prompt, a thread takes several of one head in a row: the keys and values of the head stay
  in a near cache. */
  enum { POSITIONS_SHARE = 16 };
  long share = b->positions > POSITIONS_SHARE * s->threads ? POSITIONS_SHARE : 1;
  for (long begin = take_items(self, share); begin < items; begin = take_items(self, share)) {
    for (long item = begin; item < begin + share && item < items; item++) {
      long t = item % b->positions, g = item / b->positions;
      if (b->alone) place_group(self, layer, cache, t, g);
      long position = b->position[t];
      long first = position > layer->window ? position - layer->window : 0;
      long from = (g * b->places + b->place[t] - position + first) * m->dim;
      attend(s->qkv + t * s->qkv_stride + g * shared * m->dim, shared, cache.keys + from, cache.values + from,
             position - first + 1, m->dim, (int)b->alone, self->scratch,
             s->attended + t * s->attended_stride + g * shared * m->dim);
    }
  }
  next_stage(self);
}
