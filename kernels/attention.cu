// Flash-decoding: attention of one query a sequence over its paged keys and values.
//
// A block has some query heads of one key-value head and a share of the sequence's tokens. As many
// lanes as a vector has pieces share a token, so that a warp has several at a time; lanes that share
// them are on their own until the loop has ended, with the maximum, sum and output of what they saw.
// The last block of a sequence and head adds up what all of them found.
//
// HEADS: query heads of a block.

#include "paged.cuh"

__device__ constexpr int next_power_of_2(int x) {
    return x <= 1 ? 1 : 2 * next_power_of_2((x + 1) / 2);
}

constexpr int WARPS = 4, THREADS = WARPS * WARP;
constexpr int STEPS = 4;  // tokens that lanes have at a time
constexpr int LANES = PIECES < WARP ? next_power_of_2(PIECES) : WARP;  // that share a token
constexpr int TURNS = (PIECES + LANES - 1) / LANES;  // pieces of a vector that each of them has
constexpr int NUMBERS = TURNS * PIECE;
constexpr int TOKENS = WARP / LANES;  // that a warp loads at once
constexpr int SPAN = TOKENS * STEPS;  // that it has at a time
constexpr int TILE = WARPS * SPAN;
constexpr int RESIDENT = HEADS * NUMBERS <= 16 ? 4 : 3;  // blocks that registers are left for
constexpr int MOST_PARTS = 64;

// The pieces of a vector that a lane has; zeros where there are none.
struct Share {
    Pack<CACHE> pieces[TURNS];
};

__device__ inline int piece_of(int turn) { return turn * LANES + threadIdx.x % LANES; }

// from: the lane's first piece of vector 0.
__device__ inline Share load_share(const CACHE* from, unsigned row) {
    Share found;
#pragma unroll
    for (int t = 0; t < TURNS; t++) {
        found.pieces[t].raw = {};
        if (piece_of(t) < PIECES) found.pieces[t] = load_piece(from + t * LANES * PIECE, row);
    }
    return found;
}

// What lanes found: of each query head the greatest score, the sum of 2^(score − top), and outputs
// as large as that.
struct Found {
    float top[HEADS], sum[HEADS], out[HEADS][NUMBERS];
};

// A lane's numbers of the first `heads` query heads, times `scale`; 0 in the others.
__device__ inline void load_queries(
    const TYPE* q, int heads, float scale, float (&own)[HEADS][NUMBERS]) {
#pragma unroll
    for (int g = 0; g < HEADS; g++) {
#pragma unroll
        for (int n = 0; n < NUMBERS; n++) {
            int i_piece = piece_of(n / PIECE), at = i_piece * PIECE + n % PIECE;
            bool has = g < heads && i_piece < PIECES;
            own[g][n] = has ? to_float(q[g * HEAD + at]) * scale : 0.0f;
        }
    }
}

// Goes on with the tokens `first` and up, at `rows`; those from `end` on count for nothing.
__device__ inline void attend(
    const Cache& cache, const float (&q)[HEADS][NUMBERS], const unsigned (&rows)[STEPS], int first,
    int end, Found& found) {
    Share keys[STEPS], values[STEPS];
    float scores[STEPS][HEADS], value_scales[STEPS];
#pragma unroll
    for (int s = 0; s < STEPS; s++) keys[s] = load_share(cache.keys, rows[s]);
#pragma unroll
    for (int s = 0; s < STEPS; s++) values[s] = load_share(cache.values, rows[s]);
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        float key_scale = QUANTIZED ? cache.key_scales[rows[s]] : 1.0f;
        value_scales[s] = QUANTIZED ? cache.value_scales[rows[s]] : 1.0f;
        float sums[HEADS] = {};
#pragma unroll
        for (int n = 0; n < NUMBERS; n++) {
            float key = number_of(keys[s].pieces[n / PIECE], n % PIECE);
#pragma unroll
            for (int g = 0; g < HEADS; g++) sums[g] = fmaf(q[g][n], key, sums[g]);
        }
#pragma unroll
        for (int g = 0; g < HEADS; g++) {
#pragma unroll
            for (int step = LANES / 2; step > 0; step /= 2)
                sums[g] += __shfl_xor_sync(ALL, sums[g], step);
            float score = QUANTIZED ? sums[g] * key_scale : sums[g];
            scores[s][g] = first + s * TOKENS < end ? score : UNSEEN;
        }
    }
