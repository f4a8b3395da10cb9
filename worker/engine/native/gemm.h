/* Gemm: rows of activations times a packed matrix (see matrix.h).

The sum of an output runs over the depth in order, in one lane of a vector. The order of a sum depends neither on the
number of rows nor on the threads: the result of a row has the same bits in any batch. Weights that are not fp32 are
widened (and those of int8 scaled) before they are multiplied: the result has the bits of the fp32 matrix that they
represent. */
#pragma once

#include "matrix.h"

/* A panel is multiplied in pieces of this depth, which stay in a near cache while all rows are multiplied. Pieces are
shorter with few rows, because the next piece is fetched into the same cache at the same time. */
enum { PIECE = 768, SHORT_PIECE = 384 };
/* With few rows, up to this many panels are multiplied at once: one panel has too few sums for the processor to
overlap. */
enum { MAX_PANELS = 4 };
/* If all rows fit into one tile, it prefetches what lies this many bytes ahead. With a few tiles, each of them
prefetches its part of the next piece, so that memory is read all the time and not only during the first tile. With more
tiles the arithmetic takes so long that the reads of the first tile cost little. */
enum { BYTES_AHEAD = 4096, MAX_TILES_SHARING_PREFETCH = 6 };
/* With more tiles than this, a piece is widened to floats once for all tiles, and stored. Otherwise each tile widens
it again: in registers that costs less than a store and a load. */
enum { MAX_TILES_WIDENING = 2 };
/* Floats of a widened piece. */
enum { WIDENED = PIECE * COLUMNS };

/* Inputs that a tile takes at once, and the bytes of their weights in a panel. */
#define INPUTS(KIND) ((KIND) == BF16 ? 2 : 1)
#define STEP_BYTES(KIND) (COLUMNS * ((KIND) == INT8 ? 1 : (KIND) == FP16 ? 2 : 4))

/* With one row, prefetch into the nearest cache. With more rows that would evict data that is still in use. */
INLINE void prefetch(const int rows, const char *source) {
  if (rows == 1) {
    __builtin_prefetch(source, 0, 3);
  } else {
    __builtin_prefetch(source, 0, 2);
  }
}

/* A piece of a panel, and of those beside it. */
typedef struct {
  const char *weights;
  long panel_bytes; /* between two panels */
  long depth;
  long group;        /* as in Matrix; the depth if it is not int8 */
  const char *ahead; /* what is prefetched while the first step is multiplied */
  long ahead_bytes;  /* how far this advances with each step */
} Piece;

/* sums (rows, panels * COLUMNS) += x (rows, depth) times a piece of some panels. The first piece sets the sums. */
INLINE void multiply_tile(const int kind, const int rows, const int panels, const float *x, long stride,
                          const Piece *piece, float *sums, int first_piece) {
  const char *w = piece->weights, *ahead = piece->ahead;
  const int inputs = INPUTS(kind);
  const long panel = piece->panel_bytes, depth = piece->depth, group = piece->group, ahead_bytes = piece->ahead_bytes;
  vec acc[TILE_ROWS][2 * MAX_PANELS];
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int c = 0; c < 2 * panels; c++) {
      acc[r][c] = first_piece ? (vec){0} : load(sums + (r * 2 * panels + c) * LANES);
    }
  }
  for (long begin = 0; begin < depth; begin += group) {
    long end = depth - begin < group ? depth : begin + group;
    vec scale[2 * MAX_PANELS];
    if (kind == INT8) {
      UNROLL for (int c = 0; c < 2 * panels; c++) {
        scale[c] = load((const float *)(w + c / 2 * panel) + c % 2 * LANES);
      }
      w += COLUMNS * sizeof(float);
    }
    for (long k = begin; k < end; k += inputs) {
      UNROLL for (int p = 0; p < panels; p++) {
        prefetch(rows, ahead + p * panel);
        if (STEP_BYTES(kind) > 64 && ahead_bytes == STEP_BYTES(kind)) prefetch(rows, ahead + p * panel + 64);
      }
      UNROLL for (int i = 0; i < inputs; i++) {
        vec b[2 * MAX_PANELS];
        UNROLL for (int c = 0; c < 2 * panels; c++) {
          b[c] = load_weights(kind, w + c / 2 * panel, i, c % 2);
          if (kind == INT8) b[c] = scale[c] * b[c];
        }
        UNROLL for (int r = 0; r < rows; r++) {
          vec a = splat(x[r * stride + k + i]);
          UNROLL for (int c = 0; c < 2 * panels; c++) acc[r][c] += a * b[c];
        }
      }
      w += STEP_BYTES(kind);
      ahead += ahead_bytes;
    }
  }
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int c = 0; c < 2 * panels; c++) store(sums + (r * 2 * panels + c) * LANES, acc[r][c]);
  }
}

/* The sizes of tiles: rows and panels. */
#if TILE_ROWS > 8
#define LARGE_TILES(DO) DO(7, 1) DO(8, 1) DO(9, 1) DO(10, 1) DO(11, 1) DO(12, 1)
#elif TILE_ROWS > 6
#define LARGE_TILES(DO) DO(7, 1) DO(8, 1)
#else
#define LARGE_TILES(DO)
#endif
/* If there are more tiles than MAX_TILES_WIDENING. */
#define MANY_TILES(DO) DO(4, 1) DO(5, 1) DO(6, 1) LARGE_TILES(DO)
#define ALL_TILES(DO) DO(1, 1) DO(1, 2) DO(1, 3) DO(1, 4) DO(2, 1) DO(2, 2) DO(3, 1) MANY_TILES(DO)

