/* The functions that Python calls: `celeriac_forward`, the forward pass of every era of nanochat on a CPU; functions
that allocate and pack its matrices; and `celeriac_draw`, which draws the next ids from its logits.

Numbers are fp32; the matrices may be int8. worker/engine/native/library.py declares the same structs, and
worker/engine/native/model.py fills them in. The caller owns all memory. Shapes: T positions of the flattened batch, C
channels, H heads, G key-value heads, D channels of a head, P places of the KV cache, R rows of logits, V ids. */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "vector.h"

#include "attention.h"
#include "gemm.h"
#include "sampling.h"
#include "thread_pool.h"

/* An embedding table: one row for each id, fp32 or bf16. */
typedef struct {
  const void *rows;
  long bf16;
} Table;

typedef struct {
  Matrix qkv, attention_out, mlp_in, mlp_out;
  long window;
  long mixes; /* whether the residual stream and the embedding are mixed before the layer ... */
  float mix_stream, mix_embedding; /* ... with these factors */
  Table value_table; /* rows NULL: the layer has none */
  const float *value_gate; /* (G, gate_width) */
} Layer;

typedef struct {
  long layers, channels, heads, groups, dim, ids;
  float epsilon, softcap, attention_scale, gate_scale;
  long gate_width, smear_width;
  const float *smear_gate;
  float smear_strength, backout;
  Table table;
  Matrix head;
  const float *cosines, *sines; /* (positions, D / 2) */
  const Layer *layer;
} Model;

/* The batch of one step; see worker/engine/batch.py. */
typedef struct {
  long positions, outputs;
  const int64_t *tokens, *previous, *position, *place;
  const int64_t *wanted; /* positions that give logits, in rising order; NULL: all of them */
  long first;            /* the number that the first position has in `wanted` */
  float *cache;          /* (layers, 2, G, P, D) */
  long places;
  float *logits; /* (R, V) */
} Pass;

typedef struct {
  const Model *model;
  const Pass *pass;
  int threads;
  long stride, hidden_stride, qkv_stride; /* between rows of activations */
  float *x, *embedded, *middle, *h, *qkv, *attended, *hidden;
  float *scratch; /* one part for each thread */
  long scratch_size;
  atomic_long *items_taken; /* for each stage: items of its work that threads have taken */
} Step;