#pragma unroll
    for (int g = 0; g < HEADS; g++) {
        float top = found.top[g];
#pragma unroll
        for (int s = 0; s < STEPS; s++) top = fmaxf(top, scores[s][g]);
        float shrink = two_to(found.top[g] - top);
        found.top[g] = top;
        found.sum[g] *= shrink;
#pragma unroll
        for (int n = 0; n < NUMBERS; n++) found.out[g][n] *= shrink;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            scores[s][g] = two_to(scores[s][g] - top);
            found.sum[g] += scores[s][g];
            if (QUANTIZED) scores[s][g] *= value_scales[s];
        }
    }
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
#pragma unroll
        for (int n = 0; n < NUMBERS; n++) {
            float value = number_of(values[s].pieces[n / PIECE], n % PIECE);
#pragma unroll
            for (int g = 0; g < HEADS; g++)
                found.out[g][n] = fmaf(scores[s][g], value, found.out[g][n]);
        }
    }
}

// Makes what lanes found what their warp found.
__device__ inline void join_lanes(Found& found) {
#pragma unroll
    for (int g = 0; g < HEADS; g++) {
        float top = found.top[g];
#pragma unroll
        for (int step = LANES; step < WARP; step *= 2)
            top = fmaxf(top, __shfl_xor_sync(ALL, top, step));
        float shrink = two_to(found.top[g] - top);
        found.top[g] = top;
        found.sum[g] *= shrink;
#pragma unroll
        for (int n = 0; n < NUMBERS; n++) found.out[g][n] *= shrink;
#pragma unroll
        for (int step = LANES; step < WARP; step *= 2) {
            found.sum[g] += __shfl_xor_sync(ALL, found.sum[g], step);
#pragma unroll
            for (int n = 0; n < NUMBERS; n++)
                found.out[g][n] += __shfl_xor_sync(ALL, found.out[g][n], step);
        }
    }
}

// Leaves what a warp found for the others of its block.
__device__ inline void leave(const Found& found, float2 (&part)[HEADS], float (&out)[HEADS * HEAD]) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int g = 0; g < HEADS; g++) {
        if (lane == 0) part[g] = {found.top[g], found.sum[g]};
#pragma unroll
        for (int n = 0; n < NUMBERS; n++) {
            int i_piece = piece_of(n / PIECE);
            if (lane < LANES && i_piece < PIECES)
                out[g * HEAD + i_piece * PIECE + n % PIECE] = found.out[g][n];
        }
    }
}

// Adds up what parts found: `part(i, g)` is top and sum of one, `out(i, n)` number n of its outputs
// [HEADS, HEAD]; `put(n, top, sum, out)` takes the whole. All threads of the block must call it.
template <typename Part, typename Out, typename Put>
__device__ inline void join(int parts, Part part, Out out, Put put) {
    __shared__ float weights[MOST_PARTS][HEADS], tops[HEADS], sums[HEADS];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    __syncthreads();
    for (int g = warp; g < HEADS; g += WARPS) {
        float top = LOWEST, sum = 0.0f;
        for (int i = lane; i < parts; i += WARP) top = fmaxf(top, part(i, g).x);
        top = warp_max(top);
        for (int i = lane; i < parts; i += WARP) {
            float2 found = part(i, g);
            weights[i][g] = two_to(found.x - top);
            sum += found.y * weights[i][g];
        }
        sum = warp_sum(sum);
        if (lane == 0) tops[g] = top, sums[g] = sum;
    }
    __syncthreads();
    for (int n = threadIdx.x; n < HEADS * HEAD; n += THREADS) {
        int g = n / HEAD;
        float whole = 0.0f;
#pragma unroll 4
        for (int i = 0; i < parts; i++) whole += weights[i][g] * out(i, n);
        put(n, tops[g], sums[g], whole);
    }
}

