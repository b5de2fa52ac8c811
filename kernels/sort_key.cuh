// Scores as integers.

#pragma once

// An int for each float, in the same order, NaN at the ends; one for both zeros.
__device__ inline int sort_key(float x) {
    int bits = __float_as_int(x + 0.0f);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

// The reverse.
__device__ inline float from_key(int key) { return __int_as_float(key ^ (key >> 31 & 0x7fffffff)); }
