/* Drawing the next ids. worker/engine/sampling/torch_sampler.py has the rules; this draws the same ids without sorting: what top-k and
top-p keep lies above one value, which is found by throwing away, again and again, the part that it is not in.

A row's draw depends neither on the other rows nor on the threads. Shapes: R rows, V ids. */
#pragma once

#include <limits.h>
#include <math.h>
#include <string.h>

#include "doubles.h"
#include "thread_pool.h"

/* What a row's request says; worker/engine/native/library.py has the twin. */
typedef struct {
  double temperature; /* 0: the largest logit */
  double top_p;       /* 1: of all */
  long top_k;         /* V: of all */
  uint64_t seed, index;
  const int32_t *forbidden; /* (V), every bit set where an id may not be drawn; NULL: all may */
} Row;

/* Weights are summed in blocks of so many, and lie in whole ones, with zeros behind the last. */
enum { BLOCK = 64 };
/* Candidates of a small top-k that are collected before the first selection. */
enum { CANDIDATES_LEAST = 256 };

/* A thread's memory: room for the ids and one block more. */
typedef struct {
  float *values;   /* logits of the candidates; -inf behind the last up to a whole vector */
  int32_t *ids;    /* of the candidates, rising */
  double *weights; /* of the candidates */
  double *left;    /* what a selection has not thrown away yet */
} Room;

/* Where a selection ends: it keeps what lies above `value`, and of its equals the first `ties`. */
typedef struct {
  double value;
  long ties;
} Cut;

/* Philox4x32-10; see worker/engine/sampling/philox.py. A multiple of 2^-53 in [0, 1). */
static double uniform(uint64_t seed, uint64_t index) {
  uint32_t c[4] = {(uint32_t)index, (uint32_t)(index >> 32), 0, 0};
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
  int finite; /* whether all logits are, also those of forbidden ids */
  float value;
  int32_t id; /* of equals the first */
} Largest;

/* What a pass over the logits has seen, lane by lane. */
typedef struct {
  vec most;
  ivec at; /* index of the vector's first id */
  ivec broken;
} Seen;

INLINE vec see(Seen *seen, vec x, ivec forbidden, long i) {
  seen->broken |= x - x != 0;
  x = choose(forbidden, splat(-INFINITY), x);
  ivec better = x > seen->most;
  seen->most = choose(better, x, seen->most);
  seen->at = (better & (int32_t)i) | (~better & seen->at);
  return x;
}

/* The largest of a row's logits that are allowed, which are copied unless `to` is NULL. */
INLINE Largest look_for_largest(const float *logits, const int32_t *forbidden, long ids, float *to) {
  Seen seen = {splat(-INFINITY), {0}, {0}};
  long i = 0;
  for (; i + LANES <= ids; i += LANES) {
    vec x = see(&seen, load(logits + i), forbidden ? *(const ivec *)(forbidden + i) : (ivec){0}, i);
    if (to) store(to + i, x);
  }
  if (i < ids) {
    float rest[LANES] = {0};
    int32_t barred[LANES];
    memset(barred, -1, sizeof(barred));
    memcpy(rest, logits + i, (ids - i) * sizeof(float));
    for (long j = i; j < ids; j++) barred[j - i] = forbidden ? forbidden[j] : 0;
    vec x = see(&seen, load(rest), *(const ivec *)barred, i);
    if (to) store(to + i, x);
  }
  Largest largest = {1, -INFINITY, 0};
  for (int lane = 0; lane < LANES; lane++) {
    int32_t id = seen.at[lane] + lane;
    if (seen.broken[lane]) largest.finite = 0;
    if (seen.most[lane] > largest.value || (seen.most[lane] == largest.value && id < largest.id)) {
      largest.value = seen.most[lane];
      largest.id = id;
    }
  }
  return largest;
}

/* ---- Selections. ---- */

INLINE double median(double a, double b, double c) { return fmax(fmin(a, b), fmin(fmax(a, b), c)); }

