// RMSNorm alone: x / sqrt(mean(x²) + eps) · weight. TYPE: of x and y.

#include "common.cuh"

// A block a row: x and y [rows, dim], x's rows `stride` apart; weight float [dim].
extern "C" __global__ void rms_norm(
    const TYPE* x, const float* weight, TYPE* y, int dim, int stride, float eps) {
    x += (long long)blockIdx.x * stride;
    y += (long long)blockIdx.x * dim;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        float value = to_float(x[i]);
        squares += value * value;
    }
    float scale = rsqrtf(block_sum(squares) / dim + eps);
    for (int i = threadIdx.x; i < dim; i += blockDim.x)
        store(y + i, to_float(x[i]) * scale * weight[i]);
}
