/* The forward pass of every era of nanochat on a CPU, fp32 (its matrices may be int8): `celeriac_forward`, what makes its
matrices, and `celeriac_draw`, which draws from its logits.

worker/engine/native/library.py has the twins of these structs, and worker/engine/native/model.py fills them in. All
memory but the workspace is the caller's. Shapes: T positions of the flattened batch, C channels, H heads, G key-value
heads, D channels a head, P places of the cache, R rows of logits, V ids. */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "vector.h"

#include "attention.h"
#include "int8.h"
#include "gemm.h"
#include "sampling.h"
#include "thread_pool.h"

/* A table with a row for each id, fp32 or bf16. */
typedef struct {
  const void *rows;
  long bf16;
} Table;

typedef struct {
  Matrix qkv, attention_out, mlp_in, mlp_out;
  long window;
  long mixes; /* whether stream and embedding are mixed in front of the layer ... */
  float mix_stream, mix_embedding; /* ... and their factors */
  Table value_table; /* rows NULL: this layer has none */
  const float *value_gate; /* (G, gate_width) */
} Layer;

typedef struct {
  long layers, channels, heads, groups, dim, ids;
  float epsilon, softcap, qk_scale, gate_scale;
  long gate_width, smear_width;
  const float *smear_gate;
  float smear_strength, backout;
  Table table;
  Matrix head;
  const float *cosines, *sines; /* (positions, D / 2) */
  const Layer *layer;
} Model;

/* What goes through the model; see worker.engine.batch. */
typedef struct {
  long positions, outputs;
  const int64_t *tokens, *previous, *position, *place;
  const int64_t *wanted; /* rising; NULL: all positions in order */
  long first;            /* what `wanted` counts the first position as */
  float *cache;          /* (layers, 2, G, P, D) */
  long places;
  float *logits; /* (R, V) */
} Pass;

typedef struct {
  const Model *model;
  const Pass *pass;
  int threads;
  long stride, hidden_stride, qkv_stride; /* of the rows of activations */
  float *x, *embedded, *middle, *h, *qkv, *attended, *hidden;
  float *scratch; /* of each thread */
  long scratch_size;
  atomic_long *claims; /* by stage: pieces that were taken */
} Step;

/* What a thread holds while it goes through a step. */
typedef struct {
  const Step *step;
  float *scratch;
  long stage;
} Worker;

/* Stages of a pass, at most. */
INLINE long stage_count(const Model *m) { return 16 * m->layers + 64; }

/* The next piece of the present stage's work. */
INLINE long claim(Worker *w, long size) { return atomic_fetch_add(&w->step->claims[w->stage], size); }

INLINE void next_stage(Worker *w) {
  if (w->step->threads > 1) meet();
  w->stage++;
}

/* Runs a statement for each row of the batch, `row`, in pieces of about equal size. */
#define FOR_ROWS(W, COUNT, ROW) \
  for (long piece_ = ((COUNT) + 4 * (W)->step->threads - 1) / (4 * (W)->step->threads), begin_ = claim(W, piece_); \
       begin_ < (COUNT); begin_ = claim(W, piece_)) \
    for (long ROW = begin_; ROW < (COUNT) && ROW < begin_ + piece_; ROW++)

/* Strides are no multiples of a page, else a tile's rows would compete for the same lines of the cache. */
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

INLINE void look_up(const Table *table, int64_t token, long n, float *out) {
  if (table->bf16) {
    const uint16_t *row = (const uint16_t *)table->rows + token * n;
    for (long i = 0; i < n; i++) out[i] = widen(row[i]);
  } else {
    memcpy(out, (const float *)table->rows + token * n, n * sizeof(float));
  }
}

static void embed(Worker *w) {
  const Step *s = w->step;
  const Model *m = s->model;
  const Pass *b = s->pass;
  FOR_ROWS(w, b->positions, t) {
    float *x = s->x + t * s->stride;
    look_up(&m->table, b->tokens[t], m->channels, x);
    normalize(x, x, m->channels, m->epsilon);
    if (m->smear_width && b->previous[t] >= 0) {
      float *before = w->scratch;
      look_up(&m->table, b->previous[t], m->channels, before);
      normalize(before, before, m->channels, m->epsilon);
      float gate = m->smear_strength * sigmoid(dot(x, m->smear_gate, m->smear_width));
      for (long i = 0; i < m->channels; i++) x[i] += gate * before[i];
    }
    memcpy(s->embedded + t * s->stride, x, m->channels * sizeof(float));
  }
  next_stage(w);
}

enum Then { KEEP, SQUARE_OF_POSITIVE, ADD };

