// Sixteen rows of int4 or int8 weights at once times M tokens; kind and M are constants here.
//
// Words lie side by side for 16 rows: [rows / 16][columns / values in a word][16]. A word of int8 is
// 4 columns, each value + 128; a word of int4 is 8 columns: the low nibbles of its bytes, then the
// high ones. Scales and zero points lie as [rows / 16][columns / group][16].

#define IN_WORD(kind) ((kind) == INT4 ? 8 : 4)

typedef uint8_t few_bytes __attribute__((vector_size(LANES), aligned(1)));

// Columns that are multiplied as one: a group, or 128 columns of a longer one.
static inline long piece_of(const Matrix *w) {
  return w->group < BLOCK && w->group < w->columns ? w->group : BLOCK;
}

INLINE words load_words(const uint32_t *from) {
  words value;
  memcpy(&value, from, sizeof value);
  return value;
}

// Zero points of 16 rows in group g.
INLINE ints zeros_of(int kind, const Matrix *w, long block, long g) {
  if (kind == INT8) return (ints){0} + 128;
  if (!w->zeros) return (ints){0} + 8;
  few_bytes value;
  memcpy(&value, w->zeros + (block * (w->columns / w->group) + g) * LANES, sizeof value);
  return __builtin_convertvector(value, ints);
}

INLINE floats scales_of(const Matrix *w, long block, long g) {
  long at = (block * (w->columns / w->group) + g) * LANES;
  if (w->scale_kind == FP16) return load_values(FP16, w->scales, at);
  return w->scale_kind == BF16 ? load_values(BF16, w->scales, at) : load_values(FP32, w->scales, at);
}

// Column `place` of a word, as small integers.
INLINE ints values_of(int kind, words packed, int place) {
  if (kind == INT8) return (ints)(packed >> 8 * place & 255);
  return (ints)(packed >> (8 * (place % 4) + 4 * (place / 4)) & 15);
}

// In float32: y += scale · Σ (q − zero) · x, piece after piece, which keeps long sums exact enough.
INLINE void packed_rows(int kind, int M, const Matrix *w, const Inputs *in, long block, floats *out) {
  long count = w->columns / IN_WORD(kind), per = piece_of(w) / IN_WORD(kind);
  const uint32_t *data = (const uint32_t *)w->data + block * count * LANES;
  for (int m = 0; m < M; m++) out[m] = (floats){0};
  for (long start = 0; start < count; start += per) {
    long g = start * IN_WORD(kind) / w->group, end = start + per < count ? start + per : count;
    ints zero = zeros_of(kind, w, block, g);
    floats sum[MOST] = {{0}};
    for (long j = start; j < end; j++) {
      words packed = load_words(data + j * LANES);
      for (int place = 0; place < IN_WORD(kind); place++) {
        floats values = __builtin_convertvector(values_of(kind, packed, place) - zero, floats);
        for (int m = 0; m < M; m++)
          sum[m] += values * in->wide[m * in->width + j * IN_WORD(kind) + place];
      }
    }
    for (int m = 0; m < M; m++) out[m] += scales_of(w, block, g) * sum[m];
  }
}

// Sixteen rows as floats, transposed: to[column][16], `stride` values a column.
INLINE void unpack_rows(int kind, const Matrix *w, long block, int to_kind, char *to, long stride) {
  long count = w->columns / IN_WORD(kind), per = w->group / IN_WORD(kind);
  const uint32_t *data = (const uint32_t *)w->data + block * count * LANES;
  for (long g = 0; g * per < count; g++) {
    ints zero = zeros_of(kind, w, block, g);
    floats scale = scales_of(w, block, g);
    for (long j = g * per; j < (g + 1) * per; j++)
      for (int place = 0; place < IN_WORD(kind); place++) {
        ints centred = values_of(kind, load_words(data + j * LANES), place) - zero;
        floats value = __builtin_convertvector(centred, floats) * scale;
        store_values(to_kind, value, to, (j * IN_WORD(kind) + place) * stride);
      }
  }
}