/* The state of one thread in a step. */
typedef struct {
  const Step *step;
  float *scratch;
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

INLINE void normalize(const float *x, float *out, long n, float epsilon) {
  float factor = 1 / sqrtf(square_sum(x, n) / n + epsilon);
  for (long i = 0; i < n; i++) out[i] = x[i] * factor;
}

INLINE float sigmoid(float x) { return 1 / (1 + expf(-x)); }

INLINE float dot(const float *a, const float *b, long n) {
  float total = 0;
  for (long i = 0; i < n; i++) total += a[i] * b[i];
  return total;
}

INLINE void look_up_row(const Table *table, int64_t token, long n, float *out) {
  if (table->bf16) {
    const uint16_t *row = (const uint16_t *)table->rows + token * n;
    for (long i = 0; i < n; i++) out[i] = widen(row[i]);
  } else {
    memcpy(out, (const float *)table->rows + token * n, n * sizeof(float));
  }
}

static void embed(StepThread *self) {
  const Step *s = self->step;
  const Model *m = s->model;
  const Pass *b = s->pass;
  FOR_ROWS(self, b->positions, t) {
    float *x = s->x + t * s->stride;
    look_up_row(&m->table, b->tokens[t], m->channels, x);
    normalize(x, x, m->channels, m->epsilon);
    if (m->smear_width && b->previous[t] >= 0) {
      float *before = self->scratch;
      look_up_row(&m->table, b->previous[t], m->channels, before);
      normalize(before, before, m->channels, m->epsilon);
      float gate = m->smear_strength * sigmoid(dot(x, m->smear_gate, m->smear_width));
      for (long i = 0; i < m->channels; i++) x[i] += gate * before[i];
    }
    memcpy(s->embedded + t * s->stride, x, m->channels * sizeof(float));
  }
  next_stage(self);
}

enum Epilogue { STORE, STORE_RELU_SQUARED, ADD };

/* out (rows, outputs) = x (rows, depth) times the matrix, followed by an epilogue. */
static void gemm(StepThread *self, enum Epilogue epilogue, const Matrix *m, const float *x, long stride, long rows,
                 float *out, long out_stride) {
  long panels = panel_count(m), at_once = panels_for(rows);
  long share = panels / (8 * self->step->threads) / at_once * at_once;
  if (share < at_once) share = at_once;
  for (long begin = take_items(self, share); begin < panels; begin = take_items(self, share)) {
    long end = begin + share < panels ? begin + share : panels;
    for (long first = begin; first < end; first += at_once) {
      int count = (int)(end - first < at_once ? end - first : at_once);
      multiply_panels(rows, count, x, stride, m, first, self->scratch,
                      self->scratch + self->step->scratch_size - WIDENED);
      long column = first * COLUMNS, width = count * COLUMNS;
      if (column + width > m->outputs) width = m->outputs - column;
      for (long r = 0; r < rows; r++) {
        const float *sums = self->scratch + r * count * COLUMNS;
        float *to = out + r * out_stride + column;
        if (epilogue == STORE) {
          memcpy(to, sums, width * sizeof(float));
        } else if (epilogue == ADD) {
          for (long i = 0; i < width; i++) to[i] += sums[i];
        } else {
          for (long i = 0; i < width; i++) {
            float positive = sums[i] < 0 ? 0 : sums[i]; /* keeps NaN */
            to[i] = positive * positive;
          }
        }
      }
    }
  }
  next_stage(self);
}

/* Rotate a head by its position (RoPE; channel j is paired with j + D/2), then normalize it: the rotation changes its
length, because the angles are rounded. */
INLINE void rotate(const Model *m, const float *x, int64_t position, float scale, float *out) {
  long half = m->dim / 2;
  const float *cosine = m->cosines + position * half, *sine = m->sines + position * half;
  for (long j = 0; j < half; j++) {
    float left = x[j], right = x[j + half];
    out[j] = left * cosine[j] - right * sine[j];
    out[j + half] = right * cosine[j] + left * sine[j];
  }
  float factor = scale / sqrtf(square_sum(out, m->dim) / m->dim + m->epsilon);
  for (long j = 0; j < m->dim; j++) out[j] *= factor;
}

/* Write the keys and values of the batch to the cache. Rotate the queries in place, and scale them for the scores. */
static void cache_keys_and_values(StepThread *self, const Layer *layer, float *keys, float *values) {
  const Step *s = self->step;
  const Model *m = s->model;
  const Pass *b = s->pass;
  float scale = m->attention_scale;
  FOR_ROWS(self, b->positions, t) {
    float *q = s->qkv + t * s->qkv_stride, *k = q + m->heads * m->dim, *v = k + m->groups * m->dim;
    long place = b->place[t];
    if (layer->value_table.rows) {
      float *added = self->scratch;
      look_up_row(&layer->value_table, b->tokens[t], m->groups * m->dim, added);
      for (long g = 0; g < m->groups; g++) {
        float gate = m->gate_scale *
                     sigmoid(dot(s->h + t * s->stride, layer->value_gate + g * m->gate_width, m->gate_width));
        for (long i = g * m->dim; i < (g + 1) * m->dim; i++) v[i] += gate * added[i];
      }
    }
    for (long head = 0; head < m->heads; head++) {
      float *to = self->scratch;
      rotate(m, q + head * m->dim, b->position[t], scale, to);
      memcpy(q + head * m->dim, to, m->dim * sizeof(float));
    }
    for (long g = 0; g < m->groups; g++) {
      rotate(m, k + g * m->dim, b->position[t], 1, keys + (g * b->places + place) * m->dim);
      memcpy(values + (g * b->places + place) * m->dim, v + g * m->dim, m->dim * sizeof(float));
    }
  }
  next_stage(self);
}

static void attention(StepThread *self, const Layer *layer, const float *keys, const float *values) {
  const Step *s = self->step;
  const Model *m = s->model;
  const Pass *b = s->pass;
  long heads_per_group = m->heads / m->groups, items = b->positions * m->groups;
  /* With the positions of a prompt, a thread takes several of one head in a row: the keys and values of the head stay
  in a near cache. */
  enum { POSITIONS_SHARE = 16 };
  long share = b->positions > POSITIONS_SHARE * s->threads ? POSITIONS_SHARE : 1;
  for (long begin = take_items(self, share); begin < items; begin = take_items(self, share)) {
    for (long item = begin; item < begin + share && item < items; item++) {
      long t = item % b->positions, g = item / b->positions;
      long position = b->position[t];
      long first = position > layer->window ? position - layer->window : 0;
      long from = (g * b->places + b->place[t] - position + first) * m->dim;
      for (long head = g * heads_per_group; head < (g + 1) * heads_per_group; head++) {
        attend(s->qkv + t * s->qkv_stride + head * m->dim, keys + from, values + from, position - first + 1, m->dim,
               self->scratch, s->attended + t * s->stride + head * m->dim);
      }
    }
  }
  next_stage(self);
}

static void normalize_rows(StepThread *self, const Layer *layer) {
  const Step *s = self->step;
  const Model *m = s->model;
  FOR_ROWS(self, s->pass->positions, t) {
    float *x = s->x + t * s->stride;
    if (layer != NULL && layer->mixes) {
      const float *embedded = s->embedded + t * s->stride;
      for (long i = 0; i < m->channels; i++) x[i] = x[i] * layer->mix_stream + embedded[i] * layer->mix_embedding;
    }
    normalize(x, s->h + t * s->stride, m->channels, m->epsilon);
  }
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
      normalize(h, h, m->channels, m->epsilon);
    } else {
      normalize(x, h, m->channels, m->epsilon);
    }
  }
  next_stage(self);
}

