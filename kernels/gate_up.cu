// The first half of the feed-forward layer: RMSNorm, gate and up, SwiGLU.

#include "matrix.cuh"

// y = silu(gate) · up: rows of W are gate 0, up 0, gate 1, …; x [tokens, k], y [tokens, rows / 2].
extern "C" __global__ void __launch_bounds__(THREADS) gate_up(
    const TYPE* x, const void* data, const SCALE* scales, const unsigned char* zeros,
    const float* norm, TYPE* y, int tokens, int rows, int k, int units, int groups, int divide,
    float eps) {
    Matrix m = {data, scales, zeros, rows, k, units, groups, (unsigned)divide};
    float gate = matrix_sum(m, x, norm, eps, tokens);
    float up = __shfl_down_sync(ALL, gate, 1);
    int token = blockIdx.y * TOKENS + threadIdx.x / ROWS, row = blockIdx.x * ROWS + threadIdx.x % ROWS;
    if (threadIdx.x >= SUMS || row % 2 || token >= tokens || row >= rows) return;
    store(y + (long long)token * (rows / 2) + row / 2, gate / (1.0f + expf(-gate)) * up);
}
