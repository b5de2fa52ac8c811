// Few tokens times a matrix on a CPU, at the speed of its memory: each weight is read once.
//
//   y = epilogue(W · prologue(x))     prologue: nothing, or RMSNorm
//                                     epilogue: nothing, + residual, or silu(gate) · up
//
// Portable C with vector types, and AVX-512 paths for 16-bit activations. Sums are float32.

#include "rows.h"
#include "rows_dense.h"
#include "rows_packed.h"

enum Way { PLAIN, BF16_DOTS, BYTE_DOTS };

// Which kernel takes a matrix and activations of `kind`.
static enum Way way_of(const Matrix *w, int kind) {
#ifdef __AVX512BF16__
  if (kind == BF16 && w->kind == BF16) return BF16_DOTS;
#endif
#ifdef __AVX512VNNI__
  if (kind != FP32 && (w->kind == INT4 || w->kind == INT8)) return BYTE_DOTS;
#endif
  (void)w, (void)kind;
  return PLAIN;
}

// x [columns] of `kind`, a constant here, widened to [width].
INLINE void widen(int kind, const void *x, long columns, long width, float *to) {
  long whole = columns / LANES * LANES;
  for (long k = 0; k < whole; k += LANES) store_values(FP32, load_values(kind, x, k), to, k);
  for (long k = whole; k < width; k++) to[k] = k < columns ? read_value(x, kind, k) : 0;
}

static void normalize(const float *weight, float eps, long columns, long width, float *x) {
  floats squares = {0};
  for (long k = 0; k < width; k += LANES) squares += load_floats(x + k) * load_floats(x + k);
  float scale = 1 / sqrtf(total_of(squares) / columns + eps);
  for (long k = 0; k < columns; k++) x[k] *= scale * weight[k];
}

Inputs rows_room(long tokens, long columns) {
  long width = (columns + BLOCK - 1) / BLOCK * BLOCK, size = tokens * width;
  Inputs in = {.tokens = tokens, .width = width};
  in.wide = aligned_alloc(64, (size * 8 + size / 32 * 8 + 63) / 64 * 64);
  in.narrow = (uint16_t *)(in.wide + size);
  in.high = (int8_t *)(in.narrow + size);
  in.low = in.high + size;
  in.steps = (float *)(in.low + size);
  in.totals = (int32_t *)(in.steps + size / 32);
  return in;
}

// Widens and normalizes x, and brings it into the form of the kernel.
static void read_inputs(const Product *p, Inputs *in) {
  const Matrix *w = p->matrix;
  in->width = (w->columns + BLOCK - 1) / BLOCK * BLOCK;
  for (long m = 0; m < p->tokens; m++) {
    const char *from = (const char *)p->x + m * w->columns * size_of(p->kind);
    float *to = in->wide + m * in->width;
    if (p->kind == BF16)
      widen(BF16, from, w->columns, in->width, to);
    else if (p->kind == FP16)
      widen(FP16, from, w->columns, in->width, to);
    else
      widen(FP32, from, w->columns, in->width, to);
    if (p->norm) normalize(p->norm, p->eps, w->columns, in->width, to);
  }
  if (way_of(w, p->kind) == BF16_DOTS)
    for (long k = 0; k < in->tokens * in->width; k += LANES)
      store_values(BF16, load_floats(in->wide + k), in->narrow, k);
#ifdef __AVX512VNNI__
  if (way_of(w, p->kind) == BYTE_DOTS) to_fixed_point(in, piece_of(w));
#endif
}

// Tokens `first` and the next MOST − 1, as far as there are any.
static Inputs some_of(const Inputs *all, long first, long piece) {
  long left = all->tokens - first, skip = first * all->width;
  Inputs in = {left < MOST ? left : MOST, all->width, all->wide + skip, all->narrow + skip,
               all->high + skip, all->low + skip, all->steps + skip / piece, all->totals + skip / piece};
  return in;
}

// Where row n of a dense matrix lies, which has all gates before all ups where it has them.
static inline long row_of(const Product *p, long n) {
  return p->swiglu ? n % 2 * (p->matrix->rows / 2) + n / 2 : n;
}

#ifdef __AVX512BF16__
// A block's rows TILE by TILE, DEEP columns after DEEP, which all tokens of a pass share in the cache.
// Of the next block a part is asked for with each of the `passes` over the tokens.
INLINE void bf16_block(int M, const Product *p, const Inputs *in, long block, long pass, long passes,
                       floats *out) {
  const Matrix *w = p->matrix;
  const uint16_t *data = w->data, *rows[TILE];
  long lines = (TILE + passes - 1) / passes;
  if (pass * lines >= TILE) lines = 0;
  for (int m = 0; m < M; m++) out[m] = (floats){0};
  for (long k = 0; k < w->columns; k += DEEP)
    for (long i = 0, n = block * LANES; i < LANES && n + i < w->rows; i += TILE) {
      for (long r = 0; r < TILE; r++)
        rows[r] = data + row_of(p, n + i + r < w->rows ? n + i + r : n + i) * w->columns;
      // TILE rows of the next block that lie one behind the other: of its gates, then of its ups
      long next = p->swiglu ? row_of(p, n + LANES + i / 8) + i % 8 : n + LANES + i;
      const char *later = (const char *)(data + (next + pass * lines) * w->columns + k);
      long end = k + DEEP < w->columns ? k + DEEP : w->columns;
      float sums[LANES];
      bf16_tile(M, rows, in, k, end, later, lines, sums);
      for (int m = 0; m < M; m++)
        for (int r = 0; r < TILE; r++) out[m][i + r] += sums[TILE * m + r];
    }
}
#endif

