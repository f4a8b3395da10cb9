/* The functions that Python calls: `celeriac_forward`, the forward pass of a model on a CPU; functions that allocate and
pack its matrices; and `celeriac_draw`, which draws the next ids from its logits.

Numbers are fp32; the matrices may be int8. worker/engine/native/library.py declares the same structs, and
worker/engine/native/model.py fills them in: which parts a model has is in them. The caller owns all memory. Shapes: T
positions of the flattened batch, C channels, H heads, G key-value heads, D channels of a head, P places of the KV cache,
R rows of logits, V ids. */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "vector.h"

#include "activation.h"
#include "attention.h"
#include "gemm.h"
#include "norm.h"
#include "sampling.h"
#include "thread_pool.h"

/* An embedding table: one row for each id, fp32 or bf16. */
typedef struct {
  const void *rows;
  long bf16;
} Table;

/* A matrix, and what is added to its products. */
typedef struct {
  Matrix matrix;
  const float *bias; /* NULL: nothing. Filled up to a multiple of COLUMNS */
  /* If not NULL: the bias of the gate. */
  const float *gate_bias;
} Linear;

/* worker/engine/native/library.py has the same numbers. */
enum QkNorm { NO_QK_NORM, BEFORE_ROTATION, AFTER_ROTATION };

typedef struct {
  /* With a gate, each panel of mlp_in has LANES outputs of the gate, and as many of the matrix that it is applied to. */
  Linear qkv, attention_out, mlp_in, mlp_out;
  NormWeights attention_norm, mlp_norm;
  const float *q_norm, *k_norm; /* weights (D) of the norm of queries and keys; NULL: none */
  long rotates;
  long window;
  long mixes; /* whether the residual stream and the embedding are mixed before the layer ... */
  float mix_stream, mix_embedding; /* ... with these factors */
  Table value_table; /* rows NULL: the layer has none */
  const float *value_gate; /* (G, gate_width) */
} Layer;

typedef struct {
  long layers, channels, heads, groups, dim, hidden, ids;
  Norm norm;
  long qk_norm;
  float qk_epsilon;
  long activation, gated;
  float attention_scale;
  float softcap; /* 0: logits are not capped */
  long embedding_norm;
  float gate_scale;
  long gate_width, smear_width;
  const float *smear_gate;
  float smear_strength, backout;
  Table table; /* rows NULL: the embedding of a token is its row of the head */
  Table positions; /* rows NULL: none */
  NormWeights final_norm;
  Linear head;
  const float *cosines, *sines; /* (positions, D / 2) */
  const Layer *layer;
} Model;

/* The batch of one step; see worker/engine/batch.py. */
typedef struct {
  long positions, outputs;
  const int64_t *tokens, *previous, *position, *place;
  const int64_t *wanted; /* positions that give logits, in rising order; NULL: all of them, or none */
  long first;            /* the number that the first position has in `wanted` */
  float *cache;          /* (layers, 2, G, P, D) */
  long places;
  long alone;    /* whether each position is the only one of its sequence */
  float *logits; /* (R, V) */
} Pass;

typedef struct {
  const Model *model;
  const Pass *pass;
  int threads;
  long stride, hidden_stride, qkv_stride, attended_stride; /* between rows of activations */
  float *x, *embedded, *middle, *h, *qkv, *attended, *hidden;
  float *rounded; /* the activations of a gemm that rounds them */
  long rounded_size; /* of each position */
  float *scratch, *own_h; /* one part for each thread */
  long scratch_size, own_h_size;
  atomic_long *items_taken; /* for each stage: items of its work that threads have taken */
} Step;

/* The state of one thread in a step. */
typedef struct {
  const Step *step;
  float *scratch, *own_h;
  const float *h; /* the normalized rows of the current layer: the thread's own, or those of all threads */
  long stage;
} StepThread;

/* The largest possible number of stages of a pass. */
INLINE long max_stages(const Model *m) { return 16 * m->layers + 64; }

/* Take the next `count` items of the current stage's work. Returns the first one; fewer items may be left. */
INLINE long take_items(StepThread *self, long count) {
  return atomic_fetch_add(&self->step->items_taken[self->stage], count);
}

INLINE void next_stage(StepThread *self) {
  if (self->step->threads > 1) pool_barrier();
  self->stage++;
}

/* Run a statement for every row. The threads take shares of the rows, about four each. */
#define FOR_ROWS(SELF, COUNT, ROW) \
  for (long share_ = ((COUNT) + 4 * (SELF)->step->threads - 1) / (4 * (SELF)->step->threads), \
            begin_ = take_items(SELF, share_); \
       begin_ < (COUNT); begin_ = take_items(SELF, share_)) \
    for (long ROW = begin_; ROW < (COUNT) && ROW < begin_ + share_; ROW++)

