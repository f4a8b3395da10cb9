/* Gemm with int8 weights.

A weight is a code, an integer from -127 to 127, times a scale. `group` inputs of one output share a scale. A panel is
stored as a sequence of groups: COLUMNS scales, then the codes in the order of gemm.h (input, output). Codes are
converted to floats and scaled before they are multiplied, and the sums run as in gemm.h: in any batch, the result has
the same bits as that of the fp32 matrix that the codes and scales represent. */
#pragma once

#include <float.h>
#include <math.h>

#include "gemm.h"

/* Each tile prefetches what lies this many bytes ahead. */
enum { BYTES_AHEAD = 2048 };
/* With more tiles than this, a piece is widened to floats once for all tiles, and stored. Otherwise each tile widens
it again: in registers that costs less than a store and a load. */
enum { MAX_TILES_IN_REGISTERS = 2 };
/* Floats of a widened piece. */
enum { WIDENED = PIECE * COLUMNS };

typedef int8_t codes __attribute__((vector_size(LANES), aligned(1)));

INLINE vec as_floats(const int8_t *from) {
#if LANES == 16
  return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#elif LANES == 8
  return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#else
  return __builtin_convertvector(*(const codes *)from, vec);
#endif
}

/* Bytes of the first `inputs` inputs of a panel. They are whole groups, except that the panel's last group may be
shorter. */
INLINE long int8_bytes(const Matrix *m, long inputs) {
  return COLUMNS * (inputs + (inputs + m->group - 1) / m->group * (long)sizeof(float));
}

/* Like `gemm_tile`, for int8 panels. */
INLINE void int8_tile(const int rows, const int panels, const float *x, long stride, const char *w, long panel_size,
                      long depth, long group, float *sums, int first_piece) {
  vec acc[TILE_ROWS][2 * MAX_PANELS];
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int c = 0; c < 2 * panels; c++) {
      acc[r][c] = first_piece ? (vec){0} : load(sums + (r * 2 * panels + c) * LANES);
    }
  }
  for (long begin = 0; begin < depth; begin += group) {
    long end = depth - begin < group ? depth : begin + group;
    vec scale[2 * MAX_PANELS];
    UNROLL for (int p = 0; p < panels; p++) {
      scale[2 * p] = load((const float *)(w + p * panel_size));
      scale[2 * p + 1] = load((const float *)(w + p * panel_size) + LANES);
    }
    w += COLUMNS * sizeof(float);
    for (long k = begin; k < end; k++) {
      vec b[2 * MAX_PANELS];
      UNROLL for (int p = 0; p < panels; p++) {
        const int8_t *code = (const int8_t *)w + p * panel_size;
        __builtin_prefetch(code + BYTES_AHEAD);
        b[2 * p] = scale[2 * p] * as_floats(code);
        b[2 * p + 1] = scale[2 * p + 1] * as_floats(code + LANES);
      }
      w += COLUMNS;
      UNROLL for (int r = 0; r < rows; r++) {
        vec a = splat(x[r * stride + k]);
        UNROLL for (int c = 0; c < 2 * panels; c++) acc[r][c] += a * b[c];
      }
    }
  }
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int c = 0; c < 2 * panels; c++) store(sums + (r * 2 * panels + c) * LANES, acc[r][c]);
  }
}