// 16 rows times at most MOST tokens, M of them: out[token][row].
INLINE void block_of_rows(enum Way way, int M, const Product *p, const Inputs *in, long block,
                          long pass, long passes, floats *out) {
  const Matrix *w = p->matrix;
  float row[MOST] = {0};
  if (way == PLAIN && w->kind == INT4) return packed_rows(INT4, M, w, in, block, out);
  if (way == PLAIN && w->kind == INT8) return packed_rows(INT8, M, w, in, block, out);
#ifdef __AVX512VNNI__
  if (way == BYTE_DOTS && w->kind == INT4) return vnni_rows(INT4, M, w, in, block, out);
  if (way == BYTE_DOTS) return vnni_rows(INT8, M, w, in, block, out);
#endif
#ifdef __AVX512BF16__
  if (way == BF16_DOTS && passes > 1) return bf16_block(M, p, in, block, pass, passes, out);
#endif
  (void)pass, (void)passes;  // a few tokens take the rows one by one, as they lie in memory
  for (long i = 0, n = block * LANES; i < LANES && n + i < w->rows; i++) {
#ifdef __AVX512BF16__
    if (way == BF16_DOTS) bf16_row(M, w, in, row_of(p, n + i), row);
#endif
    if (way == PLAIN && w->kind == FP32) dense_row(FP32, M, w, in, row_of(p, n + i), row);
    if (way == PLAIN && w->kind == FP16) dense_row(FP16, M, w, in, row_of(p, n + i), row);
    if (way == PLAIN && w->kind == BF16) dense_row(BF16, M, w, in, row_of(p, n + i), row);
    for (int m = 0; m < M; m++) out[m][i] = row[m];
  }
}

static void any_rows(enum Way way, const Product *p, const Inputs *in, long block, long pass,
                     long passes, floats *out) {
  switch (in->tokens) {
    case 1: return block_of_rows(way, 1, p, in, block, pass, passes, out);
    case 2: return block_of_rows(way, 2, p, in, block, pass, passes, out);
    case 3: return block_of_rows(way, 3, p, in, block, pass, passes, out);
    default: return block_of_rows(way, 4, p, in, block, pass, passes, out);
  }
}

// Writes y[token][n …] from the sums of one block of rows.
INLINE void write_block(const Product *p, int kind, long token, long n, floats sums) {
  long rows = p->matrix->rows, at = token * rows + n, count = rows - n < LANES ? rows - n : LANES;
  floats gated = p->swiglu ? sums / (1 + exp_of(-sums)) : sums;
  if (p->swiglu)
    for (long i = 0; i < count; i += 2) write_value(p->y, kind, (at + i) / 2, gated[i] * sums[i + 1]);
  else if (count == LANES)
    store_values(kind, p->residual ? sums + load_values(kind, p->residual, at) : sums, p->y, at);
  else
    for (long i = 0; i < count; i++) {
      float rest = p->residual ? read_value(p->residual, kind, at + i) : 0;
      write_value(p->y, kind, at + i, sums[i] + rest);
    }
}

static void write_any(const Product *p, long token, long n, floats sums) {
  switch (p->kind) {
    case BF16: return write_block(p, BF16, token, n, sums);
    case FP16: return write_block(p, FP16, token, n, sums);
    default: return write_block(p, FP32, token, n, sums);
  }
}

void rows_product(const Product *p, Inputs *all) {
  enum Way way = way_of(p->matrix, p->kind);
#pragma omp single
  read_inputs(p, all);
#pragma omp for schedule(guided, AT_ONCE)
  for (long block = 0; block < (p->matrix->rows + LANES - 1) / LANES; block++)
    for (long m = 0; m < p->tokens; m += MOST) {
      Inputs in = some_of(all, m, piece_of(p->matrix));
      floats out[MOST];
      any_rows(way, p, &in, block, m / MOST, (p->tokens + MOST - 1) / MOST, out);
      for (long j = 0; j < in.tokens; j++) write_any(p, m + j, block * LANES, out[j]);
    }
}

// Returns 0, or 1 without memory.
int rows_matmul(const Product *product, int threads) {
  Inputs room = rows_room(product->tokens, product->matrix->columns);
  if (!room.wide) return 1;
#pragma omp parallel num_threads(threads)
  rows_product(product, &room);
  free(room.wide);
  return 0;
}

// Rows `first` to `first + count`, multiples of 16, of a packed matrix, transposed: to [columns, count]
// of `kind`.
void rows_unpack(const Matrix *w, long first, long count, int kind, void *to, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long block = 0; block < count / LANES; block++) {
    char *here = (char *)to + block * LANES * size_of(kind);
    long from = first / LANES + block;
    if (w->kind == INT4 && kind == BF16)
      unpack_rows(INT4, w, from, BF16, here, count);
    else if (w->kind == INT4 && kind == FP16)
      unpack_rows(INT4, w, from, FP16, here, count);
    else if (w->kind == INT4)
      unpack_rows(INT4, w, from, FP32, here, count);
    else if (kind == BF16)
      unpack_rows(INT8, w, from, BF16, here, count);
    else if (kind == FP16)
      unpack_rows(INT8, w, from, FP16, here, count);
    else
      unpack_rows(INT8, w, from, FP32, here, count);
  }
}
