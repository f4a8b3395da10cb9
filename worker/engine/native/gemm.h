/* Gemm: rows of activations times a packed matrix.

A matrix (outputs, depth) is stored in panels of COLUMNS outputs, in the order panel, depth, output. So a gemm reads it
once, from the first byte to the last, and each lane of a vector holds one output, whose sum runs over the depth in
order. The order of a sum depends neither on the number of rows nor on the threads: the result of a row has the same
bits in any batch. */
#pragma once

#include "vector.h"

enum { COLUMNS = 2 * LANES };
/* A panel is multiplied in pieces of this depth, which stay in a near cache while all rows are multiplied. Pieces are
shorter with few rows, because the next piece is fetched into the same cache at the same time. */
enum { PIECE = 768, SHORT_PIECE = 384 };
/* With few rows, up to this many panels are multiplied at once: one panel has too few sums for the processor to
overlap. */
enum { MAX_PANELS = 4 };
/* If all rows fit into one tile, it prefetches what lies this many floats ahead. With a few tiles, each of them
prefetches its part of the next piece, so that memory is read all the time and not only during the first tile. With more
tiles the arithmetic takes so long that the reads of the first tile cost little. */
enum { FLOATS_AHEAD = 1024, MAX_TILES_SHARING_PREFETCH = 6 };

typedef struct {
  long outputs, depth;
  float *panels;
  long group; /* 0: fp32. Else int8 (see int8.h): inputs that share a scale, at most PIECE */
} Matrix;

INLINE long panel_count(const Matrix *m) { return (m->outputs + COLUMNS - 1) / COLUMNS; }

/* With one row, prefetch into the nearest cache. With more rows that would evict data that is still in use. */
INLINE void prefetch(const int rows, const float *source) {
  if (rows == 1) {
    __builtin_prefetch(source, 0, 3);
  } else {
    __builtin_prefetch(source, 0, 2);
  }
}

/* sums (rows, panels * COLUMNS) += x (rows, depth) times a piece of some panels. The first piece sets the sums. */
INLINE void gemm_tile(const int rows, const int panels, const float *x, long stride, const float *w, long panel_size,
                      long depth, const float *ahead, long ahead_step, float *sums, int first_piece) {
  vec acc[TILE_ROWS][2 * MAX_PANELS];
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int c = 0; c < 2 * panels; c++) {
      acc[r][c] = first_piece ? (vec){0} : load(sums + (r * 2 * panels + c) * LANES);
    }
  }
  for (long k = 0; k < depth; k++) {
    vec b[2 * MAX_PANELS];
    UNROLL for (int p = 0; p < panels; p++) {
      const float *source = w + p * panel_size + k * COLUMNS;
      const float *soon = ahead + p * panel_size + k * ahead_step;
      prefetch(rows, soon);
      if (COLUMNS * 4 > 64 && ahead_step == COLUMNS) prefetch(rows, soon + LANES);
      b[2 * p] = load(source);
      b[2 * p + 1] = load(source + LANES);
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

static void gemm_tiles(int rows, int panels, const float *x, long stride, const float *w, long panel_size, long depth,
                       const float *ahead, long ahead_step, float *sums, int first_piece) {
#define CASE(R, P) \
  case R * 8 + P: \
    gemm_tile(R, P, x, stride, w, panel_size, depth, ahead, ahead_step, sums, first_piece); \
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

/* Panels that are multiplied at once with this number of rows. */
INLINE int panels_for(long rows) { return rows == 1 ? MAX_PANELS : rows == 2 ? 2 : 1; }

/* sums (rows, panels * COLUMNS) = x (rows, depth of m) times some panels, beginning at panel `first`. */
static void multiply_panels(long rows, int panels, const float *x, long stride, const Matrix *m, long first,
                            float *sums) {
  long blocks = (rows + TILE_ROWS - 1) / TILE_ROWS, panel_size = m->depth * COLUMNS;
  const float *w = m->panels + first * panel_size;
  int share_prefetch = blocks > 1 && blocks <= MAX_TILES_SHARING_PREFETCH;
  long piece_depth = blocks <= MAX_TILES_SHARING_PREFETCH ? SHORT_PIECE : PIECE;
  for (long k = 0; k < m->depth; k += piece_depth) {
    long depth = m->depth - k < piece_depth ? m->depth - k : piece_depth;
    for (long block = 0; block < blocks; block++) {
      long begin = rows * block / blocks, end = rows * (block + 1) / blocks;
      const float *piece = w + k * COLUMNS;
      const float *ahead = piece + (share_prefetch ? (depth + depth * block / blocks) * COLUMNS : FLOATS_AHEAD);
      gemm_tiles((int)(end - begin), panels, x + begin * stride + k, stride, piece, panel_size, depth, ahead,
                 share_prefetch ? COLUMNS / blocks : COLUMNS, sums + begin * panels * COLUMNS, k == 0);
    }
  }
}

/* Copy rows (count, depth of m) of a plain matrix, fp32 or bf16, into the panels, as the outputs from `at` on. */
static void pack_floats(const Matrix *m, long at, const void *source, long count, int bf16) {
  enum { STEP = 16 };
  for (long k = 0; k < m->depth; k += STEP) {
    long end = m->depth - k < STEP ? m->depth : k + STEP;
    for (long i = 0; i < count; i++) {
      long output = at + i;
      float *to = m->panels + (output / COLUMNS * m->depth) * COLUMNS + output % COLUMNS;
      if (bf16) {
        const uint16_t *row = (const uint16_t *)source + i * m->depth;
        for (long j = k; j < end; j++) to[j * COLUMNS] = widen(row[j]);
      } else {
        const float *row = (const float *)source + i * m->depth;
        for (long j = k; j < end; j++) to[j * COLUMNS] = row[j];
      }
    }
  }
}
