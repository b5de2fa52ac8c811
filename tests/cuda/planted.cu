// Kernels that do right what is easily done wrong, and kernels with a mistake each.

#include "common.cuh"

extern "C" __global__ void reverse(float* y, int wait) {
    __shared__ float all[128];
    all[threadIdx.x] = threadIdx.x;
    if (wait) __syncthreads();
    y[threadIdx.x] = all[127 - threadIdx.x];
}

extern "C" __global__ void barriers_apart(float* y) {
    if (threadIdx.x < 64)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void barrier_after_exit(float* y, int n) {
    if ((int)threadIdx.x >= n) return;
    __syncthreads();
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void shuffle_without(float* y, int lane) {
    float x = 1.0f;
    if ((int)threadIdx.x % WARP != lane) x = __shfl_xor_sync(ALL, x, 1);
    y[threadIdx.x] = x;
}

extern "C" __global__ void shuffles_apart(float* y) {
    float x = 1.0f;
    if (threadIdx.x < 16)
        x = __shfl_xor_sync(ALL, x, 1);
    else
        x = __shfl_xor_sync(ALL, x, 1);
    y[threadIdx.x] = x;
}

extern "C" __global__ void masks_apart(float* y) {
    y[threadIdx.x] = __ballot_sync(threadIdx.x < 4 ? ALL : ALL << 1, 1);
}

extern "C" __global__ void short_warp(float* y) { y[threadIdx.x] = warp_sum(1.0f); }

extern "C" __global__ void shuffle_and_barrier(float* y) {
    float x = 1.0f;
    if (threadIdx.x < WARP)
        x = warp_sum(x);
    else if (threadIdx.x > WARP)
        x = warp_max(x);
    __syncthreads();
    y[threadIdx.x] = x;
}

extern "C" __global__ void touch(float* x, float* y, int at, int write) {
    if (threadIdx.x != 3 || blockIdx.x != 1) return;
    if (write)
        x[at] = 1.0f;
    else
        y[0] = x[at];
}

extern "C" __global__ void load_16(const float* x, float* y, int at, int once) {
    Pack<float> found = once ? load_once((const Pack<float>*)(x + at)) : load_pack(x + at);
    for (int i = 0; i < 4; i++) y[i] = found.x[i];
}

template <typename T>
__device__ inline T unwritten(int write) {
    __shared__ T x[40];
    if (write) x[threadIdx.x] = 1;
    return x[threadIdx.x];
}

extern "C" __global__ void read_unwritten(float* y, int* z, int write) {
    DYNAMIC_SHARED(bf16, dynamic);
    y[0] = unwritten<float>(write);
    z[0] = unwritten<int>(write);
    y[1] = to_float(dynamic[0]);
    if (write) z[1] = unwritten<int>(false);
}

extern "C" __global__ void dynamic_sum(const float* x, float* y, int n, int at) {
    DYNAMIC_SHARED(float, all);
    for (int i = threadIdx.x; i < n; i += blockDim.x) all[i] = x[i];
    if (at) all[at] = 1.0f;
    __syncthreads();
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += all[n - 1 - i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[0] = sum;
}

// The last block adds what all have left.
extern "C" __global__ void sum_blocks(const float* x, float* parts, float* y, unsigned* counter) {
    __shared__ bool last;
    float sum = block_sum(x[blockIdx.x * blockDim.x + threadIdx.x]);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(counter, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    sum = 0.0f;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x) sum += __ldcg(parts + i);
    sum = block_sum(sum);
    if (threadIdx.x == 0) *y = sum, *counter = 0;
}

extern "C" __global__ void places(int* y) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int* at = y + (block * blockDim.x + threadIdx.x) * 4;
    at[0] = blockIdx.x, at[1] = blockIdx.y, at[2] = blockIdx.z, at[3] = threadIdx.x;
}

extern "C" __global__ void come_in_order(int* y, int* counter) {
    y[atomicAdd(counter, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}

extern "C" __global__ void add_one(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] + 1.0f;
}

extern "C" __global__ void write_const(const float* x) { const_cast<float*>(x)[0] = 1.0f; }

extern "C" __global__ void compute(int* y, int what, int by) {
    int all[4] = {1, 2, 3, 4};
    if (what == 0) y[0] = all[by];
    if (what == 1) y[0] = 0x7fffffff + by;
    if (what == 2) y[0] = 1 << by;
    if (what == 3) y[0] = 7 / by;
    if (what == 4) y[0] = (int)(by * 1e9f);
}

extern "C" __global__ void never_end(volatile int* y) {
    while (!*y) {}
}

__device__ float deep(float* y, int n) {
    float x[64];
    for (int i = 0; i < 64; i++) x[i] = y[0] + i;
    return n ? deep(x + n % 64, n - 1) + x[n % 7] : x[0];
}

extern "C" __global__ void recurse(float* y, int n) { y[0] = deep(y, n); }