/* The stride of rows of `size` floats: not a multiple of a page, or the rows of a tile would compete for cache lines. */
INLINE long padded(long size) { return (size + LANES - 1) / LANES * LANES + LANES; }

INLINE float dot(const float *a, const float *b, long n) {
  float total = 0;
  for (long i = 0; i < n; i++) total += a[i] * b[i];
  return total;
}

/* out = `count` numbers of the row of a token, from `begin` on, in a table of rows of n numbers. */
INLINE void look_up(const Table *table, int64_t token, long n, long begin, long count, float *out) {
  if (table->bf16) {
    const uint16_t *row = (const uint16_t *)table->rows + token * n + begin;
    for (long i = 0; i < count; i++) out[i] = widen(row[i]);
  } else {
    memcpy(out, (const float *)table->rows + token * n + begin, count * sizeof(float));
  }
}

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

/* Up to this many numbers, each thread normalizes or rounds all rows for itself: that takes less time than waiting for the
other threads. */
enum { OWN_NUMBERS = 8192 };

/* What becomes of a product: it is stored; added to the residual stream; the activation of it is stored; or, with a
gate, the activation of the gate times the rest. */
enum Epilogue { STORE, ADD, ACTIVATE, GATE };

/* out = the activation of `count` vectors of a product; with a gate, of half as many. */
INLINE void activate_row(const enum Activation activation, const int gated, const Linear *l, const float *products,
                         long count, long column, float *out) {
  if (!gated) {
    for (long i = 0; i < count; i++) {
      vec x = load(products + i * LANES);
      if (l->bias != NULL) x += load(l->bias + column + i * LANES);
      store(out + column + i * LANES, activate(activation, x));
    }
    return;
  }
  for (long i = 0; i < count; i += 2) {
    vec gate = load(products + i * LANES), x = load(products + (i + 1) * LANES);
    long at = column / 2 + i / 2 * LANES;
    if (l->bias != NULL) {
      gate += load(l->gate_bias + at);
      x += load(l->bias + at);
    }
    store(out + at, activate(activation, gate) * x);
  }
}

/* The epilogue for some rows of products (rows, width), which are the outputs from `column` on. Products and activated
rows are filled up to whole panels. */
static void finish_products(enum Epilogue epilogue, enum Activation activation, const Linear *l, const float *products,
                            long rows, long column, long width, float *out, long stride) {
  long outputs = l->matrix.outputs - column < width ? l->matrix.outputs - column : width;
  for (long r = 0; r < rows; r++, products += width, out += stride) {
    float *to = out + column;
    if (epilogue == STORE && l->bias == NULL) {
      memcpy(to, products, outputs * sizeof(float));
    } else if (epilogue == STORE) {
      for (long i = 0; i < outputs; i++) to[i] = products[i] + l->bias[column + i];
    } else if (epilogue == ADD && l->bias == NULL) {
      for (long i = 0; i < outputs; i++) to[i] += products[i];
    } else if (epilogue == ADD) {
      for (long i = 0; i < outputs; i++) to[i] += products[i] + l->bias[column + i];
    } else {
#define CASE(A) \
  case A * 2: activate_row(A, 0, l, products, width / LANES, column, out); break; \
  case A * 2 + 1: activate_row(A, 1, l, products, width / LANES, column, out); break;
      switch (activation * 2 + (epilogue == GATE)) { CASE(RELU_SQUARED) CASE(SILU) CASE(GELU) CASE(GELU_TANH) }
#undef CASE
    }
  }
}

INLINE long rounded_stride(const Matrix *m) { return padded(rounded_floats(m)); }

/* Returns x (rows, depth) rounded for a multiplication with `m`, as rows with the stride `rounded_stride`. */
static const float *round_rows(StepThread *self, const Matrix *m, const float *x, long stride, long rows) {
  const Step *s = self->step;
  long to_stride = rounded_stride(m);
  if (s->threads > 1 && rows * to_stride <= OWN_NUMBERS) {
    float *own = self->scratch + s->scratch_size - WIDENED - OWN_NUMBERS;
    for (long r = 0; r < rows; r++) round_row(m, x + r * stride, own + r * to_stride);
    return own;
  }
  FOR_ROWS(self, rows, r) round_row(m, x + r * stride, s->rounded + r * to_stride);
  next_stage(self);
  return s->rounded;
}

