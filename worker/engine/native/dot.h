/* Dot products with rounded activations, for matrices of the kinds BF16_DOT and INT8_DOT.

- BF16_DOT: activations are rounded to bf16. The products of a pair of inputs are added to an fp32 sum, the second input
  first, and each addition rounds once. Subnormal numbers count as 0. So does the instruction of AVX512-BF16.
- INT8_DOT: the activations of a group become codes from -127 to 127 times a scale, as the weights are. The products of
  the codes of a group are summed exactly, as integers, and the sum times both scales is added to an fp32 sum.

Processors with the instructions for this (DOT_BF16, DOT_INT8) multiply several inputs at once. The others compute the
same bits with the instructions that they have. */
#pragma once

#include "matrix.h"

#if (LANES == 16 && defined(__AVX512VNNI__)) || (LANES == 8 && defined(__AVXVNNI__))
#define DOT_INT8 1
#else
#define DOT_INT8 0
#endif

INLINE int rounds_activations(const Matrix *m) { return m->kind == BF16_DOT || m->kind == INT8_DOT; }

/* The bits of a float or of four codes, in all lanes. */
INLINE ivec splat_bits(const void *from) {
  int32_t bits;
  memcpy(&bits, from, sizeof(bits));
  return bits - (ivec){0};
}

/* sum += the products of pairs: a pair of activations is in all lanes of `x`. */
INLINE vec add_pair(vec sum, vec x, vec w) {
#if DOT_BF16
  return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
  return sum + x * w; /* is not called */
#endif
}

/* Bytes of four codes of activations. Without DOT_INT8 they have 16 bits each: the first and third one, then the others.
*/
enum { CODES_BYTES = DOT_INT8 ? 4 : 8 };

/* sum += the products of four codes of weights and activations. */
INLINE ivec add_four(ivec sum, ivec w, const char *x) {
#if DOT_INT8 && LANES == 16
  return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)splat_bits(x));
#elif DOT_INT8
  return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)splat_bits(x));
#elif LANES == 16
  __m512i even = (__m512i)(w & 0x00ff00ff), odd = (__m512i)(w >> 8 & 0x00ff00ff);
  return sum + (ivec)_mm512_madd_epi16(even, (__m512i)splat_bits(x)) +
         (ivec)_mm512_madd_epi16(odd, (__m512i)splat_bits(x + 4));
#elif LANES == 8
  __m256i even = (__m256i)(w & 0x00ff00ff), odd = (__m256i)(w >> 8 & 0x00ff00ff);
  return sum + (ivec)_mm256_madd_epi16(even, (__m256i)splat_bits(x)) +
         (ivec)_mm256_madd_epi16(odd, (__m256i)splat_bits(x + 4));
#else
  const int16_t *code = (const int16_t *)x;
  return sum + (w & 255) * code[0] + (w >> 16 & 255) * code[1] + (w >> 8 & 255) * code[2] + (w >> 24 & 255) * code[3];
#endif
}

/* ---- Rounding the activations of a row. ---- */

/* Floats of memory for a rounded row. With BF16_DOT it holds bf16 numbers; without DOT_BF16 these are widened, and each
pair has its second one first. With INT8_DOT it holds for each group the scale, then for each group an integer, then the
codes. The integer is -128 times the sum of the group's codes: it corrects that the codes of the weights are stored with
128 added. */
INLINE long rounded_floats(const Matrix *m) {
  if (m->kind == BF16_DOT) return DOT_BF16 ? m->depth / 2 : m->depth;
  if (m->kind == INT8_DOT) return 2 * groups_of(m, m->depth) + (m->depth / 4 + LANES) * CODES_BYTES / 4;
  return 0;
}