/* Defines `multiply_tile` for a kind, and for a number of rows and panels that is only known when it is called. */
#define DEFINE_TILES(NAME, KIND, SIZES) \
  static void NAME(int rows, int panels, const float *x, long stride, const Piece *piece, float *sums, int first) { \
    enum { kind = KIND }; \
    switch (rows * 8 + panels) { SIZES(TILE_CASE) } \
  }
#define TILE_CASE(ROWS, PANELS) \
  case ROWS * 8 + PANELS: \
    multiply_tile(kind, ROWS, PANELS, x, stride, piece, sums, first); \
    break;
DEFINE_TILES(multiply_fp32, FP32, ALL_TILES)
DEFINE_TILES(multiply_bf16, BF16, ALL_TILES)
DEFINE_TILES(multiply_fp16, FP16, ALL_TILES)
DEFINE_TILES(multiply_int8, INT8, ALL_TILES)
/* A copy, because the compiler generates slower code for `multiply_fp32` if it has a second caller. */
DEFINE_TILES(multiply_widened, FP32, MANY_TILES)
#undef TILE_CASE
#undef DEFINE_TILES

/* to (depth, COLUMNS) = the weights of a piece of a panel. */
INLINE void widen_piece(const int kind, const Piece *piece, float *to) {
  const char *w = piece->weights;
  const int inputs = INPUTS(kind);
  for (long begin = 0; begin < piece->depth; begin += piece->group) {
    long end = piece->depth - begin < piece->group ? piece->depth : begin + piece->group;
    vec scale[2];
    if (kind == INT8) {
      UNROLL for (int half = 0; half < 2; half++) scale[half] = load((const float *)w + half * LANES);
      w += COLUMNS * sizeof(float);
    }
    for (long k = begin; k < end; k += inputs) {
      UNROLL for (int i = 0; i < 2 * inputs; i++) {
        vec b = load_weights(kind, w, i / 2, i % 2);
        store(to + k * COLUMNS + i * LANES, kind == INT8 ? scale[i % 2] * b : b);
      }
      w += STEP_BYTES(kind);
    }
  }
}

/* Panels that are multiplied at once with this number of rows. */
INLINE int panels_for(long rows) { return rows == 1 ? MAX_PANELS : rows == 2 ? 2 : 1; }

/* sums (rows, panels * COLUMNS) = x (rows, depth of m) times some panels, beginning at panel `first`. `widened` has room
for WIDENED floats. */
INLINE void multiply_panels_of(const int kind, long rows, int panels, const float *x, long stride, const Matrix *m,
                               long first, float *sums, float *widened) {
  long tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
  int widen = kind != FP32 && tiles > MAX_TILES_WIDENING;
  int share_prefetch = tiles > 1 && (widen || tiles <= MAX_TILES_SHARING_PREFETCH);
  long piece_depth = tiles <= MAX_TILES_SHARING_PREFETCH ? SHORT_PIECE : PIECE;
  if (kind == INT8) piece_depth = PIECE / m->group * m->group;
  Piece piece = {.panel_bytes = panel_bytes(m), .group = kind == INT8 ? m->group : m->depth};
  const char *panel = (const char *)m->panels + first * piece.panel_bytes;
  for (long k = 0; k < m->depth; k += piece_depth) {
    piece.depth = m->depth - k < piece_depth ? m->depth - k : piece_depth;
    piece.weights = panel + bytes_of_inputs(m, k);
    piece.ahead_bytes = share_prefetch ? STEP_BYTES(kind) / tiles : STEP_BYTES(kind);
    const char *next = panel + bytes_of_inputs(m, k + piece.depth);
    if (widen) {
      widen_piece(kind, &piece, widened);
      piece.weights = (const char *)widened;
      piece.ahead_bytes = STEP_BYTES(kind) / INPUTS(kind) / tiles;
    }
    long steps = piece.depth / (widen ? 1 : INPUTS(kind));
    for (long tile = 0; tile < tiles; tile++) {
      long begin = rows * tile / tiles, count = rows * (tile + 1) / tiles - begin;
      const float *input = x + begin * stride + k;
      float *to = sums + begin * panels * COLUMNS;
      piece.ahead = share_prefetch ? next + steps * tile * piece.ahead_bytes : piece.weights + BYTES_AHEAD;
      if (widen) {
        multiply_widened((int)count, panels, input, stride, &piece, to, k == 0);
      } else if (kind == FP32) {
        multiply_fp32((int)count, panels, input, stride, &piece, to, k == 0);
      } else if (kind == BF16) {
        multiply_bf16((int)count, panels, input, stride, &piece, to, k == 0);
      } else if (kind == FP16) {
        multiply_fp16((int)count, panels, input, stride, &piece, to, k == 0);
      } else {
        multiply_int8((int)count, panels, input, stride, &piece, to, k == 0);
      }
    }
  }
}

static void multiply_panels(long rows, int panels, const float *x, long stride, const Matrix *m, long first,
                            float *sums, float *widened) {
#define MULTIPLY(KIND) \
  case KIND: multiply_panels_of(KIND, rows, panels, x, stride, m, first, sums, widened); break;
  switch (m->kind) { MULTIPLY(FP32) MULTIPLY(BF16) MULTIPLY(FP16) MULTIPLY(INT8) }
#undef MULTIPLY
}
