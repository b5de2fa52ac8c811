// Flash attention of many queries: causal, over the paged keys and values of many sequences.
//
// A block has a tile of rows, which are queries and the query heads of one key-value head: row i is
// query i / group and head i % group. Keys and values come to it a tile of tokens and CHUNK numbers
// of a head at a time, a stage, as floats in shared memory; the next stage is on its way meanwhile.
// Half a warp has FEW rows. Each of its threads computes their scores for every 16th token, and
// 4 · CHUNKS numbers of their outputs.

#include "paged.cuh"

constexpr int THREADS = 128, ROWS = 32, TOKENS = 32, CHUNK = 64;
constexpr int CHUNKS = (HEAD + CHUNK - 1) / CHUNK;
constexpr int SIDE = 16;                     // threads that share rows
constexpr int FEW = ROWS * SIDE / THREADS;   // rows of a thread
constexpr int EVERY = TOKENS / SIDE;         // tokens of a thread
constexpr int IN_CHUNK = CHUNK / PIECE;      // pieces
constexpr int TURNS = TOKENS * IN_CHUNK / THREADS;
constexpr int PAD = 4;                       // so that rows begin in different banks

struct alignas(16) Four { float x[4]; };

struct Shared {
    float q[ROWS][CHUNKS * CHUNK + PAD];
    float stage[TOKENS][CHUNK + PAD];
    float weights[ROWS][TOKENS + PAD];       // of tokens in the sums of values
    unsigned rows[2][TOKENS];                // vectors of the cache: of this tile and the next
};

__device__ inline Four load_four(const float* at) { return *reinterpret_cast<const Four*>(at); }

// A thread's share of a stage, as it lies in the cache.
struct Fetched {
    Pack<CACHE> pieces[TURNS];
    float scales[TURNS];
};

// Stages of a tile are chunks of keys, then those of values.
__device__ inline Fetched fetch(const Cache& cache, const unsigned* rows, int stage) {
    Fetched found;
    bool is_key = stage < CHUNKS;
#pragma unroll
    for (int t = 0; t < TURNS; t++) {
        int i = t * THREADS + threadIdx.x, at = stage % CHUNKS * CHUNK + i % IN_CHUNK * PIECE;
        unsigned row = rows[i / IN_CHUNK];
        found.pieces[t].raw = {};
        found.scales[t] = 1.0f;
        if (at >= HEAD) continue;
        found.pieces[t] = load_piece((is_key ? cache.keys : cache.values) + at, row);
        if (QUANTIZED) found.scales[t] = (is_key ? cache.key_scales : cache.value_scales)[row];
    }
    return found;
}

__device__ inline void put(const Fetched& found, float (&stage)[TOKENS][CHUNK + PAD]) {
#pragma unroll
    for (int t = 0; t < TURNS; t++) {
        int i = t * THREADS + threadIdx.x;
        float* to = &stage[i / IN_CHUNK][i % IN_CHUNK * PIECE];
#pragma unroll
        for (int j = 0; j < PIECE; j++) to[j] = number_of(found.pieces[t], j) * found.scales[t];
    }
}

// Adds a chunk's share to the scores.
__device__ inline void add_scores(
    const Shared& shared, int chunk, int first, int side, float (&scores)[FEW][EVERY]) {
    constexpr int STEP = 4;
#pragma unroll 4
    for (int d = 0; d < CHUNK; d += STEP) {
        if (chunk * CHUNK + d >= HEAD) break;
        Four keys[EVERY];
#pragma unroll
        for (int e = 0; e < EVERY; e++) keys[e] = load_four(&shared.stage[e * SIDE + side][d]);
#pragma unroll
        for (int r = 0; r < FEW; r++) {
            Four q = load_four(&shared.q[first + r][chunk * CHUNK + d]);
#pragma unroll
            for (int e = 0; e < EVERY; e++)
#pragma unroll
                for (int j = 0; j < STEP; j++)
                    scores[r][e] = fmaf(q.x[j], keys[e].x[j], scores[r][e]);
        }
    }
}

