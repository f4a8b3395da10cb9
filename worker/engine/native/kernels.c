/* The functions that Python calls: `celeriac_forward`, the forward pass of a model on a CPU; functions that allocate and
pack its matrices; and `celeriac_draw`, which draws the next ids from its logits. library.py declares them. */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "forward.h"
#include "sampling.h"
#include "thread_pool.h"

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
