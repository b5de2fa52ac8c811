// Parts that every kind of weight shares: types, rounding, and activations as kernels read them.

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

// MOST: tokens of a pass. TILE, DEEP: rows and columns of a product in registers.
// AHEAD: bytes that a hint to the caches goes ahead. AT_ONCE: blocks of rows that a thread takes
// at least.
enum { LANES = 16, BLOCK = 128, MOST = 4, TILE = 4, DEEP = 2048, AHEAD = 2048, AT_ONCE = 8 };
enum { FP32, FP16, BF16, INT8, INT4 };

#define INLINE static inline __attribute__((always_inline))

typedef _Float16 f16;
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES), aligned(2)));
typedef f16 halves __attribute__((vector_size(2 * LANES), aligned(2)));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1)));

// A matrix [rows, columns]: row by row where it is dense, packed where it is quantized.
typedef struct {
  int kind;
  const void *data;
  int scale_kind;
  const void *scales;
  const uint8_t *zeros;  // of int4, or null for 8 everywhere
  long rows, columns, group;
} Matrix;

// One matrix product, y = epilogue(W · prologue(x)); x [tokens, columns] and y are of `kind`.
typedef struct {
  const Matrix *matrix;
  int kind;
  long tokens;
  const void *x;
  const float *norm;     // [columns] of an RMSNorm before, or null
  float eps;             // of that norm
  const void *residual;  // [tokens, rows] to add, or null
  int swiglu;            // sums are gates and ups: interleaved rows, or all gates first where dense
  void *y;               // [tokens, rows], or half as many of swiglu
} Product;

// Activations of some tokens, ready to be multiplied.
typedef struct {
  long tokens, width;  // columns of a token, zeros past the matrix's own
  float *wide;         // [tokens, width]
  uint16_t *narrow;    // [tokens, width] as bfloat16
  int8_t *high, *low;  // [tokens, width] as fixed point
  float *steps;        // [tokens, pieces]
  int32_t *totals;     // [tokens, pieces], sums of fixed point
} Inputs;

// Memory for `tokens` activations of so many columns in every form; its `wide` is null without it.
Inputs rows_room(long tokens, long columns);
// The part of a product that falls to one thread of a parallel region; all must call it.
void rows_product(const Product *product, Inputs *room);

static inline float from_bf16(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

static inline uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return value != value ? 0x7fc0 : (uint16_t)rounded;
}

static inline float read_value(const void *from, int kind, long at) {
  if (kind == BF16) return from_bf16(((const uint16_t *)from)[at]);
  return kind == FP16 ? (float)((const f16 *)from)[at] : ((const float *)from)[at];
}

static inline void write_value(void *to, int kind, long at, float value) {
  if (kind == BF16)
    ((uint16_t *)to)[at] = to_bf16(value);
  else if (kind == FP16)
    ((f16 *)to)[at] = (f16)value;
  else
    ((float *)to)[at] = value;
}

INLINE float total_of(floats lanes) {
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

INLINE floats load_floats(const void *from) {
  floats value;
  memcpy(&value, from, sizeof value);
  return value;
}

static inline int size_of(int kind) { return kind == FP32 ? 4 : kind == INT8 ? 1 : 2; }

// 16 values from index `at` on as floats.
INLINE floats load_values(int kind, const void *from, long at) {
  const void *here = (const char *)from + at * size_of(kind);
  if (kind == FP32) return load_floats(here);
#ifdef __AVX512F__
  if (kind == INT8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(here)));
  if (kind == FP16) return _mm512_cvtph_ps(_mm256_loadu_si256(here));
#endif
  if (kind == INT8) {
    bytes value;
    memcpy(&value, here, sizeof value);
    return __builtin_convertvector(__builtin_convertvector(value, ints), floats);
  }
  if (kind == FP16) {
    halves value;
    memcpy(&value, here, sizeof value);
    return __builtin_convertvector(value, floats);
  }
  shorts value;
  memcpy(&value, here, sizeof value);
  return (floats)(__builtin_convertvector(value, words) << 16);
}

// The bits of bfloat16 in the upper half of each word: to nearest, ties to even, NaN to NaN.
INLINE words round_to_bf16(floats value) {
  words bits = (words)value, nan = (words)(value != value);
  bits += 0x7fff + (bits >> 16 & 1);
  return ((bits & ~nan) | (0x7fc00000 & nan)) & 0xffff0000;
}

INLINE void store_values(int kind, floats value, void *to, long at) {
  if (kind == FP32) {
    memcpy((float *)to + at, &value, sizeof value);
  } else if (kind == BF16) {
    shorts bits = __builtin_convertvector(round_to_bf16(value) >> 16, shorts);
    memcpy((uint16_t *)to + at, &bits, sizeof bits);
  } else {
    halves half = __builtin_convertvector(value, halves);
    memcpy((f16 *)to + at, &half, sizeof half);
  }
}

// e to the x, to within two units in the last place between −87 and 88, beyond which x is taken to be
// those; NaN stays. Source: Cephes, expf.
INLINE floats exp_of(floats x) {
  ints low = (ints)(x < -87), high = (ints)(x > 88), none = (ints)(x != x);
  floats least = (floats){0} - 87, most = (floats){0} + 88;
  floats t = (floats)(((ints)x & ~low & ~high) | ((ints)least & low) | ((ints)most & high));
  floats n = t * 1.44269504f + 12582912.0f - 12582912.0f;  // to the nearest whole number
  floats r = t - n * 0.693359375f + n * 2.12194440e-4f;
  floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = ((p * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r + 1.6666665459e-1f;
  floats y = (p * r + 5.0000001201e-1f) * r * r + r + 1;
  ints bits = (ints)y + (__builtin_convertvector(n, ints) << 23);
  return (floats)((bits & ~none) | ((ints)x & none));
}