// Adds the tile's share to a chunk of the outputs.
__device__ inline void add_values(
    const Shared& shared, int first, int side, float (&out)[FEW][4]) {
#pragma unroll 2
    for (int t = 0; t < TOKENS; t += 4) {
        Four weights[FEW];
#pragma unroll
        for (int r = 0; r < FEW; r++) weights[r] = load_four(&shared.weights[first + r][t]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            Four value = load_four(&shared.stage[t + i][side * 4]);
#pragma unroll
            for (int r = 0; r < FEW; r++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    out[r][j] = fmaf(weights[r].x[i], value.x[j], out[r][j]);
        }
    }
}

// Over the threads that share rows.
__device__ inline float side_max(float x) {
    for (int step = SIDE / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
    return x;
}

__device__ inline float side_sum(float x) {
    for (int step = SIDE / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
}

// Blocks: tile; key-value head. q: [T, heads, HEAD], rows of tokens `stride` numbers apart. tiles:
// [tiles, 2], sequence and first row, the rest as in `Batch`; table: [S, width]. y: [T, heads, HEAD].
extern "C" __global__ void __launch_bounds__(THREADS) prefill(
    const TYPE* q, const CACHE* keys, const CACHE* values, const float* key_scales,
    const float* value_scales, const int* tiles, const int* starts, const int* lengths,
    const int* table, TYPE* y, int kv_heads, int group, int page, int divide, int width, int stride,
    float scale) {
    __shared__ Shared shared;
    Cache cache = {keys, values, key_scales, value_scales, kv_heads, page, (unsigned)divide};
    int i_s = tiles[2 * blockIdx.x], top_row = tiles[2 * blockIdx.x + 1], i_head = blockIdx.y;
    int begin = starts[i_s], length = lengths[i_s], rows = (starts[i_s + 1] - begin) * group;
    int past = length - rows / group, side = threadIdx.x % SIDE, first = threadIdx.x / SIDE * FEW;
    int seen = past + (min(top_row + ROWS, rows) - 1) / group + 1;  // tokens, by any row
    table += (long long)i_s * width;
    for (int i = threadIdx.x; i < ROWS * CHUNKS * CHUNK; i += THREADS) {
        int r = i / (CHUNKS * CHUNK), d = i % (CHUNKS * CHUNK), row = min(top_row + r, rows - 1);
        long long token = begin + row / group;
        int at = (i_head * group + row % group) * HEAD + d;
        shared.q[r][d] = d < HEAD ? to_float(q[token * stride + at]) * scale : 0.0f;
    }

    float tops[FEW], sums[FEW] = {}, out[CHUNKS][FEW][4] = {};
    int last[FEW];  // token that a row sees
#pragma unroll
    for (int r = 0; r < FEW; r++) {
        tops[r] = LOWEST;
        last[r] = past + min(top_row + first + r, rows - 1) / group;
    }
    auto find_rows = [&](int start) {
        if (threadIdx.x < TOKENS)
            shared.rows[start / TOKENS % 2][threadIdx.x] =
                row_of(cache, table, i_head, min(start + (int)threadIdx.x, length - 1));
    };
    find_rows(0);
    __syncthreads();
    Fetched fetched = fetch(cache, shared.rows[0], 0);
    for (int start = 0; start < seen; start += TOKENS) {
        float scores[FEW][EVERY] = {};
#pragma unroll
        for (int stage = 0; stage < 2 * CHUNKS; stage++) {
            __syncthreads();
            put(fetched, shared.stage);
            if (stage == 0) find_rows(start + TOKENS);
            __syncthreads();
            int next = (stage + 1) % (2 * CHUNKS), tile = start / TOKENS + (next == 0);
            fetched = fetch(cache, shared.rows[tile % 2], next);
            if (stage >= CHUNKS) {
                add_values(shared, first, side, out[stage - CHUNKS]);
                continue;
            }
            add_scores(shared, stage, first, side, scores);
            if (stage < CHUNKS - 1) continue;
#pragma unroll
            for (int r = 0; r < FEW; r++) {
                float top = tops[r], sum = 0.0f;
#pragma unroll
                for (int e = 0; e < EVERY; e++) {
                    if (start + e * SIDE + side > last[r]) scores[r][e] = UNSEEN;
                    top = fmaxf(top, scores[r][e]);
                }
                top = side_max(top);
#pragma unroll
                for (int e = 0; e < EVERY; e++) {
                    float weight = two_to(scores[r][e] - top);
                    shared.weights[first + r][e * SIDE + side] = weight;
                    sum += weight;
                }
                float shrink = two_to(tops[r] - top);
                tops[r] = top;
                sums[r] = sums[r] * shrink + side_sum(sum);
#pragma unroll
                for (int n = 0; n < CHUNKS * 4; n++) out[n / 4][r][n % 4] *= shrink;
            }
        }
    }
#pragma unroll
    for (int n = 0; n < FEW * CHUNKS * 4; n++) {
        int r = n / (CHUNKS * 4), c = n / 4 % CHUNKS, j = n % 4, d = c * CHUNK + side * 4 + j;
        int row = top_row + first + r;
        if (row >= rows || d >= HEAD) continue;
        long long token = begin + row / group;
        int head = i_head * group + row % group;
        store(y + (token * kv_heads * group + head) * HEAD + d, out[c][r][j] / sums[r]);
    }
}
