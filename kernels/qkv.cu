// The way into attention: RMSNorm, projection, RoPE, and keys and values written to their pages.
// Rows of q and k lie in adjacent pairs of RoPE.

#include "matrix.cuh"

// x [tokens, k]; rows of W are those of q, k and v, `head` numbers for each of `heads` and twice
// `kv_heads`. cosines, sines: [context, head / 2]. positions, slots: [tokens].
// q: [tokens, heads, head]. keys, values: [pages, kv_heads, page, head].
extern "C" __global__ void __launch_bounds__(THREADS) qkv(
    const TYPE* x, const void* data, const SCALE* scales, const unsigned char* zeros,
    const float* norm, const float* cosines, const float* sines, const long long* positions,
    const long long* slots, TYPE* q, TYPE* keys, TYPE* values, int tokens, int rows, int k,
    int units, int groups, int divide, int heads, int kv_heads, int head, int page, float eps) {
    Matrix m = {data, scales, zeros, rows, k, units, groups, (unsigned)divide};
    float value = matrix_sum(m, x, norm, eps, tokens);
    float partner = __shfl_xor_sync(ALL, value, 1);
    int token = blockIdx.y * TOKENS + threadIdx.x / ROWS, row = blockIdx.x * ROWS + threadIdx.x % ROWS;
    if (threadIdx.x >= SUMS || token >= tokens || row >= rows) return;
    int i_head = row / head, i = row % head;
    if (i_head < heads + kv_heads) {
        long long at = positions[token] * (head / 2) + i / 2;
        float sine = i % 2 ? sines[at] : -sines[at];
        value = value * cosines[at] + partner * sine;
    }
    if (i_head < heads) {
        store(q + (long long)token * heads * head + row, value);
        return;
    }
    i_head -= heads;
    TYPE* cache = i_head < kv_heads ? keys : values;
    long long slot = slots[token], place = slot / page * kv_heads + i_head % kv_heads;
    store(cache + (place * page + slot % page) * head + i, value);
}
