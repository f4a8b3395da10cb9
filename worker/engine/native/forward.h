/* The forward pass. */
#pragma once

#include "activation.h"
#include "attention_stage.h"
#include "linear.h"
#include "step.h"

static void embed_token(const Model *m, int64_t token, float *out) {
  if (m->table.rows == NULL) {
    copy_row(&m->head.matrix, token, out);
  } else {
    look_up(&m->table, token, m->channels, 0, m->channels, out);
  }
  if (m->embedding_norm) {
    Norm norm = {0, m->norm.epsilon};
    normalize(&norm, &(NormWeights){NULL, NULL}, out, out, m->channels);
  }
}

static void embed(StepThread *self) {
  const Step *s = self->step;
  const Model *m = s->model;
  const Pass *b = s->pass;
  FOR_ROWS(self, b->positions, t) {
    float *x = s->x + t * s->stride;
    float *other = self->scratch;
    embed_token(m, b->tokens[t], x);
    if (m->smear_width && b->previous[t] >= 0) {
      embed_token(m, b->previous[t], other);
      float gate = m->smear_strength * sigmoid(dot(x, m->smear_gate, m->smear_width));
      for (long i = 0; i < m->channels; i++) x[i] += gate * other[i];
    }
    if (m->positions.rows != NULL) {
      look_up(&m->positions, b->position[t], m->channels, 0, m->channels, other);
      for (long i = 0; i < m->channels; i++) x[i] += other[i];
    }
    memcpy(s->embedded + t * s->stride, x, m->channels * sizeof(float));
  }
  next_stage(self);
}

INLINE void normalize_row(StepThread *self, const NormWeights *weights, long t, float *h) {
  const Step *s = self->step;
  normalize(&s->model->norm, weights, s->x + t * s->stride, h + t * s->stride, s->model->channels);
}

/* Set self->h (T, C) to the normalized residual stream. `mixing`: mix it with the embedding first, as the layer has it;
NULL: don't. */
static void normalize_rows(StepThread *self, const NormWeights *weights, const Layer *mixing) {
  const Step *s = self->step;
  const Model *m = s->model;
  long rows = s->pass->positions;
  if (s->threads > 1 && mixing == NULL && rows * m->channels <= OWN_NUMBERS) {
    for (long t = 0; t < rows; t++) normalize_row(self, weights, t, self->own_h);
    self->h = self->own_h;
    return;
  }
  FOR_ROWS(self, rows, t) {
    if (mixing != NULL) {
      float *x = s->x + t * s->stride;
      const float *embedded = s->embedded + t * s->stride;
      for (long i = 0; i < m->channels; i++) x[i] = x[i] * mixing->mix_stream + embedded[i] * mixing->mix_embedding;
    }
    normalize_row(self, weights, t, s->h);
  }
  self->h = s->h;
  next_stage(self);
}

/* h (R, C) = the normalized rows that give logits. */
static void gather_outputs(StepThread *self) {
  const Step *s = self->step;
  const Model *m = s->model;
  FOR_ROWS(self, s->pass->outputs, r) {
    long t = s->pass->wanted ? s->pass->wanted[r] - s->pass->first : r;
    const float *x = s->x + t * s->stride;
    float *h = s->h + r * s->stride;
    if (m->backout != 0) {
      const float *middle = s->middle + t * s->stride;
      for (long i = 0; i < m->channels; i++) h[i] = x[i] - m->backout * middle[i];
      x = h;
    }
    normalize(&m->norm, &m->final_norm, x, h, m->channels);
  }
  next_stage(self);
}

/* Each logit becomes softcap * tanh(logit / softcap). */
static void cap_logits(StepThread *self) {
  const Step *s = self->step;
  long ids = s->model->ids, count = s->pass->outputs * ids;
  float cap = s->model->softcap;
  enum { SHARE = 4096 };
  for (long begin = take_items(self, SHARE); begin < count; begin = take_items(self, SHARE)) {
    long end = begin + SHARE < count ? begin + SHARE : count;
    for (long i = begin; i < end; i += LANES) {
      float some[LANES] = {0};
      long n = end - i < LANES ? end - i : LANES;
      memcpy(some, s->pass->logits + i, n * sizeof(float));
      store(some, cap * hyperbolic_tangent(load(some) / cap));
      memcpy(s->pass->logits + i, some, n * sizeof(float));
    }
  }
}

static void forward(void *arg, int thread) {
  const Step *s = arg;
  const Model *m = s->model;
  const Pass *b = s->pass;
  StepThread self = {s, s->scratch + thread * s->scratch_size, s->own_h + thread * s->own_h_size, NULL, 0};
  long rows = b->positions, half = m->groups * b->places * m->dim;
  embed(&self);
  for (long i = 0; i < m->layers; i++) {
    const Layer *layer = &m->layer[i];
    LayerCache cache = {b->cache + 2 * i * half, b->cache + (2 * i + 1) * half};
    normalize_rows(&self, &layer->attention_norm, layer->mixes ? layer : NULL);
    gemm(&self, STORE, &layer->qkv, self.h, s->stride, rows, s->qkv, s->qkv_stride);
    attention(&self, layer, cache);
    gemm(&self, ADD, &layer->attention_out, s->attended, s->attended_stride, rows, s->x, s->stride);
    normalize_rows(&self, &layer->mlp_norm, NULL);
    gemm(&self, m->gated ? GATE : ACTIVATE, &layer->mlp_in, self.h, s->stride, rows, s->hidden, s->hidden_stride);
    gemm(&self, ADD, &layer->mlp_out, s->hidden, s->hidden_stride, rows, s->x, s->stride);
    if (i == m->layers / 2 && m->backout != 0) {
      FOR_ROWS(&self, rows, t) memcpy(s->middle + t * s->stride, s->x + t * s->stride, m->channels * sizeof(float));
      next_stage(&self);
    }
  }
  if (!b->outputs) return;
  gather_outputs(&self);
  gemm(&self, STORE, &m->head, s->h, s->stride, b->outputs, b->logits, m->ids);
  if (m->softcap != 0) cap_logits(&self);
}

