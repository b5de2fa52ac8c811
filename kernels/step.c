// Decode steps on a CPU: what lies between the matrices, and a whole layer in one parallel region.

#include "rows.h"
#include "attend.h"

// One query a sequence, and where each belongs: see `Batch` and `Rope` of the op contract.
typedef struct {
  int kind;  // of activations
  long sequences;
  const int64_t *positions, *slots;
  const int32_t *lengths, *table;  // table: each sequence's pages in a row of `width`
  long width;
  const float *cosines, *sines;  // [context, size / 2]
} Step;

// A paged cache of one layer: [pages, kv_heads, page, size] of `kind`, scales [pages, kv_heads, page]
// where that is INT8.
typedef struct {
  int kind;
  void *k, *v;
  float *k_scale, *v_scale;
  long kv_heads, page, size;
} Cache;

// A decoder layer: its matrices, and its norms [dim].
typedef struct {
  const Matrix *qkv, *o, *gate_up, *down;
  const float *attention_norm, *ffn_norm;
  float eps;
} Layer;

static inline void *value_at(const void *x, int kind, long at) { return (char *)x + at * size_of(kind); }

// Pairs of x [size] of `kind` turned by the angle of a position, to `to`, which may be x.
static void turn(const Step *s, long position, long size, const void *x, void *to) {
  const float *cosine = s->cosines + position * (size / 2), *sine = s->sines + position * (size / 2);
  for (long i = 0; i < size / 2; i++) {
    float even = read_value(x, s->kind, 2 * i), odd = read_value(x, s->kind, 2 * i + 1);
    write_value(to, s->kind, 2 * i, even * cosine[i] - odd * sine[i]);
    write_value(to, s->kind, 2 * i + 1, even * sine[i] + odd * cosine[i]);
  }
}

// Heads of x [tokens, heads, size], `stride` values from token to token → to, contiguous.
void step_rope(const Step *s, const void *x, long tokens, long heads, long size, long stride, void *to) {
  for (long t = 0; t < tokens; t++)
    for (long h = 0; h < heads; h++)
      turn(s, s->positions[t], size, value_at(x, s->kind, t * stride + h * size),
           value_at(to, s->kind, (t * heads + h) * size));
}

// The tokens from `token` on that lie in its page, as far as the sequence goes.
static Run run_from(const Step *s, const Cache *c, long sequence, long head, long token) {
  const int32_t *pages = s->table + sequence * s->width + token / c->page;
  long in = token % c->page, row = ((long)pages[0] * c->kv_heads + head) * c->page + in;
  long left = s->lengths[sequence] - token, room = c->page - in, last = left <= room;
  long rows = last ? 0 : ((long)pages[1] - pages[0]) * c->kv_heads * c->page - in;
  return (Run){value_at(c->k, c->kind, row * c->size), value_at(c->v, c->kind, row * c->size),
               c->k_scale + row, c->v_scale + row, last ? left : room, c->size,
               rows * c->size * size_of(c->kind)};
}

