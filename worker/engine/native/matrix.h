/* Matrices of weights in memory: their number formats and their order.

A matrix (outputs, depth) is stored in panels of COLUMNS outputs, in the order panel, depth, output. So a gemm reads it
once, from the first byte to the last, and each lane of a vector holds one output. Within a panel, the formats differ:

- FP32, FP16: input, output.
- BF16: the same; with AVX-512 pair of inputs, output, input of the pair. There a vector of integers holds a pair of each
  output, and one operation widens each of them. The depth is even.
- INT8: a weight is a code, an integer from -127 to 127, times a scale. `group` inputs of one output share a scale. A
  panel is a sequence of groups: COLUMNS scales (fp32), then the codes in the order input, output. The last group may be
  shorter.

A gemm with these gives the bits that it would give with the same weights in fp32. With the following formats it rounds
the activations, too (see dot.h):

- BF16_DOT: as BF16. Without DOT_BF16, the inputs of each pair are exchanged.
- INT8_DOT: as INT8, but with the codes in the order four inputs, output, input of the four. A byte is the code + 128.
  `group` is a multiple of 4. */
#pragma once

#include <float.h>
#include <math.h>
#include <string.h>

#include "vector.h"

#if defined(__AVX512BF16__)
#define DOT_BF16 1
#else
#define DOT_BF16 0
#endif
#define PAIRS (LANES == 16)

enum { COLUMNS = 2 * LANES };

/* library.py has the same numbers. */
enum Kind { FP32, BF16, FP16, INT8, BF16_DOT, INT8_DOT };

typedef struct {
  long outputs, depth;
  void *panels;
  long kind;
  long group; /* INT8, INT8_DOT: inputs that share a scale, at most PIECE (see gemm.h) */
} Matrix;

INLINE long panel_count(const Matrix *m) { return (m->outputs + COLUMNS - 1) / COLUMNS; }

/* Groups of the first `inputs` inputs. */
INLINE long groups_of(const Matrix *m, long inputs) { return (inputs + m->group - 1) / m->group; }

/* Bytes of the first `inputs` inputs of a panel: whole pairs or groups, or the whole depth. */
INLINE long bytes_of_inputs(const Matrix *m, long inputs) {
  switch (m->kind) {
    case FP32: return inputs * COLUMNS * (long)sizeof(float);
    case INT8: return COLUMNS * (inputs + groups_of(m, inputs) * (long)sizeof(float));
    case INT8_DOT: return COLUMNS * ((inputs + 3) / 4 * 4 + groups_of(m, inputs) * (long)sizeof(float));
    default: return inputs * COLUMNS * (long)sizeof(uint16_t);
  }
}

INLINE long panel_bytes(const Matrix *m) { return bytes_of_inputs(m, m->depth); }

/* ---- Weights in registers. ---- */

typedef uint16_t halves __attribute__((vector_size(LANES * 2), aligned(1)));
typedef int8_t codes __attribute__((vector_size(LANES), aligned(1)));

INLINE vec floats_of_codes(const char *from) {
#if LANES == 16
  return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#elif LANES == 8
  return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#else
  return __builtin_convertvector(*(const codes *)from, vec);
#endif
}

INLINE vec floats_of_bf16(const char *from) {
#if LANES == 8
  return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16);
#else
  return (vec)(__builtin_convertvector(*(const halves *)from, ivec) << 16);
#endif
}

INLINE vec floats_of_fp16(const char *from) {
#if LANES == 16
  return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif LANES == 8
  return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
  ivec half = __builtin_convertvector(*(const halves *)from, ivec), size = (half & 0x7fff) << 13;
  ivec not_finite = ((half & 0x7c00) == 0x7c00) & 0x7f800000;
  return (vec)((ivec)((vec)size * 0x1p112f) | not_finite | (half & 0x8000) << 16);
#endif
}

/* The vector `half` (0 or 1) of weights for input k of a panel at `w`, without the scale of int8. */
INLINE vec load_weights(const int kind, const char *w, long k, const int half) {
  if (kind == FP32) return load((const float *)w + k * COLUMNS + half * LANES);
  if (kind == FP16) return floats_of_fp16(w + (k * COLUMNS + half * LANES) * 2);
  if (kind == INT8) return floats_of_codes(w + k * COLUMNS + half * LANES);
  if (!PAIRS) return floats_of_bf16(w + (k * COLUMNS + half * LANES) * 2);
  ivec pairs = *(const ivec *)(w + (k / 2 * COLUMNS + half * LANES) * 4);
  return k % 2 ? (vec)(pairs & (int32_t)0xffff0000) : (vec)(pairs << 16);
}

/* ---- Single weights. ---- */

/* Weight i of a plain array. */
INLINE float weight_of(const int kind, const void *from, long i) {
  if (kind == FP32) return ((const float *)from)[i];
  return kind == BF16 ? widen(((const uint16_t *)from)[i]) : widen_fp16(((const uint16_t *)from)[i]);
}