/* A step that the threads share by rows. */
typedef struct {
  const Step *step;
  const int64_t *bounds; /* share i has the positions bounds[i] to bounds[i + 1] - 1 */
} RowShares;

/* Number of rows of logits before a position. */
static long outputs_before(const Pass *b, long position) {
  if (b->wanted == NULL) return b->outputs ? position : 0;
  long r = 0;
  while (r < b->outputs && b->wanted[r] < position) r++;
  return r;
}

/* Each thread takes a share of the sequences through all layers, in its own part of the workspace, and waits for the
others only at the end. The weights are read once for each share. */
static void forward_by_rows(void *arg, int thread) {
  (void)thread;
  const RowShares *row_shares = arg;
  const Step *whole = row_shares->step;
  const Pass *all = whole->pass;
  long shares = whole->threads;
  for (long i = atomic_fetch_add(&whole->items_taken[0], 1); i < shares;
       i = atomic_fetch_add(&whole->items_taken[0], 1)) {
    long begin = row_shares->bounds[i], end = row_shares->bounds[i + 1];
    long output = outputs_before(all, begin);
    Pass pass = *all;
    Step step = *whole;
    pass.positions = end - begin;
    pass.outputs = outputs_before(all, end) - output;
    pass.tokens += begin;
    pass.previous += begin;
    pass.position += begin;
    pass.place += begin;
    if (pass.wanted != NULL) pass.wanted += output;
    pass.first = begin;
    pass.logits += output * whole->model->ids;
    step.pass = &pass;
    step.threads = 1;
    float **parts[] = {&step.x, &step.embedded, &step.middle, &step.h};
    for (int part = 0; part < 4; part++) *parts[part] += begin * step.stride;
    step.attended += begin * step.attended_stride;
    step.qkv += begin * step.qkv_stride;
    step.hidden += begin * step.hidden_stride;
    step.rounded += begin * step.rounded_size;
    step.scratch += i * step.scratch_size;
    step.items_taken += 1 + i * max_stages(whole->model);
    if (end > begin) forward(&step, 0);
  }
}

/* The largest stride of rounded activations. 0: no matrix rounds them. */
static long largest_rounded(const Model *m) {
  long largest = rounds_activations(&m->head.matrix) ? rounded_stride(&m->head.matrix) : 0;
  for (long i = 0; i < m->layers; i++) {
    const Layer *l = &m->layer[i];
    const Matrix *matrices[] = {&l->qkv.matrix, &l->attention_out.matrix, &l->mlp_in.matrix, &l->mlp_out.matrix};
    for (int j = 0; j < 4; j++) {
      long stride = rounds_activations(matrices[j]) ? rounded_stride(matrices[j]) : 0;
      largest = stride > largest ? stride : largest;
    }
  }
  return largest;
}

/* Point a step's arrays into `memory`. Returns the floats that they take, for any pass of at most `positions`
positions, each with at most `keys` keys. */
static long lay_out_workspace(Step *s, const Model *m, long positions, long keys, int threads, float *memory) {
  s->stride = padded(m->channels);
  s->hidden_stride = padded(m->hidden);
  s->qkv_stride = padded((m->heads + 2 * m->groups) * m->dim);
  s->attended_stride = padded(m->heads * m->dim);
  long own_rows = OWN_NUMBERS / m->channels;
  s->own_h_size = padded((positions < own_rows ? positions : own_rows) * s->stride);
  long needs[] = {positions * MAX_PANELS * COLUMNS, m->heads / m->groups * score_floats(keys), m->channels, m->dim};
  long scratch_floats = 0;
  for (int i = 0; i < 4; i++) scratch_floats = needs[i] > scratch_floats ? needs[i] : scratch_floats;
  s->scratch_size = padded(scratch_floats) + OWN_NUMBERS + WIDENED;
  s->rounded_size = largest_rounded(m);
  float **parts[] = {&s->x, &s->embedded, &s->middle, &s->h, &s->attended, &s->qkv, &s->hidden, &s->scratch, &s->own_h,
                    &s->rounded};
  long sizes[] = {positions * s->stride, positions * s->stride, positions * s->stride, positions * s->stride,
                  positions * s->attended_stride, positions * s->qkv_stride, positions * s->hidden_stride,
                  threads * s->scratch_size, threads * s->own_h_size, positions * s->rounded_size};
  long end = 0;
  for (int i = 0; i < 10; i++) {
    *parts[i] = memory + end;
    end += padded(sizes[i]);
  }
  return end;
}