static void int8_tiles(int rows, int panels, const float *x, long stride, const char *w, long panel_size, long depth,
                       long group, float *sums, int first_piece) {
#define CASE(R, P) \
  case R * 8 + P: \
    int8_tile(R, P, x, stride, w, panel_size, depth, group, sums, first_piece); \
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

/* Like `gemm_tiles`, for one widened panel and the tile sizes that occur with many tiles. It is a copy because the
compiler generates slower code for `gemm_tiles` if it has a second caller. */
static void widened_gemm_tiles(int rows, const float *x, long stride, const float *w, long depth, const float *ahead,
                               long ahead_step, float *sums, int first_piece) {
#define CASE(R) \
  case R: \
    gemm_tile(R, 1, x, stride, w, 0, depth, ahead, ahead_step, sums, first_piece); \
    break;
  switch (rows) {
    CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
    CASE(7) CASE(8)
#endif
#if TILE_ROWS > 8
    CASE(9) CASE(10) CASE(11) CASE(12)
#endif
  }
#undef CASE
}

/* to (depth, COLUMNS) = the weights of a piece of a panel. */
static void widen_piece(const char *w, long depth, long group, float *to) {
  for (long begin = 0; begin < depth; begin += group) {
    long end = depth - begin < group ? depth : begin + group;
    vec left = load((const float *)w), right = load((const float *)w + LANES);
    w += COLUMNS * sizeof(float);
    for (long k = begin; k < end; k++) {
      store(to + k * COLUMNS, left * as_floats((const int8_t *)w));
      store(to + k * COLUMNS + LANES, right * as_floats((const int8_t *)w + LANES));
      w += COLUMNS;
    }
  }
}

/* Like `multiply_panels`. `widened` has room for WIDENED floats. */
static void multiply_int8_panels(long rows, int panels, const float *x, long stride, const Matrix *m, long first,
                                 float *sums, float *widened) {
  long blocks = (rows + TILE_ROWS - 1) / TILE_ROWS, panel_size = int8_bytes(m, m->depth);
  const char *w = (const char *)m->panels + first * panel_size;
  long piece = PIECE / m->group * m->group;
  for (long k = 0; k < m->depth; k += piece) {
    long depth = m->depth - k < piece ? m->depth - k : piece;
    const char *from = w + int8_bytes(m, k), *next = from + int8_bytes(m, depth);
    if (blocks > MAX_TILES_IN_REGISTERS) widen_piece(from, depth, m->group, widened);
    for (long block = 0; block < blocks; block++) {
      long begin = rows * block / blocks, end = rows * (block + 1) / blocks;
      const float *input = x + begin * stride + k;
      float *to = sums + begin * panels * COLUMNS;
      if (blocks > MAX_TILES_IN_REGISTERS) {
        const float *ahead = (const float *)(next + depth * block / blocks * COLUMNS);
        long ahead_step = COLUMNS / (long)sizeof(float) / blocks;
        widened_gemm_tiles((int)(end - begin), input, stride, widened, depth, ahead, ahead_step, to, k == 0);
      } else {
        int8_tiles((int)(end - begin), panels, input, stride, from, panel_size, depth, m->group, to, k == 0);
      }
    }
  }
}

INLINE float weight_of(const void *rows, long i, int bf16) {
  return bf16 ? widen(((const uint16_t *)rows)[i]) : ((const float *)rows)[i];
}

/* Like `pack_floats`, rounding the weights: the largest of a group gets the code 127 or -127. A group with a weight
that is not finite gets the scale NaN, so that its output is NaN, as it would be with the weight itself. */
static void pack_int8(const Matrix *m, long at, const void *from, long count, int bf16) {
  for (long k = 0; k < m->depth; k += m->group) {
    long end = m->depth - k < m->group ? m->depth : k + m->group;
    for (long i = 0; i < count; i++) {
      long output = at + i, row = i * m->depth;
      char *to = (char *)m->panels + output / COLUMNS * int8_bytes(m, m->depth) + int8_bytes(m, k);
      float *scale = (float *)to + output % COLUMNS;
      int8_t *code = (int8_t *)to + COLUMNS * sizeof(float) + output % COLUMNS;
      float largest = 0;
      int finite = 1;
      for (long j = k; j < end; j++) {
        float size = fabsf(weight_of(from, row + j, bf16));
        finite &= size <= FLT_MAX;
        largest = size > largest ? size : largest;
      }
      /* A subnormal scale has fewer bits and could give codes beyond 127, so it becomes 0. */
      *scale = !finite ? NAN : largest / 127 < FLT_MIN ? 0 : largest / 127;
      for (long j = k; j < end; j++) {
        code[(j - k) * COLUMNS] = *scale > 0 ? (int8_t)rintf(weight_of(from, row + j, bf16) / *scale) : 0;
      }
    }
  }
}
