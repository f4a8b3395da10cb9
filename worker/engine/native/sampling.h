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

/* The logits of a row, and which ids may be drawn. */
typedef struct {
  const float *logits;      /* (V) */
  const int32_t *forbidden; /* as in SamplingRow */
  long ids;
} Row;

/* Candidates for the draw, in the memory of one thread. Each array has room for all ids and one more block. */
typedef struct {
  float *values;   /* their logits */
  int32_t *ids;    /* their ids, in rising order */
  double *weights; /* their weights, filled up with zeros to a whole block */
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

/* ---- Logits. ---- */

/* The logits of the ids from i on, a multiple of LANES; -inf for ids that do not exist. */
INLINE vec load_logits(const Row *row, long i) {
  if (i + LANES <= row->ids) return load(row->logits + i);
  float last[LANES];
  for (int lane = 0; lane < LANES; lane++) last[lane] = i + lane < row->ids ? row->logits[i + lane] : -INFINITY;
  return load(last);
}

/* The same; -inf also for ids that may not be drawn. */
INLINE vec load_allowed(const Row *row, long i) {
  vec x = load_logits(row, i);
  if (row->forbidden == NULL) return x;
  if (i + LANES <= row->ids) return choose(*(const ivec *)(row->forbidden + i), splat(-INFINITY), x);
  ivec forbidden = {0};
  for (long j = i; j < row->ids; j++) forbidden[j - i] = row->forbidden[j];
  return choose(forbidden, splat(-INFINITY), x);
}

typedef struct {
  int finite; /* whether all logits are finite, those of forbidden ids included */
  float value;
  int32_t id; /* the lowest one, if several logits are equally large */
} Largest;

/* The largest logit of the ids that may be drawn. */
static Largest find_largest(const Row *row) {
  vec most = splat(-INFINITY);
  ivec ids = {0}, not_finite = {0}; /* `ids`: of lane 0 in the vector that had the largest */
  for (long i = 0; i < row->ids; i += LANES) {
    vec x = load_logits(row, i);
    ivec wrong = x - x != 0;
    if (i + LANES > row->ids) {
      for (long lane = row->ids - i; lane < LANES; lane++) wrong[lane] = 0;
    }
    not_finite |= wrong;
    x = load_allowed(row, i);
    ivec better = x > most;
    most = choose(better, x, most);
    ids = (better & (int32_t)i) | (~better & ids);
  }
  Largest largest = {!any(not_finite), -INFINITY, 0};
  for (int lane = 0; lane < LANES; lane++) {
    int32_t id = ids[lane] + lane;
    if (most[lane] > largest.value || (most[lane] == largest.value && id < largest.id)) {
      largest.value = most[lane];
      largest.id = id;
    }
  }
  return largest;
}

/* Append the logits of the ids from i on where the mask is set. Returns the number of candidates. */
INLINE long append(Candidates *candidates, long count, vec x, long i, ivec mask) {
#if LANES == 16
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __mmask16 chosen = _mm512_movepi32_mask((__m512i)mask);
  __m512i ids = _mm512_add_epi32(lanes, _mm512_set1_epi32((int)i));
  store(candidates->values + count, (vec)_mm512_maskz_compress_ps(chosen, (__m512)x));
  _mm512_storeu_si512(candidates->ids + count, _mm512_maskz_compress_epi32(chosen, ids));
  return count + __builtin_popcount(chosen);
#else
  float lanes[LANES];
  store(lanes, x);
  for (int lane = 0; lane < LANES; lane++) {
    candidates->values[count] = lanes[lane];
    candidates->ids[count] = (int32_t)i + lane;
    count -= mask[lane]; /* which is 0 or -1 */
  }
  return count;
#endif
}

/* ---- Weights. The weight of the largest logit is 1. ---- */

typedef struct {
  double largest, temperature;
} Scale;

INLINE dvec weights_of(const float *values, Scale scale) {
  return exponential_of_doubles((load_widened(values) - scale.largest) / scale.temperature);
}

/* A number that no logit is below whose weight is at least `weight`. */
INLINE float lowest_logit(double weight, Scale scale) {
  double size = 1 + fabs(scale.largest) + scale.temperature; /* rounding is far less than 1e-9 of it */
  return nextafterf((float)(scale.largest + scale.temperature * log(weight) - 1e-9 * size), -INFINITY);
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

/* Compute the weights of a block of ids, which begins at id i. Returns their sum. */
INLINE double weigh_block(const Row *row, long i, Scale scale, double *weights) {
  for (long j = 0; j < BLOCK; j += LANES) {
    float values[LANES];
    store(values, i + j < row->ids ? load_allowed(row, i + j) : splat(-INFINITY));
    store_doubles(weights + j, weights_of(values, scale));
    store_doubles(weights + j + DOUBLES, weights_of(values + DOUBLES, scale));
  }
  return block_sum(weights);
}

/* sums = the sum of the weights of each block of ids. Returns the sum of all. */
static double weigh_blocks(const Row *row, Scale scale, double *sums) {
  double total = 0, weights[BLOCK];
  for (long i = 0; i < row->ids; i += BLOCK) total += sums[i / BLOCK] = weigh_block(row, i, scale, weights);
  return total;
}

/* Compute the weights of the candidates. */
static void weigh_candidates(Candidates *candidates, long count, Scale scale) {
  long i = 0;
  for (; i < count; i += DOUBLES) store_doubles(candidates->weights + i, weights_of(candidates->values + i, scale));
  for (long j = count; j < i; j++) candidates->weights[j] = 0;
  for (; i % BLOCK; i += DOUBLES) store_doubles(candidates->weights + i, (dvec){0});
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

/* Make the k highest logits the candidates, or all that are allowed if there are fewer. Returns their number. When more
than `max_collected` have been collected, only the k highest of them are kept, and the lowest of these becomes the
threshold that later logits must exceed. */
static long keep_top_k(const Row *row, Candidates *candidates, long k) {
  long max_collected = 2 * k > MIN_COLLECTED ? 2 * k : MIN_COLLECTED, count = 0;
  float threshold = -INFINITY;
  for (long i = 0; i < row->ids; i += LANES) {
    vec x = load_allowed(row, i);
    ivec above = x > threshold; /* an equal logit has a higher id than k others, so it is not needed */
    if (!any(above)) continue;
    count = append(candidates, count, x, i, above);
    if (count > max_collected) {
      count = keep_highest(candidates, count, k);
      threshold = candidates->values[0];
      for (long j = 1; j < count; j++) {
        float value = candidates->values[j];
        threshold = value < threshold ? value : threshold;
      }
    }
  }
  return keep_highest(candidates, count, k);
}

/* Make the logits that are at least `lowest` the candidates. Returns their number. */
static long keep_above(const Row *row, Candidates *candidates, float lowest) {
  long count = 0;
  for (long i = 0; i < row->ids; i += LANES) {
    vec x = load_allowed(row, i);
    ivec enough = x >= lowest;
    if (any(enough)) count = append(candidates, count, x, i, enough);
  }
  return count;
}

/* Keep the candidates whose weights are at least min_p times that of the largest logit; the weights of the others become
0. */
static void keep_min_p(Candidates *candidates, long count, double min_p) {
  for (long i = 0; i < count; i += DOUBLES) {
    dvec w = load_doubles(candidates->weights + i);
    store_doubles(candidates->weights + i, where(w >= min_p, w));
  }
}

/* The largest weight such that all weights below it, of `count`, add up to at most half of what may be left out if the
others must reach the fraction p of the total. So none of them is needed. */
INLINE double least_needed(double p, double total, long count) { return (1 - p) * total / (2 * (double)count); }

/* Keep the fewest candidates whose weights together reach the fraction p of `total`; the weights of the others become
0. */
static void keep_top_p(Candidates *candidates, long count, double p, double total) {
  double least = least_needed(p, total, count);
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

/* The index in a block of weights at which the running sum, which is `reached` before the block, first exceeds `target`.
If rounding keeps it from that: the last one with a weight. */
INLINE long draw_in_block(const double *weights, double reached, double target) {
  long drawn = 0;
  for (long i = 0; i < BLOCK && reached <= target; i++) {
    if (weights[i] > 0) {
      drawn = i;
      reached += weights[i];
    }
  }
  return drawn;
}

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
  return i + draw_in_block(weights + i, reached, target);
}

/* The same for all ids of a row, whose weights are computed again where they are needed. `sums` are those of
`weigh_blocks`. */
static long draw_from_blocks(const Row *row, Scale scale, const double *sums, double total, double fraction) {
  double target = fraction * total, reached = 0, weights[BLOCK];
  long i = 0;
  for (; i + BLOCK < row->ids; i += BLOCK) {
    double next = reached + sums[i / BLOCK];
    if (next > target) break;
    reached = next;
  }
  weigh_block(row, i, scale, weights);
  return i + draw_in_block(weights, reached, target);
}

/* Draw an id from the logits of a row. Returns -1 if they are not all finite, or if no id may be drawn. */
static int64_t draw_row(const float *logits, long ids, const SamplingRow *sampling, Candidates *candidates) {
  const Row row = {logits, sampling->forbidden, ids};
  Largest largest = find_largest(&row);
  if (!largest.finite || largest.value == -INFINITY) return -1;
  if (sampling->temperature == 0) return largest.id;
  Scale scale = {largest.value, sampling->temperature};
  double fraction = uniform(sampling->seed, sampling->index, sampling->choice);
  double total = 0; /* of the weights from which top-p chooses; 0: not known yet */
  long count;
  if (sampling->top_k < ids) {
    count = keep_top_k(&row, candidates, sampling->top_k);
  } else if (sampling->min_p > 0) {
    count = keep_above(&row, candidates, lowest_logit(sampling->min_p, scale));
  } else {
    total = weigh_blocks(&row, scale, candidates->weights);
    if (sampling->top_p >= 1) return draw_from_blocks(&row, scale, candidates->weights, total, fraction);
    count = keep_above(&row, candidates, lowest_logit(least_needed(sampling->top_p, total, ids), scale));
  }
  weigh_candidates(candidates, count, scale);
  if (sampling->min_p > 0) keep_min_p(candidates, count, sampling->min_p);
  if (total == 0) total = total_of(candidates->weights, count);
  if (sampling->top_p < 1) keep_top_p(candidates, count, sampling->top_p, total);
  return candidates->ids[invert_cdf(candidates->weights, count, fraction)];
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