/* out (rows, outputs) = x (rows, depth) times the matrix, followed by an epilogue. */
static void gemm(StepThread *self, enum Epilogue epilogue, const Linear *l, const float *x, long stride, long rows,
                 float *out, long out_stride) {
  const Matrix *m = &l->matrix;
  const Model *model = self->step->model;
  if (rounds_activations(m)) {
    x = round_rows(self, m, x, stride, rows);
    stride = rounded_stride(m);
  }
  long panels = panel_count(m), at_once = panels_for(rows), threads = self->step->threads;
  /* As many shares for each thread, so that all threads end at the same time if nothing disturbs them. */
  long shares = panels / (at_once * threads);
  shares = (shares < 1 ? 1 : shares > 8 ? 8 : shares) * threads;
  for (long share = take_items(self, 1); share < shares; share = take_items(self, 1)) {
    long begin = panels * share / shares, end = panels * (share + 1) / shares;
    long tiles = (end - begin + at_once - 1) / at_once;
    for (long tile = 0; tile < tiles; tile++) {
      long first = begin + (end - begin) * tile / tiles;
      int count = (int)(begin + (end - begin) * (tile + 1) / tiles - first);
      multiply_panels(rows, count, x, stride, m, first, self->scratch,
                      self->scratch + self->step->scratch_size - WIDENED);
      finish_products(epilogue, epilogue > ADD ? (enum Activation)model->activation : RELU_SQUARED, l, self->scratch,
                      rows, first * COLUMNS, count * COLUMNS, out, out_stride);
    }
  }
  next_stage(self);
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

/* ---- The functions that Python calls. ---- */

/* Reserve zeroed memory. The system provides each page when it is first written to. Returns NULL if there are not as many
addresses. */
void *celeriac_reserve(long bytes) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? NULL : memory;
}

typedef struct {
  char *memory;
  long bytes;
} Region;

static void *enlarge(void *arg) {
  Region region = *(Region *)arg;
  free(arg);
#ifdef __linux__
  enum { COLLAPSE = 25, LARGE = 2 << 20, PART = 4 * LARGE }; /* MADV_COLLAPSE, since Linux 6.1 */
  long first = -(intptr_t)region.memory & (LARGE - 1);
  for (long at = first; at + LARGE <= region.bytes; at += PART) {
    long size = region.bytes - at < PART ? (region.bytes - at) / LARGE * LARGE : PART;
    if (madvise(region.memory + at, size, COLLAPSE) && errno == EINVAL) break;
  }
#endif
  return NULL;
}

/* Move filled memory to large pages, in a separate thread: a gemm of 8 rows reads them a sixth faster. Allocating large
pages from the start would take longer than the whole load on a system that must first make room for each of them. */
void celeriac_enlarge_pages(void *memory, long bytes) {
  Region *region = malloc(sizeof(Region));
  pthread_t thread;
  if (region == NULL) return;
  *region = (Region){memory, bytes};
  if (pthread_create(&thread, NULL, enlarge, region)) {
    free(region);
  } else {
    pthread_detach(thread);
  }
}

void celeriac_free(void *memory, long bytes) { munmap(memory, bytes); }

/* The kinds of matrices that this library multiplies with instructions for dot products: a bit for each. */
long celeriac_dot_kinds(void) { return DOT_BF16 << BF16_DOT | DOT_INT8 << INT8_DOT; }

/* Bytes of the panels of a matrix, which need not exist yet. */
long celeriac_packed_bytes(const Matrix *matrix) { return panel_count(matrix) * panel_bytes(matrix); }

/* Where the rows of a plain matrix go: to outputs in a row, or to the first or the second halves of panels. */
enum Target { IN_A_ROW, FIRST_HALVES, SECOND_HALVES };

typedef struct {
  const Matrix *matrix;
  enum Target target;
  long at, count;
  const void *from;
  int source;
  atomic_long taken;
} Packing;

static void pack_pieces(void *arg, int thread) {
  (void)thread;
  Packing *p = arg;
  long row_bytes = p->matrix->depth * (p->source == FP32 ? 4 : 2), piece = p->target == IN_A_ROW ? COLUMNS : LANES;
  for (long i = atomic_fetch_add(&p->taken, piece); i < p->count; i = atomic_fetch_add(&p->taken, piece)) {
    long count = p->count - i < piece ? p->count - i : piece;
    long at = p->target == IN_A_ROW ? p->at + i : 2 * i + (p->target == SECOND_HALVES ? LANES : 0);
    const char *rows = (const char *)p->from + i * row_bytes;
    pack_rows(p->matrix, at, p->source, rows, count);
  }
}