#ifdef __AVX512VNNI__
// Activations as 16-bit fixed point in pieces of 128 columns or a group, whichever is fewer: value ≈
// step · (256 · high + low). What is no number makes the step NaN; next to nothing becomes nothing.
static void to_fixed_point(const Inputs *in, long piece) {
  for (long p = 0; p < in->tokens * in->width / piece; p++) {
    const float *x = in->wide + p * piece;
    __m512 largest = _mm512_setzero_ps(), nothing = _mm512_setzero_ps();
    for (long k = 0; k < piece; k += LANES) {
      __m512 value = _mm512_loadu_ps(x + k);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(value));
      nothing = _mm512_fmadd_ps(value, _mm512_setzero_ps(), nothing);
    }
    float most = _mm512_reduce_max_ps(largest), inverse = most > 1e-30f ? 32639 / most : 0;
    __m512i sum = _mm512_setzero_si512();
    for (long k = 0; k < piece; k += LANES) {
      __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + k), _mm512_set1_ps(inverse));
      __m512i value = _mm512_cvtps_epi32(scaled);
      __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(value, 24), 24);
      __m512i high = _mm512_srai_epi32(_mm512_sub_epi32(value, low), 8);
      _mm_storeu_si128((void *)(in->low + p * piece + k), _mm512_cvtepi32_epi8(low));
      _mm_storeu_si128((void *)(in->high + p * piece + k), _mm512_cvtepi32_epi8(high));
      sum = _mm512_add_epi32(sum, value);
    }
    in->steps[p] = most / 32639 + _mm512_reduce_add_ps(nothing);
    in->totals[p] = _mm512_reduce_add_epi32(sum);
  }
}

INLINE __m512i four_of(const int8_t *x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

// The same as `packed_rows` by dot products of bytes; the sums of a piece are exact.
INLINE void vnni_rows(int kind, int M, const Matrix *w, const Inputs *in, long block, floats *out) {
  long count = w->columns / IN_WORD(kind), piece = piece_of(w), pieces = in->width / piece;
  const uint32_t *data = (const uint32_t *)w->data + block * count * LANES;
  const __m512i nibbles = _mm512_set1_epi8(15);
  for (int m = 0; m < M; m++) out[m] = (floats){0};
  for (long p = 0; p * piece < w->columns; p++) {
    long left = w->columns - p * piece, end = p * piece + (left < piece ? left : piece);
    __m512i high[MOST], low[MOST];
    for (int m = 0; m < M; m++) high[m] = low[m] = _mm512_setzero_si512();
    for (long k = p * piece; k < end; k += IN_WORD(kind)) {
      const uint32_t *here = data + k / IN_WORD(kind) * LANES;
      __builtin_prefetch((const char *)here + AHEAD, 0, 0);
      __m512i packed = _mm512_loadu_si512(here);
      __m512i parts[2] = {packed, packed};
      if (kind == INT4) {
        parts[0] = _mm512_and_si512(packed, nibbles);
        parts[1] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibbles);
      }
      for (int m = 0; m < M; m++)
        for (int i = 0; i < IN_WORD(kind) / 4; i++) {
          long at = m * in->width + k + 4 * i;
          high[m] = _mm512_dpbusd_epi32(high[m], parts[i], four_of(in->high + at));
          low[m] = _mm512_dpbusd_epi32(low[m], parts[i], four_of(in->low + at));
        }
    }
    ints zero = zeros_of(kind, w, block, p * piece / w->group);
    floats scale = scales_of(w, block, p * piece / w->group);
    for (int m = 0; m < M; m++) {
      ints sum = (ints)high[m] * 256 + (ints)low[m] - zero * in->totals[m * pieces + p];
      out[m] += __builtin_convertvector(sum, floats) * (scale * in->steps[m * pieces + p]);
    }
  }
}
#endif