/* Each logit becomes softcap * tanh(logit / softcap). Near 0, where the usual formula loses digits, a series is
used. */
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
      vec u = load(some) / cap, square = u * u;
      vec series = u + u * square * (square * (2.0f / 15) - 1.0f / 3);
      vec whole = 1.0f - 2.0f / (exponential(u + u) + 1.0f);
      store(some, cap * choose(square < splat(0.0025f), series, whole));
      memcpy(s->pass->logits + i, some, n * sizeof(float));
    }
  }
}

static void forward(void *arg, int thread) {
  const Step *s = arg;
  const Model *m = s->model;
  const Pass *b = s->pass;
  StepThread self = {s, s->scratch + thread * s->scratch_size, 0};
  long rows = b->positions, half = m->groups * b->places * m->dim;
  embed(&self);
  for (long i = 0; i < m->layers; i++) {
    const Layer *layer = &m->layer[i];
    float *keys = b->cache + 2 * i * half, *values = keys + half;
    normalize_rows(&self, layer);
    gemm(&self, STORE, &layer->qkv, s->h, s->stride, rows, s->qkv, s->qkv_stride);
    cache_keys_and_values(&self, layer, keys, values);
    attention(&self, layer, keys, values);
    gemm(&self, ADD, &layer->attention_out, s->attended, s->stride, rows, s->x, s->stride);
    normalize_rows(&self, NULL);
    gemm(&self, STORE_RELU_SQUARED, &layer->mlp_in, s->h, s->stride, rows, s->hidden, s->hidden_stride);
    gemm(&self, ADD, &layer->mlp_out, s->hidden, s->hidden_stride, rows, s->x, s->stride);
    if (i == m->layers / 2 && m->backout != 0) {
      FOR_ROWS(&self, rows, t) memcpy(s->middle + t * s->stride, s->x + t * s->stride, m->channels * sizeof(float));
      next_stage(&self);
    }
  }
  if (!b->outputs) return;
  gather_outputs(&self);
  gemm(&self, STORE, &m->head, s->h, s->stride, b->outputs, b->logits, m->ids);
  cap_logits(&self);
}

/* A step that the threads share by rows. */
typedef struct {
  const Step *step;
  const int64_t *bounds; /* share i has the positions bounds[i] to bounds[i + 1] - 1 */
} RowShares;

