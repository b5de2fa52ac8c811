// SiLU(gate) · up alone. TYPE: of x and y.

#include "common.cuh"

// A thread a product: x [T, 2 · hidden], gates and ups interleaved; y [T, hidden].
extern "C" __global__ void silu_mul(const TYPE* x, TYPE* y, int hidden) {
    int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= hidden) return;
    long long at = (long long)blockIdx.x * hidden + i;
    float gate = to_float(x[2 * at]), up = to_float(x[2 * at + 1]);
    store(y + at, gate / (1.0f + expf(-gate)) * up);
}
