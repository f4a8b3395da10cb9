/* Products with packed matrices.

A matrix (rows of outputs, depth) lies in panels of COLUMNS outputs: panel, depth, output. So a product reads it once,
in a row, and each lane of a vector is one output, whose sum runs over the depth in order. That order depends neither on
the number of rows that are multiplied together nor on the threads: a row's result is the same bits in any batch. */
#pragma once

#include "vector.h"

enum { COLUMNS = 2 * LANES };
/* Depth of a piece of a panel that stays in a near cache while all rows are multiplied with it: with many rows, and with
so few that the next piece has to come meanwhile. */
enum { PIECE = 768, SHORT_PIECE = 384 };
/* Panels that few rows are multiplied with at once: one alone has too few sums for the processor to overlap. */
enum { PANELS_MOST = 4 };
/* Floats that are fetched ahead where all rows fit into one tile. With some more tiles, each fetches its part of the next
piece, so that memory is read all the time and not only by the first one. With many the arithmetic takes so long that
the first one's reading is lost in it. */
enum { AHEAD = 1024, TILES_SHARE = 6 };

typedef struct {
  long outputs, depth;
  float *panels;
  long group; /* 0, or the matrix is one of int8.h: inputs that share a scale, at most PIECE */
} Matrix;

INLINE long panel_count(const Matrix *m) { return (m->outputs + COLUMNS - 1) / COLUMNS; }

/* What one row multiplies comes into the nearest cache. With more rows it would push out what is used until then. */
INLINE void prefetch(const int rows, const float *from) {
  if (rows == 1) {
    __builtin_prefetch(from, 0, 3);
  } else {
    __builtin_prefetch(from, 0, 2);
  }
}

/* Sums (rows, panels * COLUMNS) += x (rows, depth) times a piece of some panels. */
INLINE void tile(const int rows, const int panels, const float *x, long stride, const float *w, long panel_size,
                 long depth, const float *ahead, long ahead_step, float *sums, int begins) {
  vec acc[TILE_ROWS][2 * PANELS_MOST];
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int c = 0; c < 2 * panels; c++) {
      acc[r][c] = begins ? (vec){0} : load(sums + (r * 2 * panels + c) * LANES);
    }
  }
  for (long k = 0; k < depth; k++) {
    vec b[2 * PANELS_MOST];
    UNROLL for (int p = 0; p < panels; p++) {
      const float *from = w + p * panel_size + k * COLUMNS;
      const float *soon = ahead + p * panel_size + k * ahead_step;
      prefetch(rows, soon);
      if (COLUMNS * 4 > 64 && ahead_step == COLUMNS) prefetch(rows, soon + LANES);
      b[2 * p] = load(from);
      b[2 * p + 1] = load(from + LANES);
    }
    UNROLL for (int r = 0; r < rows; r++) {
      vec a = splat(x[r * stride + k]);
      UNROLL for (int c = 0; c < 2 * panels; c++) acc[r][c] += a * b[c];
    }
  }
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int c = 0; c < 2 * panels; c++) store(sums + (r * 2 * panels + c) * LANES, acc[r][c]);
  }
}

static void tiles(int rows, int panels, const float *x, long stride, const float *w, long panel_size, long depth,
                  const float *ahead, long ahead_step, float *sums, int begins) {
#define CASE(R, P) \
  case R * 8 + P: \
    tile(R, P, x, stride, w, panel_size, depth, ahead, ahead_step, sums, begins); \
    break;
  switch (rows * 8 + panels) {
    CASE(1, 1) CASE(1, 2) CASE(1, 3) CASE(1, 4)
    CASE(2, 1) CASE(2, 2)
    CASE(3, 1) CASE(4, 1) CASE(5, 1) CASE(6, 1)
#if TILE_ROWS > 6
    CASE(7, 1) CASE(8, 1)
#endif
#if TILE_ROWS > 8
    CASE(9, 1) CASE(10, 1) CASE(11, 1) CASE(12, 1)
#endif
  }
#undef CASE
}

/* Panels that are multiplied at once with so many rows. */
INLINE int panels_for(long rows) { return rows == 1 ? PANELS_MOST : rows == 2 ? 2 : 1; }

/* sums (rows, panels * COLUMNS) = x (rows, depth of m) times the panels from `first` on. */
static void multiply(long rows, int panels, const float *x, long stride, const Matrix *m, long first, float *sums) {
  long blocks = (rows + TILE_ROWS - 1) / TILE_ROWS, panel_size = m->depth * COLUMNS;
  const float *w = m->panels + first * panel_size;
  int shared = blocks > 1 && blocks <= TILES_SHARE;
  long piece_depth = blocks <= TILES_SHARE ? SHORT_PIECE : PIECE;
  for (long k = 0; k < m->depth; k += piece_depth) {
    long depth = m->depth - k < piece_depth ? m->depth - k : piece_depth;
    for (long block = 0; block < blocks; block++) {
      long begin = rows * block / blocks, end = rows * (block + 1) / blocks;
      const float *piece = w + k * COLUMNS;
      const float *ahead = piece + (shared ? (depth + depth * block / blocks) * COLUMNS : AHEAD);
      tiles((int)(end - begin), panels, x + begin * stride + k, stride, piece, panel_size, depth, ahead,
            shared ? COLUMNS / blocks : COLUMNS, sums + begin * panels * COLUMNS, k == 0);
    }
  }
}

/* Put rows (count, depth of m) of a plain matrix in the panels, from output `at` on. */
static void pack(const Matrix *m, long at, const void *from, long count, int bf16) {
  enum { STEP = 16 };
  for (long k = 0; k < m->depth; k += STEP) {
    long end = m->depth - k < STEP ? m->depth : k + STEP;
    for (long i = 0; i < count; i++) {
      long output = at + i;
      float *to = m->panels + (output / COLUMNS * m->depth) * COLUMNS + output % COLUMNS;
      if (bf16) {
        const uint16_t *row = (const uint16_t *)from + i * m->depth;
        for (long j = k; j < end; j++) to[j * COLUMNS] = widen(row[j]);
      } else {
        const float *row = (const float *)from + i * m->depth;
        for (long j = k; j < end; j++) to[j * COLUMNS] = row[j];
      }
    }
  }
}
