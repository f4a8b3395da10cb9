/* Vectors of doubles. They have half as many lanes as vectors of floats. */
#pragma once

#include <math.h>
#include <string.h>

#include "vector.h"

#define DOUBLES (LANES / 2)

typedef double dvec __attribute__((vector_size(DOUBLES * 8), aligned(8)));
typedef int64_t lvec __attribute__((vector_size(DOUBLES * 8), aligned(8)));
typedef float half_vec __attribute__((vector_size(DOUBLES * 4), aligned(4)));

INLINE dvec load_doubles(const double *from) { return *(const dvec *)from; }
INLINE void store_doubles(double *to, dvec value) { *(dvec *)to = value; }
INLINE dvec splat_double(double value) { return value - (dvec){0}; }
INLINE dvec load_widened(const float *from) { return __builtin_convertvector(*(const half_vec *)from, dvec); }

/* The lanes of v where the mask is set, 0 in the others. */
INLINE dvec where(lvec mask, dvec v) { return (dvec)(mask & (lvec)v); }

INLINE int any_double(lvec mask) {
#if LANES == 16
  return _mm512_movepi64_mask((__m512i)mask) != 0;
#elif LANES == 8
  return _mm256_movemask_pd((__m256d)mask) != 0;
#else
  return (mask[0] | mask[1]) != 0;
#endif
}

INLINE double sum_doubles(dvec v) {
  double total = 0;
  UNROLL for (int i = 0; i < DOUBLES; i++) total += v[i];
  return total;
}

/* e^x for x <= 0 with an error of about one unit in the last place, and 0 where e^x is below 1e-307. With x = n ln 2 +
r and |r| <= ln 2 / 2, it is 2^n times the series of e^r, up to the power after which the rest is smaller than
rounding. */
INLINE dvec exponential_of_doubles(dvec x) {
  const dvec low = splat_double(-708), shift = splat_double(6755399441055744.0);
  dvec shifted = x * 1.4426950408889634 + shift; /* the integer is in the low bits now */
  dvec n = shifted - shift;
  /* ln 2 in two parts. The first has so few bits that n times it is exact. */
  dvec r = x - n * 6.93147180369123816490e-01;
  r = r - n * 1.90821492927058770002e-10;
  dvec p = r * (1 / 6227020800.0) + 1 / 479001600.0;
  p = p * r + 1 / 39916800.0;
  p = p * r + 1 / 3628800.0;
  p = p * r + 1 / 362880.0;
  p = p * r + 1 / 40320.0;
  p = p * r + 1 / 5040.0;
  p = p * r + 1 / 720.0;
  p = p * r + 1 / 120.0;
  p = p * r + 1 / 24.0;
  p = p * r + 1 / 6.0;
  p = p * r + 0.5;
  p = p * (r * r) + r + 1.0;
  lvec power = ((lvec)shifted - (lvec)shift + 1023) << 52;
  return where(x >= low, p * (dvec)power);
}
