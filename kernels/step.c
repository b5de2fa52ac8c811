// What a decode step does between its matrices on a CPU: rotation, and attention of single queries.

#include "rows.h"

// x [tokens, heads, size] of `kind`, `stride` values from token to token → to, contiguous; each pair
// turned by the angle of its position, whose cos and sin are [context, size / 2].
void step_rope(const void *x, int kind, long tokens, long heads, long size, long stride,
               const float *cosines, const float *sines, const int64_t *positions, void *to) {
  for (long t = 0; t < tokens; t++) {
    const float *cosine = cosines + positions[t] * (size / 2);
    const float *sine = sines + positions[t] * (size / 2);
    for (long h = 0; h < heads; h++)
      for (long i = 0; i < size / 2; i++) {
        long from = t * stride + h * size + 2 * i, at = (t * heads + h) * size + 2 * i;
        float even = read_value(x, kind, from), odd = read_value(x, kind, from + 1);
        write_value(to, kind, at, even * cosine[i] - odd * sine[i]);
        write_value(to, kind, at + 1, even * sine[i] + odd * cosine[i]);
      }
  }
}

// A paged cache of one layer: [pages, kv_heads, page, size] of `kind`, scales [pages, kv_heads, page]
// where that is INT8; each sequence's pages in a row of table [sequences, width].
typedef struct {
  int kind;
  const void *k, *v;
  const float *k_scale, *v_scale;
  const int32_t *table;
  long width, kv_heads, page, size;
} Cache;

// The first value of a token's vector, and with it the place of its scale times `size`.
static long place_of(const Cache *c, long sequence, long head, long token) {
  long page = c->table[sequence * c->width + token / c->page];
  return ((page * c->kv_heads + head) * c->page + token % c->page) * c->size;
}

static inline float read_cached(const void *from, int kind, long at) {
  return kind == INT8 ? ((const int8_t *)from)[at] : read_value(from, kind, at);
}

INLINE float dot(int kind, const float *q, const void *k, long at, long size) {
  floats sum = {0};
  long i = 0;
  for (; i + LANES <= size; i += LANES) sum += load_floats(q + i) * load_values(kind, k, at + i);
  float total = total_of(sum);
  for (; i < size; i++) total += q[i] * read_cached(k, kind, at + i);
  return total;
}

INLINE void add_scaled(int kind, float weight, const void *v, long at, long size, float *sum) {
  long i = 0;
  for (; i + LANES <= size; i += LANES) {
    floats value = load_floats(sum + i) + load_values(kind, v, at + i) * weight;
    memcpy(sum + i, &value, sizeof value);
  }
  for (; i < size; i++) sum[i] += weight * read_cached(v, kind, at + i);
}

static void softmax(float *scores, long count) {
  float largest = -INFINITY, total = 0;
  for (long t = 0; t < count; t++) largest = scores[t] > largest || scores[t] != scores[t] ? scores[t] : largest;
  for (long t = 0; t < count; t++) total += scores[t] = expf(scores[t] - largest);
  for (long t = 0; t < count; t++) scores[t] /= total;
}

// The query heads of one key-value head: q and out [group, size], scores [group, length].
INLINE void attend_head(int kind, const Cache *c, long sequence, long head, long group, long length,
                        const float *q, float *scores, float *out) {
  for (long t = 0; t < length; t++) {
    long at = place_of(c, sequence, head, t);
    float scale = kind == INT8 ? c->k_scale[at / c->size] : 1;
    for (long g = 0; g < group; g++)
      scores[g * length + t] = scale * dot(kind, q + g * c->size, c->k, at, c->size);
  }
  for (long g = 0; g < group; g++) softmax(scores + g * length, length);
  for (long t = 0; t < length; t++) {
    long at = place_of(c, sequence, head, t);
    float scale = kind == INT8 ? c->v_scale[at / c->size] : 1;
    for (long g = 0; g < group; g++)
      add_scaled(kind, scale * scores[g * length + t], c->v, at, c->size, out + g * c->size);
  }
}

// One query a sequence, q and out [sequences, heads, size] of `q_kind`, over `lengths` cached tokens.
// Returns 0, or 1 without memory.
int step_attend(const void *q, int q_kind, long sequences, long heads, const int32_t *lengths,
                int kind, const void *k, const void *v, const float *k_scale, const float *v_scale,
                const int32_t *table, long width, long kv_heads, long page, long size, void *out,
                int threads) {
  const Cache c = {kind, k, v, k_scale, v_scale, table, width, kv_heads, page, size};
  long group = heads / kv_heads, values = group * size;
  int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(| : failed)
  for (long task = 0; task < sequences * kv_heads; task++) {
    long s = task / kv_heads, head = task % kv_heads, length = lengths[s], at = task * values;
    float *room = malloc((2 * values + group * length) * sizeof(float));
    failed |= !room;
    if (!room) continue;
    float *sum = room + values, *scores = sum + values;
    for (long i = 0; i < values; i++) {
      room[i] = read_value(q, q_kind, at + i) / sqrtf((float)size);
      sum[i] = 0;
    }
    if (kind == INT8)
      attend_head(INT8, &c, s, head, group, length, room, scores, sum);
    else if (kind == BF16)
      attend_head(BF16, &c, s, head, group, length, room, scores, sum);
    else if (kind == FP16)
      attend_head(FP16, &c, s, head, group, length, room, scores, sum);
    else
      attend_head(FP32, &c, s, head, group, length, room, scores, sum);
    for (long i = 0; i < values; i++) write_value(out, q_kind, at + i, sum[i]);
    free(room);
  }
  return failed;
}
