// What CUDA brings, one result after another.

#include "common.cuh"

// y: [threads, 12].
extern "C" __global__ void exchange(int* y, long long* z, int by, int width) {
    int x = 100 + threadIdx.x;
    y += threadIdx.x * 12;
    y[0] = __shfl_sync(ALL, x, by, width);
    y[1] = __shfl_xor_sync(ALL, x, by, width);
    y[2] = __shfl_up_sync(ALL, x, by, width);
    y[3] = __shfl_down_sync(ALL, x, by, width);
    y[4] = __ballot_sync(ALL, threadIdx.x % 3 == 0);
    y[5] = __any_sync(ALL, threadIdx.x == 5);
    y[6] = __all_sync(ALL, threadIdx.x != 5);
    y[7] = __reduce_add_sync(ALL, x);
    y[8] = __reduce_max_sync(ALL, -x);
    y[9] = __syncthreads_count(threadIdx.x % 2);
    y[10] = __syncthreads_or(threadIdx.x == 5) + 2 * __syncthreads_and(threadIdx.x == 5);
    if (threadIdx.x % WARP < 16)
        y[11] = __shfl_xor_sync(0xffffu, x, 3);
    else
        y[11] = __shfl_down_sync(0xffff0000u, x, 2, 16);
    __syncwarp();
    z[threadIdx.x] = __shfl_xor_sync(ALL, (1ll << 40) + threadIdx.x, 1);
}

extern "C" __global__ void round_to(const float* x, fp16* half, bf16* brain, float* back, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        store(half + i, x[i]);
        store(brain + i, x[i]);
        store(back + i, to_float(half[i]));
    }
}

extern "C" __global__ void widen(const fp16* x, float* y, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = to_float(x[i]);
}

extern "C" __global__ void integers(const float* x, int* rounded, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) rounded[i] = __float2int_rn(x[i]);
}

extern "C" __global__ void bits(unsigned* y, unsigned a, unsigned b) {
    y[0] = __umulhi(a, b);
    y[1] = __popc(a);
    y[2] = __clz(a) + 100 * __clz(0);
    y[3] = __byte_perm(a, b, 0x5140);
    y[4] = __funnelshift_l(a, b, 8);
    y[5] = __funnelshift_r(a, b, 8);
    y[6] = __brev(a);
    y[7] = __float_as_uint(__uint_as_float(a & 0x7fu) * 0x1p100f);
    y[8] = __dp4a((int)a, (int)b, 5);
    y[9] = min((int)a, -3) == -3;
}

extern "C" __global__ void atomics(int* y, unsigned* z, float* sum) {
    int i = threadIdx.x;
    atomicAdd(sum, 0.5f);
    atomicMax(y, i), atomicMin(y + 1, -i), atomicOr(z, 1u << i % WARP);
    if (atomicCAS(z + 1, 0, i + 1) == 0) atomicExch(z + 2, 7);
    atomicInc(z + 3, 9);
}

extern "C" __global__ void sums(float* y) {
    float sum = block_sum(threadIdx.x);
    y[threadIdx.x] = block_sum(1.0f) + sum;
}