/* Index of a weight in the 16-bit numbers of a panel. */
INLINE long index16(const int kind, long k, long column) {
  if (kind == BF16_DOT && !DOT_BF16) k ^= 1;
  return kind != FP16 && PAIRS ? (k / 2 * COLUMNS + column) * 2 + k % 2 : k * COLUMNS + column;
}

INLINE char *panel_of(const Matrix *m, long output) { return (char *)m->panels + output / COLUMNS * panel_bytes(m); }

/* Copy one row of a matrix, widened, to `out` (depth). The matrix is not int8. */
INLINE void copy_row(const Matrix *m, long output, float *out) {
  const char *panel = panel_of(m, output);
  long column = output % COLUMNS;
  if (m->kind == FP32) {
    for (long k = 0; k < m->depth; k++) out[k] = ((const float *)panel)[k * COLUMNS + column];
  } else if (m->kind == BF16) {
    for (long k = 0; k < m->depth; k++) out[k] = weight_of(BF16, panel, index16(BF16, k, column));
  } else if (m->kind == BF16_DOT) {
    for (long k = 0; k < m->depth; k++) out[k] = weight_of(BF16, panel, index16(BF16_DOT, k, column));
  } else {
    for (long k = 0; k < m->depth; k++) out[k] = weight_of(FP16, panel, index16(FP16, k, column));
  }
}

/* ---- Packing: rows (count, depth) of a plain matrix become the outputs of `m` from `at` on. ---- */

INLINE void pack_unrounded(const Matrix *m, const int kind, long at, const int source, const void *from, long count) {
  enum { STEP = 16 };
  for (long k = 0; k < m->depth; k += STEP) {
    long end = m->depth - k < STEP ? m->depth : k + STEP;
    for (long i = 0; i < count; i++) {
      char *to = panel_of(m, at + i);
      long column = (at + i) % COLUMNS, row = i * m->depth;
      if (kind == FP32) {
        for (long j = k; j < end; j++) ((float *)to)[j * COLUMNS + column] = weight_of(source, from, row + j);
      } else {
        const uint16_t *weights = (const uint16_t *)from + row;
        for (long j = k; j < end; j++) ((uint16_t *)to)[index16(kind, j, column)] = weights[j];
      }
    }
  }
}

/* The largest of a group gets the code 127 or -127. A group with a weight that is not finite gets the scale NaN, so that
its output is NaN, as it would be with the weight itself. */
INLINE void pack_int8(const Matrix *m, const int kind, long at, const int source, const void *from, long count) {
  for (long k = 0; k < m->depth; k += m->group) {
    long end = m->depth - k < m->group ? m->depth : k + m->group;
    for (long i = 0; i < count; i++) {
      long column = (at + i) % COLUMNS, row = i * m->depth;
      char *to = panel_of(m, at + i) + bytes_of_inputs(m, k);
      float *scale = (float *)to + column;
      int8_t *code = (int8_t *)to + COLUMNS * sizeof(float);
      float largest = 0;
      int finite = 1;
      for (long j = k; j < end; j++) {
        float size = fabsf(weight_of(source, from, row + j));
        finite &= size <= FLT_MAX;
        largest = size > largest ? size : largest;
      }
      /* A subnormal scale has fewer bits and could give codes beyond 127, so it becomes 0. */
      *scale = !finite ? NAN : largest / 127 < FLT_MIN ? 0 : largest / 127;
      for (long j = 0; j < end - k; j++) {
        int rounded = *scale > 0 ? (int)rintf(weight_of(source, from, row + k + j) / *scale) : 0;
        if (kind == INT8) {
          code[j * COLUMNS + column] = (int8_t)rounded;
        } else {
          code[(j / 4 * COLUMNS + column) * 4 + j % 4] = (int8_t)(rounded + 128);
        }
      }
    }
  }
}

/* The plain matrix is of the kind `source`: FP32, BF16 or FP16. `m` has the same format, or is FP32 or one of int8. */
static void pack_rows(const Matrix *m, long at, int source, const void *from, long count) {
#define PACK(SOURCE) \
  case SOURCE: \
    if (m->kind == INT8) pack_int8(m, INT8, at, SOURCE, from, count); \
    else if (m->kind == INT8_DOT) pack_int8(m, INT8_DOT, at, SOURCE, from, count); \
    else if (m->kind == FP32) pack_unrounded(m, FP32, at, SOURCE, from, count); \
    else if (m->kind == BF16_DOT) pack_unrounded(m, BF16_DOT, at, SOURCE, from, count); \
    else pack_unrounded(m, SOURCE, at, SOURCE, from, count); \
    break;
  switch (source) { PACK(FP32) PACK(BF16) PACK(FP16) }
#undef PACK
}
