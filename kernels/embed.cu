// Rows of the embedding, gathered from a dense table or from a quantized one.
//
// TYPE: of what is returned. BITS: of a number; 4 and 8 are quantized. VALUE: what the table is made
// of: numbers, codes of 8 bits, or words of 8 nibbles. SCALE: type of the scales.

#include "common.cuh"

// Number i of a row that begins at number `first` of the table.
template <typename T>
__device__ inline float number_of(const T* values, long long first, int i) {
    return to_float(values[first + i]);
}

__device__ inline float number_of(const int* words, long long first, int i) {
    int word = words[first / 8 + i / 32 * 4 + i % 4];
    return word >> (i % 32 / 4 * 4) & 15;
}

// A thread a number, or where there are scales (number − zero) · scale: tokens [T]; values
// [vocab, dim], or [vocab, dim / 8] as quant/pack.py packs nibbles; scales, zeros
// [vocab, dim / group], or null; order: where each column goes, or null; y [T, dim].
extern "C" __global__ void embed(
    const long long* tokens, const VALUE* values, const SCALE* scales, const unsigned char* zeros,
    const long long* order, TYPE* y, int dim, int group) {
    int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= dim) return;
    long long token = tokens[blockIdx.x], at = token * (dim / group) + i / group;
    float value = number_of(values, token * dim, i);
    if (BITS == 4) value -= zeros ? zeros[at] : 8;
    if (scales) value *= to_float(scales[at]);
    store(y + (long long)blockIdx.x * dim + (order ? order[i] : i), value);
}
