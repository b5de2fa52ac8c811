// A matrix product with all that may stand before and behind it: RMSNorm, a residual.

#include "matrix.cuh"

// y = W · norm(x) + residual: x [tokens, k]; y [tokens, rows] of TYPE, or float where `wide`;
// residual [tokens, rows] of TYPE, or null.
extern "C" __global__ void __launch_bounds__(THREADS) linear(
    const TYPE* x, const void* data, const SCALE* scales, const unsigned char* zeros,
    const float* norm, const TYPE* residual, void* y, int tokens, int rows, int k, int units,
    int groups, int divide, int wide, float eps) {
    Matrix m = {data, scales, zeros, rows, k, units, groups, (unsigned)divide};
    float value = matrix_sum(m, x, norm, eps, tokens);
    int token = blockIdx.y * TOKENS + threadIdx.x / ROWS, row = blockIdx.x * ROWS + threadIdx.x % ROWS;
    if (threadIdx.x >= SUMS || token >= tokens || row >= rows) return;
    long long at = (long long)token * rows + row;
    if (residual) value += to_float(residual[at]);
    if (wide)
        ((float*)y)[at] = value;
    else
        store((TYPE*)y + at, value);
}
