// Attention of one query a sequence: the query heads that share a run of keys and values. Every
// number is widened once for four heads, and 16 sums are under way at once.

// Keys and values of tokens that lie one behind the other, as in a page: [count, size].
typedef struct {
  const void *k, *v;
  const float *k_scale, *v_scale;  // [count], of INT8
  long count, size;
  long next;  // bytes from a number to that of the next run, which is fetched meanwhile
} Run;

enum { HEADS = 4, TOKENS = 4, WIDE = 4, LINE = 64 };

// Asks for what the next run has in the place of `count` tokens from `first` on.
INLINE void fetch_next(int kind, const Run *r, const void *from, long first, long count) {
  const char *start = (const char *)from + r->next + first * r->size * size_of(kind);
  for (long at = 0; at < count * r->size * size_of(kind); at += LINE) __builtin_prefetch(start + at);
}

INLINE float read_cached(const void *from, int kind, long at) {
  return kind == INT8 ? ((const int8_t *)from)[at] : read_value(from, kind, at);
}

// Each 2 · step lanes of a and of b in two, their halves added: those of a, those of b, and so on.
INLINE floats fold(floats a, floats b, const int step) {
#ifdef __AVX512F__
  words first, second;
  for (int i = 0; i < LANES; i++) {
    first[i] = i / (2 * step) * (2 * step) + i % step + i / step % 2 * LANES;
    second[i] = first[i] + step;
  }
  return (floats)_mm512_permutex2var_ps((__m512)a, (__m512i)first, (__m512)b) +
         (floats)_mm512_permutex2var_ps((__m512)a, (__m512i)second, (__m512)b);
#else
  floats both;
  for (int i = 0; i < LANES; i++) {
    const floats *from = i / step % 2 ? &b : &a;
    int at = i / (2 * step) * (2 * step) + i % step;
    both[i] = (*from)[at] + (*from)[at + step];
  }
  return both;
#endif
}

// The totals of 16 vectors, in order; lanes are paired as `total_of` does.
INLINE floats totals_of(const floats *sums) {
  floats parts[8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) parts[j] = fold(sums[j], sums[j + 8], 8);
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) parts[j] = fold(parts[j], parts[j + 4], 4);
  for (int j = 0; j < 2; j++) parts[j] = fold(parts[j], parts[j + 2], 2);
  return fold(parts[0], parts[1], 1);
}

// Products of heads · tokens = 16 pairs of queries [heads, size] and keys → scores [heads, stride].
INLINE void score_block(int kind, const int heads, const int tokens, const Run *r, long first,
                        const float *q, float *scores, long stride) {
  floats sums[LANES] = {0};
  long i = 0;
  for (; i + LANES <= r->size; i += LANES) {
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) {
      floats key = load_values(kind, r->k, (first + t) * r->size + i);
#pragma GCC unroll 4
      for (int h = 0; h < heads; h++) sums[h * tokens + t] += load_floats(q + h * r->size + i) * key;
    }
  }
  floats totals = totals_of(sums);
  for (; i < r->size; i++)
    for (int j = 0; j < LANES; j++)
      totals[j] += q[j / tokens * r->size + i] *
                   read_cached(r->k, kind, (first + j % tokens) * r->size + i);
  for (int h = 0; h < heads; h++)
    memcpy(scores + h * stride + first, (float *)&totals + h * tokens, tokens * sizeof(float));
}

// The same for fewer tokens than a block has.
INLINE void score_few(int kind, const Run *r, const float *q, float *scores) {
  for (long t = 0; t < r->count; t++) {
    floats sum = {0};
    long i = 0;
    for (; i + LANES <= r->size; i += LANES)
      sum += load_floats(q + i) * load_values(kind, r->k, t * r->size + i);
    scores[t] = total_of(sum);
    for (; i < r->size; i++) scores[t] += q[i] * read_cached(r->k, kind, t * r->size + i);
  }
}

// Products of queries [heads, size] and all keys of a run; the last block overlaps the one before.
INLINE void score_heads(int kind, const int heads, const int tokens, const Run *r, const float *q,
                        float *scores, long stride, int fetch) {
  for (long t = 0; t < r->count && r->count >= tokens; t += tokens) {
    long first = t + tokens > r->count ? r->count - tokens : t;
    if (fetch) fetch_next(kind, r, r->k, first, tokens);
    score_block(kind, heads, tokens, r, first, q, scores, stride);
  }
  if (r->count < tokens)
    for (int h = 0; h < heads; h++) score_few(kind, r, q + h * r->size, scores + h * stride);
  if (kind == INT8)
    for (int h = 0; h < heads; h++)
      for (long t = 0; t < r->count; t++) scores[h * stride + t] *= r->k_scale[t];
}

// Values of 16 · wide columns from `at` on, weighted [heads, stride], added to sums [heads, size].
INLINE void add_block(int kind, const int heads, const int wide, const Run *r, long at,
                      const float *weights, long stride, float *sums, int fetch) {
  floats kept[HEADS * WIDE];
#pragma GCC unroll 16
  for (int j = 0; j < heads * wide; j++)
    kept[j] = load_floats(sums + j / wide * r->size + at + j % wide * LANES);
  for (long t = 0; t < r->count; t++) {
    if (fetch) fetch_next(kind, r, r->v, t, 1);
#pragma GCC unroll 4
    for (int c = 0; c < wide; c++) {
      floats value = load_values(kind, r->v, t * r->size + at + c * LANES);
#pragma GCC unroll 4
      for (int h = 0; h < heads; h++) kept[h * wide + c] += value * weights[h * stride + t];
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < heads * wide; j++)
    memcpy(sums + j / wide * r->size + at + j % wide * LANES, &kept[j], sizeof kept[j]);
}

// All values of a run; the weights of INT8 are multiplied by its scales in place.
INLINE void add_heads(int kind, const int heads, const Run *r, float *weights, long stride, float *sums,
                      int fetch) {
  long at = 0;
  if (kind == INT8)
    for (int h = 0; h < heads; h++)
      for (long t = 0; t < r->count; t++) weights[h * stride + t] *= r->v_scale[t];
  for (; at + WIDE * LANES <= r->size; at += WIDE * LANES)
    add_block(kind, heads, WIDE, r, at, weights, stride, sums, fetch && !at);
  for (; at + LANES <= r->size; at += LANES)
    add_block(kind, heads, 1, r, at, weights, stride, sums, fetch && !at);
  for (; at < r->size; at++)
    for (int h = 0; h < heads; h++)
      for (long t = 0; t < r->count; t++)
        sums[h * r->size + at] += weights[h * stride + t] * read_cached(r->v, kind, t * r->size + at);
}

// Scores [group, stride] of a run for queries [group, size].
INLINE void score_run(int kind, const Run *r, long group, const float *q, float *scores, long stride) {
  long h = 0;
  for (; h + HEADS <= group; h += HEADS)
    score_heads(kind, HEADS, TOKENS, r, q + h * r->size, scores + h * stride, stride, r->next && !h);
  for (; h < group; h++)
    score_heads(kind, 1, LANES, r, q + h * r->size, scores + h * stride, stride, r->next && !h);
}

// Weighted values of a run added to sums [group, size].
INLINE void add_run(int kind, const Run *r, long group, float *weights, long stride, float *sums) {
  long h = 0;
  for (; h + HEADS <= group; h += HEADS)
    add_heads(kind, HEADS, r, weights + h * stride, stride, sums + h * r->size, r->next && !h);
  for (; h < group; h++)
    add_heads(kind, 1, r, weights + h * stride, stride, sums + h * r->size, r->next && !h);
}
