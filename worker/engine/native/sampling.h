/* Draws the next ids: the same ids as worker/engine/sampling/torch_sampler.py, by the same rules. Nothing is sorted:
top-k and top-p keep the candidates above one value, which is found by a selection that repeatedly discards the part
that does not contain it.

The draw of a row depends neither on the other rows nor on the threads. Shapes: R rows, V ids. */
#pragma once

#include <limits.h>
#include <math.h>
#include <string.h>

#include "doubles.h"
#include "thread_pool.h"

/* The sampling fields of a row's request. worker/engine/sampling/native_sampler.py declares the same struct. */
typedef struct {
  double temperature; /* 0: the largest logit is taken */
  double top_p;       /* 1: off */
  double min_p;       /* 0: off */
  long top_k;         /* V: off */
  uint64_t seed, index, choice;
  const int32_t *forbidden; /* (V): all bits set for an id that may not be drawn, else 0. NULL: every id may be drawn */
} SamplingRow;

/* Weights are summed in blocks of this size. The last block is filled up with zeros. */
enum { BLOCK = 64 };
/* Fewest candidates that top-k collects before a selection. */
enum { MIN_COLLECTED = 256 };

/* The ids that may be drawn, in the memory of one thread. Each array has room for all ids and one more block. */
typedef struct {
  float *values;   /* their logits, filled up with -inf to a whole vector */
  int32_t *ids;    /* their ids, in rising order */
  double *weights; /* their weights */
  double *left;    /* what a selection has not discarded yet */
} Candidates;

/* The result of a selection: it keeps what is larger than `value`, and the first `ties` of those that are equal to
it. */
typedef struct {
  double value;
  long ties;
} Cut;

/* A random multiple of 2^-53 in [0, 1), by Philox4x32-10; see worker/engine/philox.py. */
static double uniform(uint64_t seed, uint64_t index, uint64_t choice) {
  uint32_t c[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)choice, 0};
  uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  for (int round = 0; round < 10; round++) {
    uint64_t product0 = (uint64_t)0xD2511F53 * c[0], product1 = (uint64_t)0xCD9E8D57 * c[2];
    c[0] = (uint32_t)(product1 >> 32) ^ c[1] ^ key[0];
    c[1] = (uint32_t)product1;
    c[2] = (uint32_t)(product0 >> 32) ^ c[3] ^ key[1];
    c[3] = (uint32_t)product0;
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  uint64_t bits = (uint64_t)(c[0] >> 5) << 26 | c[1] >> 6;
  return (double)bits * 0x1p-53;
}

/* ---- The largest logit. ---- */

typedef struct {
  int finite; /* whether all logits are finite, those of forbidden ids included */
  float value;
  int32_t id; /* the lowest one, if several logits are equally large */
} Largest;

/* The same for each lane, after a part of the logits. */
typedef struct {
  vec value;
  ivec id; /* id of lane 0 in the vector that had the largest */
  ivec not_finite;
} LaneLargest;

INLINE vec update_largest(LaneLargest *lanes, vec x, ivec forbidden, long i) {
  lanes->not_finite |= x - x != 0;
  x = choose(forbidden, splat(-INFINITY), x);
  ivec better = x > lanes->value;
  lanes->value = choose(better, x, lanes->value);
  lanes->id = (better & (int32_t)i) | (~better & lanes->id);
  return x;
}

/* Find the largest logit of the ids that may be drawn. Copies the logits to `to`, unless it is NULL; those of forbidden
ids become -inf. */
INLINE Largest find_largest(const float *logits, const int32_t *forbidden, long ids, float *to) {
  LaneLargest lanes = {splat(-INFINITY), {0}, {0}};
  long i = 0;
  for (; i + LANES <= ids; i += LANES) {
    vec x = update_largest(&lanes, load(logits + i), forbidden ? *(const ivec *)(forbidden + i) : (ivec){0}, i);
    if (to) store(to + i, x);
  }
  if (i < ids) {
    float rest[LANES] = {0};
    int32_t rest_forbidden[LANES];
    memset(rest_forbidden, -1, sizeof(rest_forbidden));
    memcpy(rest, logits + i, (ids - i) * sizeof(float));
    for (long j = i; j < ids; j++) rest_forbidden[j - i] = forbidden ? forbidden[j] : 0;
    vec x = update_largest(&lanes, load(rest), *(const ivec *)rest_forbidden, i);
    if (to) store(to + i, x);
  }
  Largest largest = {1, -INFINITY, 0};
  for (int lane = 0; lane < LANES; lane++) {
    int32_t id = lanes.id[lane] + lane;
    if (lanes.not_finite[lane]) largest.finite = 0;
    if (lanes.value[lane] > largest.value || (lanes.value[lane] == largest.value && id < largest.id)) {
      largest.value = lanes.value[lane];
      largest.id = id;
    }
  }
  return largest;
}

