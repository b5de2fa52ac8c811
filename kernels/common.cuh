// What all CUDA C kernels share: how numbers are stored, and sums over a warp or a block.
//
// Kernels are compiled without any header of CUDA's, since NVRTC may lie in a package of its own.
// Arithmetic is in float; a number is stored as float, fp16 or bf16 and rounded to nearest even.

#pragma once

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;  // lanes of a warp

struct alignas(2) bf16 { unsigned short bits; };
struct alignas(2) fp16 { unsigned short bits; };

__device__ inline float to_float(float x) { return x; }

__device__ inline float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ inline float to_float(signed char x) { return (float)x; }

__device__ inline void store(float* at, float x) { *at = x; }

__device__ inline void store(bf16* at, float x) {
    unsigned u = __float_as_uint(x);
    at->bits = x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

#ifdef __CUDACC__  // any other compiler brings these three
__device__ inline float half_to_float(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

__device__ inline unsigned short float_to_half(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// The block's dynamic shared memory, as numbers of a type.
#define DYNAMIC_SHARED(type, name)                         \
    extern __shared__ __align__(16) char dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared)
#endif

__device__ inline float to_float(fp16 x) { return half_to_float(x.bits); }

__device__ inline void store(fp16* at, float x) { at->bits = float_to_half(x); }

// x · y + z, also where the compiler was told to take denormal numbers for zero.
__device__ inline float fma_denormal(float x, float y, float z) {
#ifdef __CUDACC__
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(z) : "f"(x), "f"(y), "f"(z));
    return z;
#else
    return fmaf(x, y, z);
#endif
}

// 16 bytes as the numbers in it.
template <typename T>
struct Pack {
    static constexpr int SIZE = 16 / sizeof(T);
    union {
        uint4 raw;
        T x[SIZE];
    };
    __device__ Pack() {}
};

// 16 bytes that are read once, as weights are: they should not push others out of the cache.
template <typename T>
__device__ inline Pack<T> load_once(const Pack<T>* at) {
    Pack<T> p;
    p.raw = __ldcs(reinterpret_cast<const uint4*>(at));
    return p;
}

template <typename T>
__device__ inline Pack<T> load_pack(const T* at) {
    Pack<T> p;
    p.raw = *reinterpret_cast<const uint4*>(at);
    return p;
}

// Number i of a pack.
template <typename T>
__device__ inline float unpacked(const Pack<T>& p, int i) { return to_float(p.x[i]); }

// Without shifting what already is in the upper half of its word.
__device__ inline float unpacked(const Pack<bf16>& p, int i) {
    unsigned word = (&p.raw.x)[i / 2];
    return __uint_as_float(i % 2 ? word & 0xffff0000 : word << 16);
}

// Without the slow conversion: x + 128 below the exponent of 2²³ is the float 2²³ + 128 + x.
__device__ inline float unpacked(const Pack<signed char>& p, int i) {
    unsigned word = (&p.raw.x)[i / 4] ^ 0x80808080;
    return __uint_as_float(__byte_perm(word, 0x4b000000, 0x7440 + i % 4)) - (0x1p23f + 128.0f);
}

__device__ inline float warp_sum(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
    return x;
}

// The sum over a block of at most 1024 threads, in every thread. All must call it; it may be called
// again at once.
__device__ inline float block_sum(float x) {
    __shared__ float parts[WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = (blockDim.x + WARP - 1) / WARP;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? parts[lane] : 0.0f);
}