static void round_to_bf16(const float *x, long n, float *out) {
#if DOT_BF16
  for (long i = 0; i < n; i += LANES) {
    __mmask16 mask = n - i < LANES ? (__mmask16)((1 << (n - i)) - 1) : 0xffff;
    __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
    _mm256_mask_storeu_epi16((uint16_t *)out + i, mask, rounded);
  }
#else
  for (long i = 0; i < n; i++) {
    uint32_t bits, rounded;
    memcpy(&bits, x + (i ^ 1), sizeof(bits));
    rounded = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    if ((bits & 0x7fffffff) > 0x7f800000) rounded = 0x7fc00000;
    if (!(bits & 0x7f800000)) rounded = bits & 0x80000000;
    memcpy(out + i, &rounded, sizeof(rounded));
  }
#endif
}

/* Write the codes of LANES activations. */
INLINE void store_codes(char *to, ivec rounded) {
#if LANES == 16
  if (DOT_INT8) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)rounded));
  } else {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_shuffle_epi32((__m512i)rounded, 0xD8)));
  }
#else
  for (int lane = 0; lane < LANES; lane++) {
    if (DOT_INT8) {
      to[lane] = (int8_t)rounded[lane];
    } else {
      ((int16_t *)to)[lane / 4 * 4 + lane % 4 / 2 + lane % 2 * 2] = (int16_t)rounded[lane];
    }
  }
#endif
}

/* Round a group of activations. `codes` has room for whole vectors. Returns the sum of the codes. */
INLINE long round_group(const float *x, long n, float *scale, char *codes) {
  float last[LANES] = {0}; /* the last activations, filled up to a vector */
  long whole = n / LANES * LANES;
  memcpy(last, x + whole, (n - whole) * sizeof(float));
  ivec most = {0}; /* the bits of sizes have the order of the sizes, and those of infinity and NaN are the largest */
  for (long i = 0; i < n; i += LANES) {
    ivec size = (ivec)load(i < whole ? x + i : last) & 0x7fffffff;
    most = largest_of(most, size);
  }
  float largest = largest_lane((vec)most);
  int finite = !any(most >= 0x7f800000);
  /* With subnormal scales, the codes could exceed 127. */
  int rounds = finite && largest / 127 >= FLT_MIN;
  float factor = rounds ? 127 / largest : 0;
  *scale = !finite ? NAN : rounds ? largest / 127 : 0;
  vec total = {0};
  for (long i = 0; i < n; i += LANES) {
    const vec shift = splat(12582912.0f); /* adding it rounds to an integer, which is in the low bits then */
    vec shifted = (finite ? load(i < whole ? x + i : last) : (vec){0}) * factor + shift;
    total += shifted - shift;
    store_codes(codes + i / 4 * CODES_BYTES, (ivec)shifted - (ivec)shift);
  }
  return (long)sum(total);
}

/* out (rounded_floats) = a row of activations, rounded for a multiplication with `m`. */
static void round_row(const Matrix *m, const float *x, float *out) {
  if (m->kind == BF16_DOT) {
    round_to_bf16(x, m->depth, out);
    return;
  }
  long groups = groups_of(m, m->depth);
  int32_t *corrections = (int32_t *)out + groups;
  char *codes = (char *)(corrections + groups);
  for (long g = 0; g < groups; g++) {
    long begin = g * m->group, count = m->depth - begin < m->group ? m->depth - begin : m->group;
    corrections[g] = -128 * (int32_t)round_group(x + begin, count, out + g, codes + begin / 4 * CODES_BYTES);
  }
}

/* ---- Subnormal numbers. ---- */

/* Let the following operations of this thread replace subnormal numbers by 0. Returns the state before. */
INLINE uint64_t flush_subnormals(void) {
#if defined(__x86_64__)
  unsigned before = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(before | 0x8040);
  return before;
#elif defined(__aarch64__)
  uint64_t before;
  __asm__ __volatile__("mrs %0, fpcr" : "=r"(before));
  __asm__ __volatile__("msr fpcr, %0" ::"r"(before | 1 << 24) : "memory");
  return before;
#else
  return 0;
#endif
}

INLINE void restore_subnormals(uint64_t before) {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr((unsigned)before);
#elif defined(__aarch64__)
  __asm__ __volatile__("msr fpcr, %0" ::"r"(before) : "memory");
#else
  (void)before;
#endif
}
