/* Gemm: rows of activations times a packed matrix (see matrix.h).

The sum of an output runs over the depth in order, in one lane of a vector. The order of a sum depends neither on the
number of rows nor on the threads: the result of a row has the same bits in any batch. Weights that are not fp32 are
widened (and those of int8 scaled) before they are multiplied: the result has the bits of the fp32 matrix that they
represent. Only those of the kinds BF16_DOT and INT8_DOT are multiplied by rounded activations; see dot.h. */
#pragma once

#include "dot.h"

/* A panel is multiplied in pieces of this depth, which stay in a near cache while all rows are multiplied. Pieces are
shorter with few rows, because the next piece is fetched into the same cache at the same time. */
enum { PIECE = 768, SHORT_PIECE = 384 };
/* With few rows, up to this many panels are multiplied at once: one panel has too few sums for the processor to
overlap. */
enum { MAX_PANELS = 4 };
/* If all rows fit into one tile, it prefetches what lies this many bytes ahead. With a few tiles, each of them
prefetches its part of the next piece, so that memory is read all the time and not only during the first tile. With more
tiles the arithmetic takes so long that the reads of the first tile cost little. */
INLINE long bytes_ahead(const int kind, long rows) { return rows > 2 ? 8192 : kind == INT8 ? 4096 : 2048; }
enum { MAX_TILES_SHARING_PREFETCH = 6 };
/* With more tiles than this, a piece of some kinds is widened to floats once for all tiles, and stored. Otherwise each
tile widens it again: in registers that costs less than a store and a load. */
enum { MAX_TILES_WIDENING = 2 };
/* With AVX2 and AVX-512, widening 16 bits takes so few instructions that it is never worth a store. */
#define IS_STORED_WIDENED(KIND) ((KIND) == INT8 || (LANES == 4 && (KIND) != FP32 && (KIND) != INT8_DOT))
/* Floats of a widened piece. */
enum { WIDENED = PIECE * COLUMNS };

/* Whether weights of a kind are multiplied in pairs. A pair then counts as one input. */
#define IN_PAIRS(KIND) ((KIND) == BF16_DOT && DOT_BF16)
/* Inputs that a tile takes at once, and the bytes of their weights in a panel. */
#define INPUTS(KIND) ((KIND) == INT8_DOT ? 4 : PAIRS && ((KIND) == BF16 || ((KIND) == BF16_DOT && !DOT_BF16)) ? 2 : 1)
#define STEP_BYTES(KIND) \
  (COLUMNS * ((KIND) == INT8 ? 1 : (KIND) == FP16 || (((KIND) == BF16 || (KIND) == BF16_DOT) && !PAIRS) ? 2 : 4))

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
  long begin, depth; /* its inputs */
  long group;        /* as in Matrix; the depth if it is not int8 */
  long groups;       /* INT8_DOT: of the whole depth */
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
          b[c] = load_weights(IN_PAIRS(kind) ? FP32 : kind, w + c / 2 * panel, i, c % 2);
          if (kind == INT8) b[c] = scale[c] * b[c];
        }
        UNROLL for (int r = 0; r < rows; r++) {
          const float *from = x + r * stride + k + i;
          vec a = IN_PAIRS(kind) ? (vec)splat_bits(from) : splat(*from);
          UNROLL for (int c = 0; c < 2 * panels; c++) {
            acc[r][c] = IN_PAIRS(kind) ? add_pair(acc[r][c], a, b[c]) : acc[r][c] + a * b[c];
          }
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

/* The same for INT8_DOT. The rows of x are those of `round_row`. */
INLINE void multiply_int8_dot_tile(const int rows, const int panels, const float *x, long stride, const Piece *piece,
                                   float *sums, int first_piece) {
  const char *w = piece->weights, *ahead = piece->ahead;
  const long panel = piece->panel_bytes, depth = piece->depth, group = piece->group;
  const float *scales = x + piece->begin / group;
  const char *codes = (const char *)(x + 2 * piece->groups) + piece->begin / 4 * CODES_BYTES;
  if (first_piece) memset(sums, 0, rows * panels * COLUMNS * sizeof(float));
  for (long begin = 0; begin < depth; begin += group) {
    long end = depth - begin < group ? depth : begin + group;
    const char *w_scales = w;
    ivec acc[TILE_ROWS][2 * MAX_PANELS];
    UNROLL for (int r = 0; r < rows; r++) {
      UNROLL for (int c = 0; c < 2 * panels; c++) acc[r][c] = splat_bits(scales + piece->groups + r * stride);
    }
    w += COLUMNS * sizeof(float);
    for (long k = begin; k < end; k += 4) {
      ivec b[2 * MAX_PANELS];
      UNROLL for (int p = 0; p < panels; p++) {
        prefetch(rows, ahead + p * panel);
        if (STEP_BYTES(INT8_DOT) > 64 && piece->ahead_bytes == STEP_BYTES(INT8_DOT)) {
          prefetch(rows, ahead + p * panel + 64);
        }
        UNROLL for (int half = 0; half < 2; half++) {
          b[2 * p + half] = *(const ivec *)(w + p * panel + half * LANES * 4);
        }
      }
      UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < 2 * panels; c++) {
          acc[r][c] = add_four(acc[r][c], b[c], codes + r * stride * sizeof(float));
        }
      }
      codes += CODES_BYTES;
      w += STEP_BYTES(INT8_DOT);
      ahead += piece->ahead_bytes;
    }
    UNROLL for (int c = 0; c < 2 * panels; c++) {
      vec scale = load((const float *)(w_scales + c / 2 * panel) + c % 2 * LANES);
      UNROLL for (int r = 0; r < rows; r++) {
        float *to = sums + (r * 2 * panels + c) * LANES;
        store(to, load(to) + __builtin_convertvector(acc[r][c], vec) * (scale * scales[r * stride]));
      }
    }
    scales++;
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
    const int kind = KIND; \
    switch (rows * 8 + panels) { SIZES(TILE_CASE) } \
  }
