// Keys and values as attention reads them: 16 bytes at a time of vectors on pages.
//
// TYPE: of queries and outputs. CACHE: of the cache; signed char is quantized. HEAD: numbers of a
// vector.

#pragma once

#include "common.cuh"

constexpr bool QUANTIZED = sizeof(CACHE) == 1;
// Numbers that are loaded at once, and how many times that is done for a vector.
constexpr int PIECE = HEAD * sizeof(CACHE) % 16 == 0 ? 16 / sizeof(CACHE) : 1;
constexpr int PIECES = HEAD / PIECE;
constexpr float LOWEST = -1e30f;  // below every score, and finite, so that minus itself it is 0
constexpr float UNSEEN = -1e38f;  // the score of what is masked: 2 to that, minus LOWEST, is 0

// One layer's cache, [pages, kv_heads, page, HEAD], its scales [pages, kv_heads, page] or null.
// divide: (2³² − 1) / page.
struct Cache {
    const CACHE *keys, *values;
    const float *key_scales, *value_scales;
    int kv_heads, page;
    unsigned divide;
};

// Which vector of the cache a token's is. pages: those of its sequence. Right for as long as tokens
// times the size of a page are at most 2³².
__device__ inline unsigned row_of(const Cache& cache, const int* pages, int i_head, unsigned token) {
    unsigned i_page = __umulhi(token + 1, cache.divide), page = cache.page;
    return ((unsigned)pages[i_page] * cache.kv_heads + i_head) * page + (token - i_page * page);
}

// The piece at a place of a vector. from: the place in vector 0.
__device__ inline Pack<CACHE> load_piece(const CACHE* from, unsigned row) {
    const CACHE* at = from + (unsigned long long)row * HEAD;
    if (PIECE > 1) return load_pack(at);
    Pack<CACHE> found;
    found.x[0] = *at;
    return found;
}

// Number i of a piece.
__device__ inline float number_of(const Pack<CACHE>& piece, int i) {
    return PIECE > 1 ? unpacked(piece, i) : to_float(piece.x[i]);
}

// 2^x.
#ifdef __CUDACC__
__device__ inline float two_to(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
inline float two_to(float x) { return exp2f(x); }
#endif