// Blocks: sequence; key-value head and which of its query heads; split. q: [S, heads, HEAD], rows
// `stride` numbers apart. lengths: [S]. table: [S, width] pages. y: [S, heads, HEAD]. partial, sums:
// room for outputs [HEADS, HEAD] and tops and sums [HEADS, 2] of every block. counters: zeros, one
// for all splits of a sequence's heads; they are zeros again in the end.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) attention(
    const TYPE* q, const CACHE* keys, const CACHE* values, const float* key_scales,
    const float* value_scales, const int* lengths, const int* table, TYPE* y, float* partial,
    float* sums, int* counters, int kv_heads, int group, int page, int divide, int width,
    int stride, float scale) {
    keys += piece_of(0) * PIECE;
    values += piece_of(0) * PIECE;
    Cache cache = {keys, values, key_scales, value_scales, kv_heads, page, (unsigned)divide};
    long long i_s = blockIdx.x;
    int blocks = (group + HEADS - 1) / HEADS, splits = gridDim.z;
    int i_head = blockIdx.y / blocks, first_head = blockIdx.y % blocks * HEADS;
    int length = lengths[i_s], share = ((length + TILE - 1) / TILE + splits - 1) / splits * TILE;
    int begin = blockIdx.z * share, end = min(begin + share, length);
    if (blockIdx.z > 0 && begin >= length) return;
    table += i_s * width;
    q += i_s * stride + (i_head * group + first_head) * HEAD;
    y += ((i_s * kv_heads + i_head) * group + first_head) * HEAD;
    int heads = min(group - first_head, HEADS);

    float own_q[HEADS][NUMBERS];
    load_queries(q, heads, scale, own_q);
    Found found = {};
#pragma unroll
    for (int g = 0; g < HEADS; g++) found.top[g] = LOWEST;
    int warp = threadIdx.x / WARP, first = begin + warp * SPAN + threadIdx.x % WARP / LANES;
    unsigned rows[STEPS], next[STEPS];
    auto find = [&](int first, unsigned (&rows)[STEPS]) {
#pragma unroll
        for (int s = 0; s < STEPS; s++)
            rows[s] = row_of(cache, table, i_head, min(first + s * TOKENS, length - 1));
    };
    if (begin < end) find(first, rows);
    for (int start = begin + warp * SPAN; start < end; start += TILE, first += TILE) {
        find(first + TILE, next);
        attend(cache, own_q, rows, first, end, found);
#pragma unroll
        for (int s = 0; s < STEPS; s++) rows[s] = next[s];
    }

    __shared__ float2 parts[WARPS][HEADS];
    __shared__ float outs[WARPS][HEADS * HEAD];
    __shared__ bool is_last;
    join_lanes(found);
    leave(found, parts[warp], outs[warp]);
    auto finish = [=](int n, float, float sum, float whole) {
        if (n / HEAD < heads) store(y + n, sum == 0.0f ? 0.0f : whole / sum);
    };
    auto part = [&](int i, int g) { return parts[i][g]; };
    auto out = [&](int i, int n) { return outs[i][n]; };
    int used = share ? (length + share - 1) / share : 1;
    if (used == 1) {
        join(WARPS, part, out, finish);
        return;
    }
    long long cell = i_s * gridDim.y + blockIdx.y;
    partial += cell * splits * HEADS * HEAD;
    float2* all_parts = (float2*)sums + cell * splits * HEADS;
    join(WARPS, part, out, [=](int n, float top, float sum, float whole) {
        partial[blockIdx.z * HEADS * HEAD + n] = whole;
        if (n % HEAD == 0) all_parts[blockIdx.z * HEADS + n / HEAD] = {top, sum};
    });
    __threadfence();  // all have stored before one of them says so
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(counters + cell, 1) == used - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    // past the first-level cache, which may hold what an earlier launch wrote
    join(used, [=](int i, int g) { return __ldcg(all_parts + i * HEADS + g); },
         [=](int i, int n) { return __ldcg(partial + i * HEADS * HEAD + n); }, finish);
    if (threadIdx.x == 0) counters[cell] = 0;
}