#define TILE_CASE(ROWS, PANELS) \
  case ROWS * 8 + PANELS: \
    if (kind == INT8_DOT) multiply_int8_dot_tile(ROWS, PANELS, x, stride, piece, sums, first); \
    else multiply_tile(kind, ROWS, PANELS, x, stride, piece, sums, first); \
    break;
DEFINE_TILES(multiply_fp32, FP32, ALL_TILES)
DEFINE_TILES(multiply_bf16, BF16, ALL_TILES)
DEFINE_TILES(multiply_fp16, FP16, ALL_TILES)
DEFINE_TILES(multiply_int8, INT8, ALL_TILES)
DEFINE_TILES(multiply_bf16_dot, BF16_DOT, ALL_TILES)
DEFINE_TILES(multiply_int8_dot, INT8_DOT, ALL_TILES)
/* A copy, because the compiler generates slower code for `multiply_fp32` if it has a second caller. */
DEFINE_TILES(multiply_widened, FP32, MANY_TILES)
#undef TILE_CASE
#undef DEFINE_TILES

INLINE void multiply_tiles(const int kind, int rows, int panels, const float *x, long stride, const Piece *piece,
                           float *sums, int first_piece) {
  (kind == FP32       ? multiply_fp32
   : kind == BF16     ? multiply_bf16
   : kind == FP16     ? multiply_fp16
   : kind == INT8     ? multiply_int8
   : kind == BF16_DOT ? multiply_bf16_dot
                      : multiply_int8_dot)(rows, panels, x, stride, piece, sums, first_piece);
}

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
  const int is_int8 = kind == INT8 || kind == INT8_DOT;
  long inputs = IN_PAIRS(kind) ? m->depth / 2 : m->depth;
  long tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
  int widen = IS_STORED_WIDENED(kind) && tiles > MAX_TILES_WIDENING;
  int share_prefetch = tiles > 1 && (widen || tiles <= MAX_TILES_SHARING_PREFETCH);
  long piece_depth = tiles <= MAX_TILES_SHARING_PREFETCH ? SHORT_PIECE : PIECE;
  if (is_int8) piece_depth = PIECE / m->group * m->group;
  Piece piece = {.panel_bytes = panel_bytes(m), .group = is_int8 ? m->group : inputs};
  if (kind == INT8_DOT) piece.groups = groups_of(m, inputs);
  const char *panel = (const char *)m->panels + first * piece.panel_bytes;
  for (long k = 0; k < inputs; k += piece_depth) {
    piece.begin = k;
    piece.depth = inputs - k < piece_depth ? inputs - k : piece_depth;
    piece.weights = panel + bytes_of_inputs(m, IN_PAIRS(kind) ? 2 * k : k);
    piece.ahead_bytes = share_prefetch ? STEP_BYTES(kind) / tiles : STEP_BYTES(kind);
    const char *next = panel + bytes_of_inputs(m, IN_PAIRS(kind) ? 2 * (k + piece.depth) : k + piece.depth);
    long steps = piece.depth / INPUTS(kind);
    if (widen) {
      widen_piece(kind, &piece, widened);
      piece.weights = (const char *)widened;
      piece.ahead_bytes = STEP_BYTES(kind) / INPUTS(kind) / tiles;
      steps = piece.depth;
    }
    for (long tile = 0; tile < tiles; tile++) {
      long begin = rows * tile / tiles;
      int count = (int)(rows * (tile + 1) / tiles - begin);
      const float *input = x + begin * stride + (kind == INT8_DOT ? 0 : k);
      float *to = sums + begin * panels * COLUMNS;
      piece.ahead = share_prefetch ? next + steps * tile * piece.ahead_bytes : piece.weights + bytes_ahead(kind, rows);
      if (widen) {
        multiply_widened(count, panels, input, stride, &piece, to, k == 0);
      } else {
        multiply_tiles(kind, count, panels, input, stride, &piece, to, k == 0);
      }
    }
  }
}

/* x are activations as they are, or rounded ones if the matrix is of a kind with dot products. */
static void multiply_panels(long rows, int panels, const float *x, long stride, const Matrix *m, long first,
                            float *sums, float *widened) {
#define MULTIPLY(KIND) \
  case KIND: multiply_panels_of(KIND, rows, panels, x, stride, m, first, sums, widened); break;
  switch (m->kind) {
    MULTIPLY(FP32) MULTIPLY(BF16) MULTIPLY(FP16) MULTIPLY(INT8) MULTIPLY(INT8_DOT)
    case BF16_DOT: {
      uint64_t before = DOT_BF16 ? 0 : flush_subnormals();
      multiply_panels_of(BF16_DOT, rows, panels, x, stride, m, first, sums, widened);
      if (!DOT_BF16) restore_subnormals(before);
    }
  }
#undef MULTIPLY
}