/* ---- Selections. ---- */

INLINE double median(double a, double b, double c) { return fmax(fmin(a, b), fmin(fmax(a, b), c)); }

/* The cut that keeps the fewest of `count` values, at least one, whose masses together reach `target`. The mass of a
value is the value itself, or 1 if `counted`. The values are in `left`, in any order, and are overwritten. */
INLINE Cut find_cut(double *left, long count, double target, const int counted) {
  double reached = 0; /* mass of the values that are larger than all that are left */
  /* The smallest cut so far that reached the target. It is returned if rounding makes the sums of smaller cuts miss
  it. */
  Cut enough = {-INFINITY, 0};
  while (count > 0) {
    double pivot = median(left[0], left[count / 2], left[count - 1]);
    for (long i = count; i % DOUBLES; i++) left[i] = -INFINITY;
    dvec above = {0}, equal = {0};
    for (long i = 0; i < count; i += DOUBLES) {
      dvec v = load_doubles(left + i), mass = counted ? splat_double(1) : v;
      above += where(v > pivot, mass);
      equal += where(v == pivot, mass);
    }
    double more = sum_doubles(above), same = sum_doubles(equal);
    long kept = 0;
    if (more > 0 && reached + more >= target) {
      enough = (Cut){nextafter(pivot, INFINITY), LONG_MAX};
      for (long i = 0; i < count; i++) {
        double v = left[i];
        left[kept] = v;
        kept += v > pivot;
      }
    } else if (reached + more + same >= target) {
      double ties = ceil((target - reached - more) / (counted ? 1 : pivot));
      return (Cut){pivot, ties < 1 ? 1 : (long)ties};
    } else {
      reached += more + same;
      for (long i = 0; i < count; i++) {
        double v = left[i];
        left[kept] = v;
        kept += v < pivot;
      }
    }
    count = kept;
  }
  return enough;
}

/* Keep the k highest of the first `count` candidates, or all if there are fewer. Returns the number that is kept. */
static long keep_highest(Candidates *candidates, long count, long k) {
  if (count <= k) return count;
  for (long i = 0; i < count; i++) candidates->left[i] = candidates->values[i];
  Cut end = find_cut(candidates->left, count, (double)k, 1);
  long kept = 0;
  for (long i = 0; i < count; i++) {
    float value = candidates->values[i];
    candidates->values[kept] = value;
    candidates->ids[kept] = candidates->ids[i];
    kept += value > end.value || (value == end.value && end.ties-- > 0);
  }
  return kept;
}

/* Make the k highest logits the candidates, or all that are allowed if there are fewer. Returns their number. They are
collected in the array that is being read, always before the read position. When more than `max_collected` have been
collected, only the k highest of them are kept, and the lowest of these becomes the threshold that later logits must
exceed. */
static long keep_top_k(Candidates *candidates, long ids, long k) {
  long max_collected = 2 * k > MIN_COLLECTED ? 2 * k : MIN_COLLECTED, count = 0;
  float threshold = -INFINITY;
  for (long i = 0; i < ids; i += LANES) {
    vec x = load(candidates->values + i);
    if (!any(x > threshold)) continue;
    float lanes[LANES];
    store(lanes, x);
    for (int lane = 0; lane < LANES; lane++) {
      candidates->values[count] = lanes[lane];
      candidates->ids[count] = (int32_t)i + lane;
      count += lanes[lane] > threshold; /* an equal logit has a higher id than k others, so it is not needed */
    }
    if (count > max_collected) {
      count = keep_highest(candidates, count, k);
      threshold = candidates->values[0];
      for (long j = 1; j < count; j++) {
        float value = candidates->values[j];
        threshold = value < threshold ? value : threshold;
      }
    }
  }
  count = keep_highest(candidates, count, k);
  for (long i = count; i % LANES; i++) candidates->values[i] = -INFINITY;
  return count;
}

INLINE double block_sum(const double *weights) {
  dvec total = load_doubles(weights);
  for (long i = DOUBLES; i < BLOCK; i += DOUBLES) total += load_doubles(weights + i);
  return sum_doubles(total);
}

static double total_of(const double *weights, long count) {
  double total = 0;
  for (long i = 0; i < count; i += BLOCK) total += block_sum(weights + i);
  return total;
}

/* Compute the weights of the candidates. The weight of the largest logit is 1. */
static void weigh_candidates(Candidates *candidates, long count, double largest, double temperature) {
  long i = 0;
  for (; i < count; i += DOUBLES) {
    dvec score = (load_widened(candidates->values + i) - largest) / temperature;
    store_doubles(candidates->weights + i, exponential_of_doubles(score));
  }
  for (; i % BLOCK; i += DOUBLES) store_doubles(candidates->weights + i, (dvec){0});
}

