// Between two steps of decoding: what was drawn becomes the next step's input; see ops/advance.py.

#include "common.cuh"

// A thread a sequence. table: [count, width] pages. generated: [count, vocab], or null.
extern "C" __global__ void advance(
    const long long* drawn, long long* tokens, long long* positions, int* lengths, long long* draws,
    long long* slots, const int* table, int* generated, int count, int width, int page, int vocab) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    long long token = drawn[i], position = positions[i] + 1;
    tokens[i] = token;
    positions[i] = position;
    lengths[i] += 1;
    draws[i] += 1;
    long long place = min(position / page, (long long)width - 1);
    slots[i] = (long long)table[(long long)i * width + place] * page + position % page;
    if (generated) generated[(long long)i * vocab + token] += 1;
}
