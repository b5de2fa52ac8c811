// A row of float32, float16 or bfloat16 weights times M tokens; kind and M are constants here.

// The last, partial vector is read through a copy.
INLINE void add_products(int kind, int M, const void *row, const Inputs *in, long end,
                         floats sum[][2]) {
  long at = 0;
  for (; at + 2 * LANES <= end; at += 2 * LANES)
    for (int half = 0; half < 2; half++) {
      floats weights = load_values(kind, row, at + half * LANES);
      for (int m = 0; m < M; m++)
        sum[m][half] += weights * load_floats(in->wide + m * in->width + at + half * LANES);
    }
  for (; at < end; at += LANES) {
    char rest[4 * LANES] = {0};
    long count = end - at < LANES ? end - at : LANES;
    memcpy(rest, (const char *)row + at * size_of(kind), count * size_of(kind));
    floats weights = load_values(kind, rest, 0);
    for (int m = 0; m < M; m++) sum[m][0] += weights * load_floats(in->wide + m * in->width + at);
  }
}

INLINE void dense_row(int kind, int M, const Matrix *w, const Inputs *in, long n, float *out) {
  floats sum[MOST][2] = {{{0}}};
  add_products(kind, M, (const char *)w->data + n * w->columns * size_of(kind), in, w->columns, sum);
  for (int m = 0; m < M; m++) out[m] = total_of(sum[m][0] + sum[m][1]);
}

#ifdef __AVX512BF16__
INLINE __m512 dot_bf16(__m512 sum, __m512i weights, const uint16_t *x) {
  return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)_mm512_loadu_si512(x));
}

// bfloat16 weights and activations: 32 products an instruction.
INLINE void bf16_row(int M, const Matrix *w, const Inputs *in, long n, float *out) {
  const uint16_t *row = (const uint16_t *)w->data + n * w->columns;
  __m512 even[MOST], odd[MOST];
  for (int m = 0; m < M; m++) even[m] = odd[m] = _mm512_setzero_ps();
  long k = 0;
  for (; k + 64 <= w->columns; k += 64) {
    __builtin_prefetch((const char *)(row + k) + AHEAD, 0, 0);
    __builtin_prefetch((const char *)(row + k) + AHEAD + 64, 0, 0);
    __m512i first = _mm512_loadu_si512(row + k), second = _mm512_loadu_si512(row + k + 32);
    for (int m = 0; m < M; m++) {
      const uint16_t *x = in->narrow + m * in->width + k;
      even[m] = dot_bf16(even[m], first, x);
      odd[m] = dot_bf16(odd[m], second, x + 32);
    }
  }
  for (; k < w->columns; k += 32) {
    long left = w->columns - k;
    __mmask32 some = left < 32 ? (__mmask32)((1u << left) - 1) : 0xffffffff;
    __m512i weights = _mm512_maskz_loadu_epi16(some, row + k);
    for (int m = 0; m < M; m++) even[m] = dot_bf16(even[m], weights, in->narrow + m * in->width + k);
  }
  for (int m = 0; m < M; m++) out[m] = _mm512_reduce_add_ps(_mm512_add_ps(even[m], odd[m]));
}

// The sums of the lanes of v[4 r + {0, 2, 1, 3}[m]] in lane 4 m + r.
INLINE __m512 totals_of(__m512 v[LANES]) {
  for (int i = 0; i < 8; i++)
    v[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[i], v[i + 8]), _mm512_unpackhi_ps(v[i], v[i + 8]));
  for (int i = 0; i < 4; i++)
    v[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[i], v[i + 4]), _mm512_unpackhi_ps(v[i], v[i + 4]));
  for (int half = 2; half; half /= 2)
    for (int i = 0; i < half; i++)
      v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[i], v[i + half], 0x88),
                           _mm512_shuffle_f32x4(v[i], v[i + half], 0xdd));
  return v[0];
}

// 32 columns, of which `some` are there, of TILE rows times M tokens: each vector is used for all.
INLINE void add_tile(int M, const uint16_t *const *rows, const Inputs *in, long k, __mmask32 some,
                     __m512 sum[TILE][MOST]) {
  __m512i weights[TILE];
  for (int r = 0; r < TILE; r++) weights[r] = _mm512_maskz_loadu_epi16(some, rows[r] + k);
  for (int m = 0; m < M; m++)
    for (int r = 0; r < TILE; r++)
      sum[r][m] = dot_bf16(sum[r][m], weights[r], in->narrow + m * in->width + k);
}

// Columns `k` to `end` of TILE rows times M tokens: out[token][row]. `later`: memory of which `lines`
// lines are asked for with every 32 columns.
INLINE void bf16_tile(int M, const uint16_t *const *rows, const Inputs *in, long k, long end,
                      const char *later, int lines, float *out) {
  static const int place[MOST] = {0, 2, 1, 3};
  __m512 sum[TILE][MOST], v[LANES];
  for (int r = 0; r < TILE; r++)
    for (int m = 0; m < MOST; m++) sum[r][m] = _mm512_setzero_ps();
  for (; k + 32 <= end; k += 32) {
    for (int i = 0; i < lines; i++, later += 64) __builtin_prefetch(later, 0, 2);
    add_tile(M, rows, in, k, 0xffffffff, sum);
  }
  if (k < end) add_tile(M, rows, in, k, (__mmask32)((1u << (end - k)) - 1), sum);
  for (int r = 0; r < TILE; r++)
    for (int m = 0; m < MOST; m++) v[TILE * r + place[m]] = sum[r][m];
  _mm512_storeu_ps(out, totals_of(v));
}
#endif
