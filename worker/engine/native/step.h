/* A step in progress: its activations in the workspace, and its threads, which share the work of each stage. */
#pragma once

#include <stdatomic.h>

#include "model.h"
#include "thread_pool.h"

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

/* Up to this many numbers, each thread normalizes or rounds all rows for itself: that takes less time than waiting for the
other threads. */
enum { OWN_NUMBERS = 8192 };