// Where one is NaN, all become it, as their sum does.
static void softmax(float *scores, long count) {
  floats most = (floats){0} - INFINITY, sums = {0};
  long whole = count / LANES * LANES;
  for (long t = 0; t < whole; t += LANES) {
    floats x = load_floats(scores + t);
    ints above = (ints)(x > most);
    most = (floats)(((ints)x & above) | ((ints)most & ~above));
  }
  float largest = most[0];
  for (int i = 1; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
  for (long t = whole; t < count; t++) largest = scores[t] > largest ? scores[t] : largest;
  for (long t = 0; t < whole; t += LANES) {
    floats y = exp_of(load_floats(scores + t) - largest);
    store_values(FP32, y, scores, t);
    sums += y;
  }
  float total = total_of(sums);
  for (long t = whole; t < count; t++) total += scores[t] = expf(scores[t] - largest);
  for (long t = 0; t < whole; t += LANES) store_values(FP32, load_floats(scores + t) / total, scores, t);
  for (long t = whole; t < count; t++) scores[t] /= total;
}

// The query heads of one key-value head: q and out [group, size], scores [group, length].
INLINE void attend_head(int kind, const Step *s, const Cache *c, long sequence, long head, long group,
                        long length, const float *q, float *scores, float *out) {
  Run run;
  for (long t = 0; t < length; t += run.count) {
    run = run_from(s, c, sequence, head, t);
    score_run(kind, &run, group, q, scores + t, length);
  }
  for (long g = 0; g < group; g++) softmax(scores + g * length, length);
  for (long t = 0; t < length; t += run.count) {
    run = run_from(s, c, sequence, head, t);
    add_run(kind, &run, group, scores + t, length, out);
  }
}

static void attend_any(const Step *s, const Cache *c, long sequence, long head, long group, const float *q,
                       float *scores, float *out) {
  long length = s->lengths[sequence];
  switch (c->kind) {
    case INT8: return attend_head(INT8, s, c, sequence, head, group, length, q, scores, out);
    case BF16: return attend_head(BF16, s, c, sequence, head, group, length, q, scores, out);
    case FP16: return attend_head(FP16, s, c, sequence, head, group, length, q, scores, out);
    default: return attend_head(FP32, s, c, sequence, head, group, length, q, scores, out);
  }
}

// One key-value head of one sequence: its query heads q → out, both of the activations' kind.
// Returns 0, or 1 without memory.
static int attend_task(const Step *s, const Cache *c, long sequence, long head, long group, const void *q,
                       void *out) {
  long values = group * c->size;
  float *room = malloc((2 * values + group * s->lengths[sequence]) * sizeof(float)), *sum = room + values;
  if (!room) return 1;
  for (long i = 0; i < values; i++) {
    room[i] = read_value(q, s->kind, i) / sqrtf((float)c->size);
    sum[i] = 0;
  }
  attend_any(s, c, sequence, head, group, room, sum + values, sum);
  for (long i = 0; i < values; i++) write_value(out, s->kind, i, sum[i]);
  free(room);
  return 0;
}

// q and out [sequences, heads, size] over the cached tokens. Returns 0, or 1 without memory.
int step_attend(const Step *s, const Cache *c, long heads, const void *q, void *out, int threads) {
  long group = heads / c->kv_heads, values = group * c->size;
  int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(| : failed)
  for (long task = 0; task < s->sequences * c->kv_heads; task++)
    failed |= attend_task(s, c, task / c->kv_heads, task % c->kv_heads, group,
                          value_at(q, s->kind, task * values), value_at(out, s->kind, task * values));
  return failed;
}

// A key or value x [size] into its place of the cache, as codes and a scale where that is INT8.
static void cache_vector(const Step *s, const Cache *c, const void *x, long place, void *to, float *scales) {
  float largest = 0;
  if (c->kind != INT8) memcpy(value_at(to, c->kind, place), x, c->size * size_of(c->kind));
  if (c->kind != INT8) return;
  for (long i = 0; i < c->size; i++) {
    float value = fabsf(read_value(x, s->kind, i));
    if (!(value <= largest) && largest == largest) largest = value;  // NaN stays
  }
  float scale = largest / 127 < FLT_MIN ? 0 : largest / 127;
  scales[place / c->size] = scale;
  for (long i = 0; i < c->size; i++)
    ((int8_t *)to)[place + i] = scale > 0 ? (int8_t)nearbyintf(read_value(x, s->kind, i) / scale) : 0;
}

// The same task from qkv [heads + 2 kv_heads, size] of one sequence: turns the head's queries and key
// in place, and caches key and value first.
static int attend_new(const Step *s, const Cache *c, long sequence, long head, long group, void *qkv,
                      void *out) {
  long position = s->positions[sequence], slot = s->slots[sequence];
  long place = ((slot / c->page * c->kv_heads + head) * c->page + slot % c->page) * c->size;
  void *q = value_at(qkv, s->kind, head * group * c->size);
  void *k = value_at(qkv, s->kind, (group * c->kv_heads + head) * c->size);
  for (long h = 0; h < group; h++) {
    void *query = value_at(q, s->kind, h * c->size);
    turn(s, position, c->size, query, query);
  }
  turn(s, position, c->size, k, k);
  cache_vector(s, c, k, place, c->k, c->k_scale);
  cache_vector(s, c, value_at(k, s->kind, c->kv_heads * c->size), place, c->v, c->v_scale);
  return attend_task(s, c, sequence, head, group, q, value_at(out, s->kind, head * group * c->size));
}

// Hidden states x [sequences, dim] through a layer → y. Returns 0, 1 without memory, or 2 where sizes
// do not fit.
int step_layer(const Step *s, const Cache *c, const Layer *l, const void *x, void *y, int threads) {
  long tokens = s->sequences, wide = l->qkv->rows, joined = l->o->columns, hidden = l->down->columns;
  long dim = l->qkv->columns, most = hidden > joined ? hidden : joined;
  long group = joined / c->size / c->kv_heads;
  if (wide != (group + 2) * c->kv_heads * c->size || joined != group * c->kv_heads * c->size ||
      l->o->rows != dim || l->down->rows != dim || l->gate_up->columns != dim ||
      l->gate_up->rows != 2 * hidden)
    return 2;
  Inputs room = rows_room(tokens, most > dim ? most : dim);
  char *qkv = malloc(tokens * (wide + joined + dim + hidden) * size_of(s->kind));
  char *a = value_at(qkv, s->kind, tokens * wide), *between = value_at(a, s->kind, tokens * joined);
  char *h = value_at(between, s->kind, tokens * dim);
  Product first = {l->qkv, s->kind, tokens, x, l->attention_norm, l->eps, 0, 0, qkv};
  Product second = {l->o, s->kind, tokens, a, 0, 0, x, 0, between};
  Product third = {l->gate_up, s->kind, tokens, between, l->ffn_norm, l->eps, 0, 1, h};
  Product fourth = {l->down, s->kind, tokens, h, 0, 0, between, 0, y};
  int failed = !qkv || !room.wide;
#pragma omp parallel num_threads(threads) if (!failed)
  if (!failed) {
    rows_product(&first, &room);
#pragma omp for schedule(dynamic) reduction(| : failed)
    for (long task = 0; task < tokens * c->kv_heads; task++) {
      long sequence = task / c->kv_heads;
      failed |= attend_new(s, c, sequence, task % c->kv_heads, group,
                           value_at(qkv, s->kind, sequence * wide), value_at(a, s->kind, sequence * joined));
    }
    rows_product(&second, &room);
    rows_product(&third, &room);
    rows_product(&fourth, &room);
  }
  free(qkv);
  free(room.wide);
  return failed;
}