/* out (rows, outputs) = x (rows, depth) times m, and then ... */
static void product(Worker *w, enum Then then, const Matrix *m, const float *x, long stride, long rows, float *out,
                    long out_stride) {
  long panels = panel_count(m), at_once = panels_for(rows);
  long share = panels / (8 * w->step->threads) / at_once * at_once;
  if (share < at_once) share = at_once;
  for (long begin = claim(w, share); begin < panels; begin = claim(w, share)) {
    long end = begin + share < panels ? begin + share : panels;
    for (long first = begin; first < end; first += at_once) {
      int count = (int)(end - first < at_once ? end - first : at_once);
      if (m->group) {
        multiply_coded(rows, count, x, stride, m, first, w->scratch, w->scratch + w->step->scratch_size - WIDENED);
      } else {
        multiply(rows, count, x, stride, m, first, w->scratch);
      }
      long column = first * COLUMNS, width = count * COLUMNS;
      if (column + width > m->outputs) width = m->outputs - column;
      for (long r = 0; r < rows; r++) {
        const float *sums = w->scratch + r * count * COLUMNS;
        float *to = out + r * out_stride + column;
        if (then == KEEP) {
          memcpy(to, sums, width * sizeof(float));
        } else if (then == ADD) {
          for (long i = 0; i < width; i++) to[i] += sums[i];
        } else {
          for (long i = 0; i < width; i++) {
            float positive = sums[i] < 0 ? 0 : sums[i]; /* NaN stays NaN */
            to[i] = positive * positive;
          }
        }
      }
    }
  }
  next_stage(w);
}

/* Turn a head by its position, channel j paired with j + D/2, and norm it: turned by rounded angles its length changes. */
INLINE void turn(const Model *m, const float *x, int64_t position, float scale, float *out) {
  long half = m->dim / 2;
  const float *cosine = m->cosines + position * half, *sine = m->sines + position * half;
  for (long j = 0; j < half; j++) {
    float left = x[j], right = x[j + half];
    out[j] = left * cosine[j] + right * sine[j];
    out[j + half] = right * cosine[j] - left * sine[j];
  }
  float factor = scale / sqrtf(square_sum(out, m->dim) / m->dim + m->epsilon);
  for (long j = 0; j < m->dim; j++) out[j] *= factor;
}

/* Keys and values of the batch go into the cache; queries are turned in place, scaled for the scores. */
static void cache_keys(Worker *w, const Layer *layer, float *keys, float *values) {
  const Step *s = w->step;
  const Model *m = s->model;
  const Pass *b = s->pass;
  float scale = m->qk_scale * m->qk_scale / sqrtf((float)m->dim);
  FOR_ROWS(w, b->positions, t) {
    float *q = s->qkv + t * s->qkv_stride, *k = q + m->heads * m->dim, *v = k + m->groups * m->dim;
    long place = b->place[t];
    if (layer->value_table.rows) {
      float *added = w->scratch;
      look_up(&layer->value_table, b->tokens[t], m->groups * m->dim, added);
      for (long g = 0; g < m->groups; g++) {
        float gate = m->gate_scale * sigmoid(dot(s->h + t * s->stride, layer->value_gate + g * m->gate_width, m->gate_width));
        for (long i = g * m->dim; i < (g + 1) * m->dim; i++) v[i] += gate * added[i];
      }
    }
    for (long head = 0; head < m->heads; head++) {
      float *to = w->scratch;
      turn(m, q + head * m->dim, b->position[t], scale, to);
      memcpy(q + head * m->dim, to, m->dim * sizeof(float));
    }
    for (long g = 0; g < m->groups; g++) {
      turn(m, k + g * m->dim, b->position[t], 1, keys + (g * b->places + place) * m->dim);
      memcpy(values + (g * b->places + place) * m->dim, v + g * m->dim, m->dim * sizeof(float));
    }
  }
  next_stage(w);
}

static void attention(Worker *w, const Layer *layer, const float *keys, const float *values) {
  const Step *s = w->step;
  const Model *m = s->model;
  const Pass *b = s->pass;
  long heads_a_group = m->heads / m->groups, tasks = b->positions * m->groups;
  /* Positions of a prompt one after the other for each head, whose keys and values then stay in a near cache. */
  enum { POSITIONS_SHARE = 16 };
  long share = b->positions > POSITIONS_SHARE * s->threads ? POSITIONS_SHARE : 1;
  for (long begin = claim(w, share); begin < tasks; begin = claim(w, share)) {
    for (long task = begin; task < begin + share && task < tasks; task++) {
      long t = task % b->positions, g = task / b->positions;
      long position = b->position[t];
      long first = position > layer->window ? position - layer->window : 0;
      long from = (g * b->places + b->place[t] - position + first) * m->dim;
      for (long head = g * heads_a_group; head < (g + 1) * heads_a_group; head++) {
        attend(s->qkv + t * s->qkv_stride + head * m->dim, keys + from, values + from, position - first + 1, m->dim,
               w->scratch, s->attended + t * s->stride + head * m->dim);
      }
    }
  }
  next_stage(w);
}

