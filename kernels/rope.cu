// RoPE, and writing keys and values into the paged cache, alone and in one pass.
//
// TYPE: of activations. CACHE: of the cache; signed char is quantized. A warp has a head of a token;
// heads of a token lie side by side, and rows of tokens `stride` numbers apart. A block has a token
// and as many of its heads as warps, the last one perhaps fewer.

#include "common.cuh"

constexpr bool QUANTIZED = sizeof(CACHE) == 1;
constexpr float CODE = 127.0f, TINY = 1.17549435e-38f;  // see `Backend.write_kv`

__device__ inline int head_of_warp() {
    return blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP;
}

// Number i of a head, its pair turned by the angle of the position.
__device__ inline float turned(
    const TYPE* x, const float* cosines, const float* sines, long long position, int i, int head) {
    long long at = position * (head / 2) + i / 2;
    float value = to_float(x[i]), partner = to_float(x[i ^ 1]);
    return fmaf(partner, i % 2 ? sines[at] : -sines[at], value * cosines[at]);
}

// What a number is once it was stored.
__device__ inline float rounded(float x) {
    TYPE y;
    store(&y, x);
    return to_float(y);
}

// Writes a vector at its place in the cache; `value(i)` is number i. All lanes of a warp call it.
template <typename Value>
__device__ inline void cache_vector(CACHE* cache, float* scales, long long place, int head, Value value) {
    int lane = threadIdx.x % WARP;
    if constexpr (!QUANTIZED) {
        for (int i = lane; i < head; i += WARP) store(cache + place * head + i, value(i));
    } else {
        int peak = 0;  // of magnitudes as integers NaN is the largest, so that it is not lost
        for (int i = lane; i < head; i += WARP)
            peak = max(peak, __float_as_int(value(i)) & 0x7fffffff);
        for (int step = WARP / 2; step > 0; step /= 2) peak = max(peak, __shfl_xor_sync(ALL, peak, step));
        float scale = __fdiv_rn(__int_as_float(peak), CODE);
        scale = scale < TINY ? 0.0f : scale;
        for (int i = lane; i < head; i += WARP)
            cache[place * head + i] = scale == 0.0f ? 0 : __float2int_rn(__fdiv_rn(value(i), scale));
        if (lane == 0) scales[place] = scale;
    }
}

// Where head i_head of a token lies in a cache of `kv_heads` and pages of `page` tokens.
__device__ inline long long place_of(long long slot, int i_head, int kv_heads, int page) {
    return (slot / page * kv_heads + i_head) * page + slot % page;
}

// x [T, heads, head] turned: y [T, heads, head].
extern "C" __global__ void rope(
    const TYPE* x, const float* cosines, const float* sines, const long long* positions, TYPE* y,
    int heads, int head, int stride) {
    long long token = blockIdx.x;
    int i_head = head_of_warp(), lane = threadIdx.x % WARP;
    if (i_head >= heads) return;
    x += token * stride + i_head * head;
    y += (token * heads + i_head) * head;
    for (int i = lane; i < head; i += WARP)
        store(y + i, turned(x, cosines, sines, positions[token], i, head));
}

// Heads of keys [T, kv_heads, head], then those of values, to their slots.
extern "C" __global__ void write_kv(
    const TYPE* k, const TYPE* v, const long long* slots, CACHE* keys, CACHE* values,
    float* key_scales, float* value_scales, int kv_heads, int head, int page, int k_stride,
    int v_stride) {
    long long token = blockIdx.x;
    int i_head = head_of_warp();
    bool is_key = i_head < kv_heads;
    if (i_head >= 2 * kv_heads) return;
    i_head %= kv_heads;
    const TYPE* x = (is_key ? k + token * k_stride : v + token * v_stride) + i_head * head;
    long long place = place_of(slots[token], i_head, kv_heads, page);
    cache_vector(is_key ? keys : values, is_key ? key_scales : value_scales, place, head,
                 [=](int i) { return to_float(x[i]); });
}

// Both, of the projection's rows y [T, (heads + 2 kv_heads) · head]: q [T, heads, head].
extern "C" __global__ void rope_write(
    const TYPE* y, const float* cosines, const float* sines, const long long* positions,
    const long long* slots, TYPE* q, CACHE* keys, CACHE* values, float* key_scales,
    float* value_scales, int heads, int kv_heads, int head, int page, int stride) {
    long long token = blockIdx.x;
    int i_head = head_of_warp(), i_kv = i_head - heads, lane = threadIdx.x % WARP;
    if (i_kv >= 2 * kv_heads) return;
    const TYPE* x = y + token * stride + i_head * head;
    auto turn = [=](int i) { return turned(x, cosines, sines, positions[token], i, head); };
    if (i_kv < 0) {
        for (int i = lane; i < head; i += WARP)
            store(q + (token * heads + i_head) * head + i, turn(i));
        return;
    }
    long long place = place_of(slots[token], i_kv % kv_heads, kv_heads, page);
    if (i_kv < kv_heads)  // what is cached is what `rope` would return
        cache_vector(keys, key_scales, place, head, [=](int i) { return rounded(turn(i)); });
    else
        cache_vector(values, value_scales, place, head, [=](int i) { return to_float(x[i]); });
}