/* Pack `count` rows of a plain matrix of the kind `source`, FP32, BF16 or FP16. With the target IN_A_ROW, they are the
outputs from `at` on. The matrix is FP32, INT8 or of the same kind. */
void celeriac_pack(const Matrix *matrix, int target, long at, const void *from, long count, int source, int threads) {
  Packing packing = {matrix, (enum Target)target, at, count, from, source, 0};
  pool_run(threads, pack_pieces, &packing);
}

/* Bytes of the counters of taken items: one for the shares of a step by rows, and those of all stages for each
thread. */
static long counter_bytes(const Model *model, int threads) {
  return padded(1 + threads * max_stages(model)) * (long)sizeof(atomic_long);
}

/* Bytes of workspace for a pass of `positions` positions, each with at most `keys` keys. */
long celeriac_workspace_bytes(const Model *model, long positions, long keys, int threads) {
  Step step;
  long floats = lay_out_workspace(&step, model, positions, keys, threads, NULL);
  return floats * (long)sizeof(float) + counter_bytes(model, threads);
}

/* Run a pass through the model. The workspace must be large enough for as many positions, keys and threads. `bounds`
NULL: the threads share each matrix. Otherwise they share the positions: there are threads + 1 bounds, rising from 0 to
the number of positions, and none lies inside a sequence. */
void celeriac_forward(const Model *model, const Pass *pass, void *workspace, long keys, int threads,
                      const int64_t *bounds) {
  Step step = {.model = model, .pass = pass, .threads = threads};
  step.items_taken = workspace;
  memset(workspace, 0, counter_bytes(model, threads));
  float *memory = (float *)((char *)workspace + counter_bytes(model, threads));
  lay_out_workspace(&step, model, pass->positions, keys, threads, memory);
  if (bounds == NULL) {
    pool_run(threads, forward, &step);
  } else {
    RowShares row_shares = {&step, bounds};
    pool_run(threads, forward_by_rows, &row_shares);
  }
}

typedef struct {
  Linear linear;
  const float *x;
  long rows;
  float *out;
  Step step;
} SingleGemm;

static void gemm_only(void *arg, int thread) {
  SingleGemm *a = arg;
  StepThread self = {&a->step, a->step.scratch + thread * a->step.scratch_size, NULL, NULL, 0};
  gemm(&self, STORE, &a->linear, a->x, a->linear.matrix.depth, a->rows, a->out, a->linear.matrix.outputs);
}

/* out (rows, outputs) = x (rows, depth) times a packed matrix, for tests and benchmarks. Returns 0 if there is no
memory. */
int celeriac_gemm(const Matrix *matrix, const float *x, long rows, float *out, int threads) {
  atomic_long items_taken[3] = {0, 0, 0};
  SingleGemm single = {{*matrix, NULL, NULL}, x, rows, out, {.threads = threads, .items_taken = items_taken}};
  single.step.scratch_size = padded(rows * MAX_PANELS * COLUMNS) + OWN_NUMBERS + WIDENED;
  long scratch = threads * single.step.scratch_size;
  single.step.scratch = malloc((scratch + rows * rounded_stride(matrix)) * sizeof(float));
  if (single.step.scratch == NULL) return 0;
  single.step.rounded = single.step.scratch + scratch;
  pool_run(threads, gemm_only, &single);
  free(single.step.scratch);
  return 1;
}

/* out = the activation of each of `count` numbers, for tests. `count` is a multiple of LANES. */
void celeriac_activate(long activation, const float *x, long count, float *out) {
#define CASE(A) \
  case A: \
    for (long i = 0; i < count; i += LANES) store(out + i, activate(A, load(x + i))); \
    break;
  switch ((enum Activation)activation) { CASE(RELU_SQUARED) CASE(SILU) CASE(GELU) CASE(GELU_TANH) }
#undef CASE
}

/* Bytes of workspace that each thread needs to draw from `ids` ids. */
long celeriac_draw_bytes(long ids) { return candidates_bytes(ids); }

/* drawn (R) = an id for each row of logits (R, V); -1 for a row whose logits are not all finite. */
void celeriac_draw(const float *logits, long count, long ids, const SamplingRow *rows, void *workspace, int64_t *drawn,
                   int threads) {
  Draw draw = {logits, count, ids, rows, workspace, drawn, 0};
  pool_run(threads, draw_rows, &draw);
}

/* The uniform number for token `index` of a seed's sequence `choice`, for tests. */
double celeriac_uniform(uint64_t seed, uint64_t index, uint64_t choice) { return uniform(seed, index, choice); }

/* `invert_cdf`, for tests. The weights must be filled up to whole blocks. */
long celeriac_invert_cdf(const double *weights, long count, double fraction) {
  return invert_cdf(weights, count, fraction);
}
