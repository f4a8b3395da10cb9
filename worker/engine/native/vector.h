/* Vectors of floats, as wide as those of the processor, and the functions that all kernels share. */
#pragma once

#include <stdint.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
/* Rows of a gemm tile. For each row there are two vectors of sums; these, two vectors of the matrix and one of the
row's value fill the registers. */
#define TILE_ROWS 12
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#define TILE_ROWS 6
#else
#define LANES 4
#define TILE_ROWS 8
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Loads and stores may be unaligned: the callers choose the addresses of activations and caches. */
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4)));

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec value) { *(vec *)to = value; }
INLINE vec splat(float value) { return value - (vec){0}; }

/* a * b + c, rounded once. The compiler would choose itself which of several products it fuses with a sum, and choose
differently at each place. */
INLINE vec multiply_add(vec a, vec b, vec c) {
#if LANES == 16
  return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8
  return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

/* a in the lanes where the mask is set, b in the others. */
INLINE vec choose(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }

INLINE ivec largest_of(ivec a, ivec b) {
#if LANES == 16
  return (ivec)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif LANES == 8
  return (ivec)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
  ivec mask = a > b;
  return (mask & a) | (~mask & b);
#endif
}

INLINE float sum(vec v) {
#if LANES == 16
  return _mm512_reduce_add_ps((__m512)v);
#elif LANES == 8
  __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

INLINE float largest_lane(vec v) {
#if LANES == 16
  return _mm512_reduce_max_ps((__m512)v);
#elif LANES == 8
  __m128 half = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
#else
  float left = v[0] > v[2] ? v[0] : v[2], right = v[1] > v[3] ? v[1] : v[3];
  return left > right ? left : right;
#endif
}

INLINE int any(ivec mask) {
#if LANES == 16
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif LANES == 8
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

/* e^x with an error of about 2 units in the last place (the polynomial is that of Cephes' expf). NaN stays NaN. */
INLINE vec exponential(vec x) {
  const vec low = splat(-87.33654f), high = splat(88.37626f), shift = splat(12582912.0f);
  x = choose(x < low, low, x);
  x = choose(x > high, high, x);
  vec shifted = x * 1.44269504f + shift; /* the integer is in the low bits now */
  vec n = shifted - shift;
  vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  ivec power = ((ivec)shifted - (ivec)shift + 127) << 23;
  return p * (vec)power;
}

/* The sum of the squares of n floats. The order of the additions depends only on n. */
INLINE float square_sum(const float *x, long n) {
  vec total = {0};
  long i = 0;
  for (; i + LANES <= n; i += LANES) total += load(x + i) * load(x + i);
  float rest = sum(total);
  for (; i < n; i++) rest += x[i] * x[i];
  return rest;
}

INLINE float widen(uint16_t bf16) {
  union {
    uint32_t bits;
    float value;
  } word = {(uint32_t)bf16 << 16};
  return word.value;
}

INLINE float widen_fp16(uint16_t fp16) {
  union {
    uint32_t bits;
    float value;
  } word = {(uint32_t)(fp16 & 0x7fff) << 13};
  word.value *= 0x1p112f;
  if ((fp16 & 0x7c00) == 0x7c00) word.bits |= 0x7f800000;
  word.bits |= (uint32_t)(fp16 & 0x8000) << 16;
  return word.value;
}