static void norm_rows(Worker *w, const Layer *layer) {
  const Step *s = w->step;
  const Model *m = s->model;
  FOR_ROWS(w, s->pass->positions, t) {
    float *x = s->x + t * s->stride;
    if (layer != NULL && layer->mixes) {
      const float *embedded = s->embedded + t * s->stride;
      for (long i = 0; i < m->channels; i++) x[i] = x[i] * layer->mix_stream + embedded[i] * layer->mix_embedding;
    }
    normalize(x, s->h + t * s->stride, m->channels, m->epsilon);
  }
  next_stage(w);
}

/* The rows that give logits, normed, in h. */
static void gather_outputs(Worker *w) {
  const Step *s = w->step;
  const Model *m = s->model;
  FOR_ROWS(w, s->pass->outputs, r) {
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
  next_stage(w);
}

/* softcap * tanh(logit / softcap). Near 0, where the usual formula cancels, the series. */
static void cap_logits(Worker *w) {
  const Step *s = w->step;
  long ids = s->model->ids, count = s->pass->outputs * ids;
  float cap = s->model->softcap;
  enum { SHARE = 4096 };
  for (long begin = claim(w, SHARE); begin < count; begin = claim(w, SHARE)) {
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
  Worker w = {s, s->scratch + thread * s->scratch_size, 0};
  long rows = b->positions, half = m->groups * b->places * m->dim;
  embed(&w);
  for (long i = 0; i < m->layers; i++) {
    const Layer *layer = &m->layer[i];
    float *keys = b->cache + 2 * i * half, *values = keys + half;
    norm_rows(&w, layer);
    product(&w, KEEP, &layer->qkv, s->h, s->stride, rows, s->qkv, s->qkv_stride);
    cache_keys(&w, layer, keys, values);
    attention(&w, layer, keys, values);
    product(&w, ADD, &layer->attention_out, s->attended, s->stride, rows, s->x, s->stride);
    norm_rows(&w, NULL);
    product(&w, SQUARE_OF_POSITIVE, &layer->mlp_in, s->h, s->stride, rows, s->hidden, s->hidden_stride);
    product(&w, ADD, &layer->mlp_out, s->hidden, s->hidden_stride, rows, s->x, s->stride);
    if (i == m->layers / 2 && m->backout != 0) {
      FOR_ROWS(&w, rows, t) memcpy(s->middle + t * s->stride, s->x + t * s->stride, m->channels * sizeof(float));
      next_stage(&w);
    }
  }
  if (!b->outputs) return;
  gather_outputs(&w);
  product(&w, KEEP, &m->head, s->h, s->stride, b->outputs, b->logits, m->ids);
  cap_logits(&w);
}

/* What each thread of a step takes through all layers by itself. */
typedef struct {
  const Step *step;
  const int64_t *bounds; /* positions: share i has bounds[i] to bounds[i + 1] - 1 */
} Sharing;

/* Rows of logits in front of a position. */
static long outputs_before(const Pass *b, long position) {
  if (b->wanted == NULL) return position;
  long r = 0;
  while (r < b->outputs && b->wanted[r] < position) r++;
  return r;
}

/* Each thread takes a share of the sequences through all layers, in its own part of the workspace, and meets the others at
the end alone. The weights are read once for each share. */
static void forward_shares(void *arg, int thread) {
  (void)thread;
  const Sharing *sharing = arg;
  const Step *whole = sharing->step;
  const Pass *all = whole->pass;
  long shares = whole->threads;
  for (long i = atomic_fetch_add(&whole->claims[0], 1); i < shares; i = atomic_fetch_add(&whole->claims[0], 1)) {
    long begin = sharing->bounds[i], end = sharing->bounds[i + 1];
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
    step.claims += 1 + i * stage_count(whole->model);
    if (end > begin) forward(&step, 0);
  }
}

/* Floats of workspace for passes of so many positions over so many keys. */
static long lay_out(Step *s, const Model *m, long positions, long keys, int threads, float *memory) {
  s->stride = padded(m->channels);
  s->hidden_stride = padded(4 * m->channels);
  s->qkv_stride = padded((m->heads + 2 * m->groups) * m->dim);
  long most = positions * PANELS_MOST * COLUMNS;
  if (most < keys) most = keys;
  if (most < m->channels) most = m->channels;
  s->scratch_size = padded(most) + WIDENED;
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

/* ---- What Python calls. ---- */

/* Zeroed memory; NULL if there is none. */
void *celeriac_reserve(long bytes) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
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

/* Move memory that is filled to large pages, in a thread of its own: products of 8 rows read them a sixth faster. To
begin with them would take longer than the load itself where the system must first make room for each. */
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

void celeriac_release(void *memory, long bytes) { munmap(memory, bytes); }

/* Bytes of a packed matrix; `group` as in Matrix. */
long celeriac_packed_bytes(long outputs, long depth, long group) {
  Matrix m = {outputs, depth, NULL, group};
  return panel_count(&m) * (group ? coded_bytes(&m, depth) : COLUMNS * depth * (long)sizeof(float));
}

typedef struct {
  const Matrix *matrix;
  long at, count;
  const void *from;
  long bf16;
  atomic_long claimed;
} Packing;

static void pack_shares(void *arg, int thread) {
  (void)thread;
  Packing *p = arg;
  long row_bytes = p->matrix->depth * (p->bf16 ? 2 : 4);
  for (long i = atomic_fetch_add(&p->claimed, COLUMNS); i < p->count; i = atomic_fetch_add(&p->claimed, COLUMNS)) {
    long count = p->count - i < COLUMNS ? p->count - i : COLUMNS;
    const char *rows = (const char *)p->from + i * row_bytes;
    (p->matrix->group ? pack_coded : pack)(p->matrix, p->at + i, rows, count, (int)p->bf16);
  }
}

/* Put `count` rows of a plain matrix, fp32 or bf16, in a packed one, from output `at` on. */
void celeriac_pack(const Matrix *matrix, long at, const void *from, long count, long bf16, int threads) {
  Packing packing = {matrix, at, count, from, bf16, 0};
  work_together(threads, pack_shares, &packing);
}

/* Counters of claims, for each thread that goes through the model by itself, and one for who does. */
static long claims_bytes(const Model *model, int threads) {
  return padded(1 + threads * stage_count(model)) * (long)sizeof(atomic_long);
}

/* Bytes of workspace that a pass of `positions` positions, each over at most `keys` keys, needs. */
long celeriac_workspace_bytes(const Model *model, long positions, long keys, int threads) {
  Step step;
  long floats = lay_out(&step, model, positions, keys, threads, NULL);
  return floats * (long)sizeof(float) + claims_bytes(model, threads);
}

/* Put a pass through the model. The workspace must be for as many positions, keys and threads. With `bounds`, of which there
is one more than threads, these share the positions and not the matrices: from 0 to all of them, rising, and never inside
of a sequence. */
void celeriac_forward(const Model *model, const Pass *pass, void *workspace, long keys, int threads,
                      const int64_t *bounds) {
  Step step = {.model = model, .pass = pass, .threads = threads};
  step.claims = workspace;
  memset(workspace, 0, claims_bytes(model, threads));
  lay_out(&step, model, pass->positions, keys, threads, (float *)((char *)workspace + claims_bytes(model, threads)));
  if (bounds == NULL) {
    work_together(threads, forward, &step);
  } else {
    Sharing sharing = {&step, bounds};
    work_together(threads, forward_shares, &sharing);
  }
}

typedef struct {
  const Matrix *matrix;
  const float *x;
  long rows;
  float *out;
  Step step;
} Alone;

static void product_alone(void *arg, int thread) {
  Alone *a = arg;
  Worker w = {&a->step, a->step.scratch + thread * a->step.scratch_size, 0};
  product(&w, KEEP, a->matrix, a->x, a->matrix->depth, a->rows, a->out, a->matrix->outputs);
}

/* out (rows, outputs) = x (rows, depth) times a packed matrix, for tests and benchmarks. */
int celeriac_product(const Matrix *matrix, const float *x, long rows, float *out, int threads) {
  atomic_long claims[2] = {0, 0};
  Alone alone = {matrix, x, rows, out, {.threads = threads, .claims = claims}};
  alone.step.scratch_size = padded(rows * PANELS_MOST * COLUMNS) + WIDENED;
  alone.step.scratch = malloc(threads * alone.step.scratch_size * sizeof(float));
  if (alone.step.scratch == NULL) return 0;
  work_together(threads, product_alone, &alone);
  free(alone.step.scratch);
  return 1;
}

/* Bytes of workspace that each thread needs to draw from so many ids. */
long celeriac_draw_bytes(long ids) { return room_bytes(ids); }

/* Draw an id for each row of logits (R, V) into drawn (R); -1 where a row's logits are not all finite. */
void celeriac_draw(const float *logits, long count, long ids, const Row *rows, void *workspace, int64_t *drawn,
                   int threads) {
  Draw draw = {logits, count, ids, rows, workspace, drawn, 0};
  work_together(threads, draw_rows, &draw);
}

/* The uniform number of a seed's token `index`, for tests. */
double celeriac_uniform(uint64_t seed, uint64_t index) { return uniform(seed, index); }

/* The inverse of the distribution of whole blocks of weights, for tests. */
long celeriac_invert_cdf(const double *weights, long count, double share) { return invert_cdf(weights, count, share); }