/* The cut that keeps the fewest, at least one, so that their masses together reach `target`. The mass of a value is
itself, or 1 where they are counted. `left` has `count` values in any order, and loses them. */
INLINE Cut cut(double *left, long count, double target, const int counted) {
  double reached = 0;           /* by what lies above all that is left */
  Cut enough = {-INFINITY, 0}; /* the last cut that was seen to reach it; rounding may say that a smaller one does not */
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

/* Keep the k highest of the `count` first candidates, at most all. Returns how many there are then. */
static long keep_highest(Room *room, long count, long k) {
  if (count <= k) return count;
  for (long i = 0; i < count; i++) room->left[i] = room->values[i];
  Cut end = cut(room->left, count, (double)k, 1);
  long kept = 0;
  for (long i = 0; i < count; i++) {
    float value = room->values[i];
    room->values[kept] = value;
    room->ids[kept] = room->ids[i];
    kept += value > end.value || (value == end.value && end.ties-- > 0);
  }
  return kept;
}

/* Make the k highest of the logits the candidates, fewer where fewer are allowed. Returns how many. They are collected in
place, which stays behind the reading: some more than k, then the highest k of these set the value to be over. */
static long keep_top_k(Room *room, long ids, long k) {
  long most = 2 * k > CANDIDATES_LEAST ? 2 * k : CANDIDATES_LEAST, count = 0;
  float over = -INFINITY;
  for (long i = 0; i < ids; i += LANES) {
    vec x = load(room->values + i);
    if (!any(x > over)) continue;
    float some[LANES];
    store(some, x);
    for (int lane = 0; lane < LANES; lane++) {
      room->values[count] = some[lane];
      room->ids[count] = (int32_t)i + lane;
      count += some[lane] > over; /* an equal one has a higher id than k others */
    }
    if (count > most) {
      count = keep_highest(room, count, k);
      over = room->values[0];
      for (long j = 1; j < count; j++) over = room->values[j] < over ? room->values[j] : over;
    }
  }
  count = keep_highest(room, count, k);
  for (long i = count; i % LANES; i++) room->values[i] = -INFINITY;
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

/* Weights of the candidates, of which the largest logit's is 1. */
static void weigh_candidates(Room *room, long count, double largest, double temperature) {
  long i = 0;
  for (; i < count; i += DOUBLES) {
    dvec score = (load_widened(room->values + i) - largest) / temperature;
    store_doubles(room->weights + i, exponential_of_doubles(score));
  }
  for (; i % BLOCK; i += DOUBLES) store_doubles(room->weights + i, (dvec){0});
}

/* Weights outside of the fewest whose share of the whole reaches p become 0. */
static void keep_top_p(Room *room, long count, double p) {
  double total = total_of(room->weights, count);
  /* All that are lighter than this have together half of what may be missing, so none of them is needed. */
  double least = (1 - p) * total / (2 * (double)count);
  long heavy = 0;
  for (long i = 0; i < count; i += DOUBLES) {
    dvec w = load_doubles(room->weights + i);
    if (!any_double(w >= least)) continue;
    for (int lane = 0; lane < DOUBLES; lane++) {
      room->left[heavy] = w[lane];
      heavy += w[lane] >= least;
    }
  }
  Cut end = cut(room->left, heavy, p * total, 0);
  for (long i = 0; i < count; i += DOUBLES) {
    dvec w = load_doubles(room->weights + i);
    store_doubles(room->weights + i, where(w >= end.value, w));
    if (!any_double(w == end.value)) continue;
    for (long j = i; j < i + DOUBLES; j++) {
      if (room->weights[j] == end.value && end.ties-- <= 0) room->weights[j] = 0;
    }
  }
}

/* ---- The draw. ---- */

/* The candidate at which the running sum of the weights first exceeds that share of the whole, 0 <= share < 1. The
product rounds to less than the whole, which is at least 1: the largest logit's weight. */
static long invert_cdf(const double *weights, long count, double share) {
  double target = share * total_of(weights, count), reached = 0;
  long i = 0;
  for (; i + BLOCK < count; i += BLOCK) { /* the last block exceeds it if no other does: its sum is the total */
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
  return drawn; /* where rounding kept this order's sum from exceeding it, the last with weight */
}

/* The id that is drawn from logits (V), -1 if they are not all finite, or no id is allowed. */
static int64_t draw_row(const float *logits, long ids, const Row *row, Room *room) {
  int greedy = row->temperature == 0, some = row->top_k < ids;
  Largest largest = look_for_largest(logits, row->forbidden, ids, greedy ? NULL : room->values);
  if (!largest.finite || largest.value == -INFINITY) return -1;
  if (greedy) return largest.id;
  long count = some ? keep_top_k(room, ids, row->top_k) : ids;
  weigh_candidates(room, count, largest.value, row->temperature);
  if (row->top_p < 1) keep_top_p(room, count, row->top_p);
  long drawn = invert_cdf(room->weights, count, uniform(row->seed, row->index));
  return some ? room->ids[drawn] : drawn;
}

typedef struct {
  const float *logits; /* (R, V) */
  long count, ids;
  const Row *rows;
  char *workspace;
  int64_t *drawn; /* (R) */
  atomic_long claimed;
} Draw;

/* Values of each kind in a thread's memory. */
INLINE long room_size(long ids) { return (ids + BLOCK - 1) / BLOCK * BLOCK + BLOCK; }

INLINE long room_bytes(long ids) {
  return room_size(ids) * (long)(2 * sizeof(double) + sizeof(float) + sizeof(int32_t));
}

static void draw_rows(void *arg, int thread) {
  Draw *draw = arg;
  long size = room_size(draw->ids);
  double *memory = (double *)(draw->workspace + thread * room_bytes(draw->ids));
  Room room = {.weights = memory, .left = memory + size, .values = (float *)(memory + 2 * size)};
  room.ids = (int32_t *)(room.values + size);
  for (long r = atomic_fetch_add(&draw->claimed, 1); r < draw->count; r = atomic_fetch_add(&draw->claimed, 1)) {
    draw->drawn[r] = draw_row(draw->logits + r * draw->ids, draw->ids, &draw->rows[r], &room);
  }
}