/* Number of rows of logits before a position. */
static long outputs_before(const Pass *b, long position) {
  if (b->wanted == NULL) return position;
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
    float **parts[] = {&step.x, &step.embedded, &step.middle, &step.h, &step.attended};
    for (int part = 0; part < 5; part++) *parts[part] += begin * step.stride;
    step.qkv += begin * step.qkv_stride;
    step.hidden += begin * step.hidden_stride;
    step.scratch += i * step.scratch_size;
    step.items_taken += 1 + i * max_stages(whole->model);
    if (end > begin) forward(&step, 0);
  }
}

/* Point a step's arrays into `memory`. Returns the floats that they take, for any pass of at most `positions`
positions, each with at most `keys` keys. */
static long lay_out_workspace(Step *s, const Model *m, long positions, long keys, int threads, float *memory) {
  s->stride = padded(m->channels);
  s->hidden_stride = padded(4 * m->channels);
  s->qkv_stride = padded((m->heads + 2 * m->groups) * m->dim);
  long scratch_floats = positions * MAX_PANELS * COLUMNS;
  if (scratch_floats < keys) scratch_floats = keys;
  if (scratch_floats < m->channels) scratch_floats = m->channels;
  s->scratch_size = padded(scratch_floats) + WIDENED;
  float **parts[] = {&s->x, &s->embedded, &s->middle, &s->h, &s->attended, &s->qkv, &s->hidden, &s->scratch};
  long sizes[] = {positions * s->stride, positions * s->stride, positions * s->stride, positions * s->stride,
                  positions * s->stride, positions * s->qkv_stride, positions * s->hidden_stride,
                  threads * s->scratch_size};
  long end = 0;
  for (int i = 0; i < 8; i++) {
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

/* Bytes of the panels of a matrix, which need not exist yet. */
long celeriac_packed_bytes(const Matrix *matrix) { return panel_count(matrix) * panel_bytes(matrix); }

typedef struct {
  const Matrix *matrix;
  long at, count;
  const void *from;
  int source;
  atomic_long taken;
} Packing;

static void pack_pieces(void *arg, int thread) {
  (void)thread;
  Packing *p = arg;
  long row_bytes = p->matrix->depth * (p->source == FP32 ? 4 : 2);
  for (long i = atomic_fetch_add(&p->taken, COLUMNS); i < p->count; i = atomic_fetch_add(&p->taken, COLUMNS)) {
    long count = p->count - i < COLUMNS ? p->count - i : COLUMNS;
    const char *rows = (const char *)p->from + i * row_bytes;
    pack_rows(p->matrix, p->at + i, p->source, rows, count);
  }
}

/* Pack `count` rows of a plain matrix of the kind `source`, FP32, BF16 or FP16, as the outputs from `at` on. The matrix
is FP32, INT8 or of the same kind. */
void celeriac_pack(const Matrix *matrix, long at, const void *from, long count, int source, int threads) {
  Packing packing = {matrix, at, count, from, source, 0};
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
  const Matrix *matrix;
  const float *x;
  long rows;
  float *out;
  Step step;
} SingleGemm;

static void gemm_only(void *arg, int thread) {
  SingleGemm *a = arg;
  StepThread self = {&a->step, a->step.scratch + thread * a->step.scratch_size, 0};
  gemm(&self, STORE, a->matrix, a->x, a->matrix->depth, a->rows, a->out, a->matrix->outputs);
}

/* out (rows, outputs) = x (rows, depth) times a packed matrix, for tests and benchmarks. Returns 0 if there is no
memory. */
int celeriac_gemm(const Matrix *matrix, const float *x, long rows, float *out, int threads) {
  atomic_long items_taken[2] = {0, 0};
  SingleGemm single = {matrix, x, rows, out, {.threads = threads, .items_taken = items_taken}};
  single.step.scratch_size = padded(rows * MAX_PANELS * COLUMNS) + WIDENED;
  single.step.scratch = malloc(threads * single.step.scratch_size * sizeof(float));
  if (single.step.scratch == NULL) return 0;
  pool_run(threads, gemm_only, &single);
  free(single.step.scratch);
  return 1;
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