/* Keep the candidates whose weights are at least min_p times that of the largest logit; the weights of the others become
0. */
static void keep_min_p(Candidates *candidates, long count, double min_p) {
  for (long i = 0; i < count; i += DOUBLES) {
    dvec w = load_doubles(candidates->weights + i);
    store_doubles(candidates->weights + i, where(w >= min_p, w));
  }
}

/* Keep the fewest candidates whose weights together reach the fraction p of the total; the weights of the others become
0. */
static void keep_top_p(Candidates *candidates, long count, double p) {
  double total = total_of(candidates->weights, count);
  /* All weights below this one add up to at most half of what may be left out, so none of them is needed. */
  double least = (1 - p) * total / (2 * (double)count);
  long heavy = 0;
  for (long i = 0; i < count; i += DOUBLES) {
    dvec w = load_doubles(candidates->weights + i);
    if (!any_double(w >= least)) continue;
    for (int lane = 0; lane < DOUBLES; lane++) {
      candidates->left[heavy] = w[lane];
      heavy += w[lane] >= least;
    }
  }
  Cut end = find_cut(candidates->left, heavy, p * total, 0);
  for (long i = 0; i < count; i += DOUBLES) {
    dvec w = load_doubles(candidates->weights + i);
    store_doubles(candidates->weights + i, where(w >= end.value, w));
    if (!any_double(w == end.value)) continue;
    for (long j = i; j < i + DOUBLES; j++) {
      if (candidates->weights[j] == end.value && end.ties-- <= 0) candidates->weights[j] = 0;
    }
  }
}

/* ---- The draw. ---- */

/* The candidate at which the running sum of the weights first exceeds `fraction` times the total; 0 <= fraction < 1.
This target rounds to less than the total, which is at least 1, the weight of the largest logit. */
static long invert_cdf(const double *weights, long count, double fraction) {
  double target = fraction * total_of(weights, count), reached = 0;
  long i = 0;
  for (; i + BLOCK < count; i += BLOCK) { /* the running sum exceeds it in the last block, if not before */
    double next = reached + block_sum(weights + i);
    if (next > target) break;
    reached = next;
  }
  long drawn = i;
  for (long end = i + BLOCK; i < end && reached <= target; i++) {
    if (weights[i] > 0) {
      drawn = i;
      reached += weights[i];
    }
  }
  return drawn; /* if rounding kept this sum from exceeding the target: the last candidate with a weight */
}

/* Draw an id from logits (V). Returns -1 if they are not all finite, or if no id may be drawn. */
static int64_t draw_row(const float *logits, long ids, const SamplingRow *row, Candidates *candidates) {
  int greedy = row->temperature == 0, limited = row->top_k < ids;
  Largest largest = find_largest(logits, row->forbidden, ids, greedy ? NULL : candidates->values);
  if (!largest.finite || largest.value == -INFINITY) return -1;
  if (greedy) return largest.id;
  long count = limited ? keep_top_k(candidates, ids, row->top_k) : ids;
  weigh_candidates(candidates, count, largest.value, row->temperature);
  if (row->min_p > 0) keep_min_p(candidates, count, row->min_p);
  if (row->top_p < 1) keep_top_p(candidates, count, row->top_p);
  long drawn = invert_cdf(candidates->weights, count, uniform(row->seed, row->index, row->choice));
  return limited ? candidates->ids[drawn] : drawn;
}

typedef struct {
  const float *logits; /* (R, V) */
  long count, ids;
  const SamplingRow *rows;
  char *workspace;
  int64_t *drawn; /* (R) */
  atomic_long taken;
} Draw;

/* Elements of each array of Candidates. */
INLINE long candidates_capacity(long ids) { return (ids + BLOCK - 1) / BLOCK * BLOCK + BLOCK; }

INLINE long candidates_bytes(long ids) {
  return candidates_capacity(ids) * (long)(2 * sizeof(double) + sizeof(float) + sizeof(int32_t));
}

static void draw_rows(void *arg, int thread) {
  Draw *draw = arg;
  long size = candidates_capacity(draw->ids);
  double *memory = (double *)(draw->workspace + thread * candidates_bytes(draw->ids));
  Candidates candidates = {.weights = memory, .left = memory + size, .values = (float *)(memory + 2 * size)};
  candidates.ids = (int32_t *)(candidates.values + size);
  for (long r = atomic_fetch_add(&draw->taken, 1); r < draw->count; r = atomic_fetch_add(&draw->taken, 1)) {
    draw->drawn[r] = draw_row(draw->logits + r * draw->ids, draw->ids, &draw->rows[r], &candidates);
  }
}
