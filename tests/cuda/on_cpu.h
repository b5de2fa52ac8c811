// CUDA C as C++ for a CPU: threads, shared memory, and what threads do together.
//
// What a kernel takes of CUDA without any header, as under NVRTC; numbers are in arithmetic.h.

#pragma once

#include "emulator.h"
#include "arithmetic.h"

// Kernels are found by what this leaves in the preprocessed text. Hidden: the C library may have a
// function of the same name.
#define __global__ __attribute__((visibility("hidden")))
#define __device__
#define __host__
#define __constant__ static
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__

// Thread-local, and all fibers are of one thread: so it lies together, also that of templates.
#define __shared__ static thread_local
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator_shared)

#define threadIdx (*emulator_thread)
#define blockIdx emulator_block
#define blockDim emulator_threads
#define gridDim emulator_grid
#define warpSize 32

#define EMULATOR_TEXT(x) #x
#define EMULATOR_LINE(x) EMULATOR_TEXT(x)
#define EMULATOR_SITE(name) name " at " __FILE__ ":" EMULATOR_LINE(__LINE__)

#define __syncthreads() ((void)emulator_barrier(EMULATOR_SITE("__syncthreads"), false))
#define __syncthreads_count(holds) emulator_barrier(EMULATOR_SITE("__syncthreads_count"), holds)
#define __syncthreads_or(holds) (emulator_barrier(EMULATOR_SITE("__syncthreads_or"), holds) > 0)
#define __syncthreads_and(holds) \
    (emulator_barrier(EMULATOR_SITE("__syncthreads_and"), holds) == (int)blockDim.x)

#define __syncwarp(...) emulator_syncwarp(EMULATOR_SITE("__syncwarp"), ##__VA_ARGS__)
#define __shfl_sync(...) emulator_shuffle(EMULATOR_SITE("__shfl_sync"), __VA_ARGS__)
#define __shfl_xor_sync(...) emulator_shuffle_xor(EMULATOR_SITE("__shfl_xor_sync"), __VA_ARGS__)
#define __shfl_up_sync(...) emulator_shuffle_up(EMULATOR_SITE("__shfl_up_sync"), __VA_ARGS__)
#define __shfl_down_sync(...) emulator_shuffle_down(EMULATOR_SITE("__shfl_down_sync"), __VA_ARGS__)
#define __ballot_sync(mask, x) emulator_ballot(EMULATOR_SITE("__ballot_sync"), mask, x)
#define __any_sync(mask, x) (emulator_ballot(EMULATOR_SITE("__any_sync"), mask, x) != 0)
#define __all_sync(mask, x) (emulator_ballot(EMULATOR_SITE("__all_sync"), mask, x) == (mask))
#define __reduce_add_sync(mask, x) \
    emulator_reduce<EmulatorAdd>(EMULATOR_SITE("__reduce_add_sync"), mask, x)
#define __reduce_min_sync(mask, x) \
    emulator_reduce<EmulatorMin>(EMULATOR_SITE("__reduce_min_sync"), mask, x)
#define __reduce_max_sync(mask, x) \
    emulator_reduce<EmulatorMax>(EMULATOR_SITE("__reduce_max_sync"), mask, x)
#define __activemask() emulator_lanes()

__forceinline__ void emulator_syncwarp(const char* site, unsigned mask = 0xffffffffu) {
    emulator_exchange(site, mask, 0, 0, [](const long long*, unsigned) { return 0ll; });
}

template <typename T>
__forceinline__ T emulator_from(const char* site, unsigned mask, T value, int source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "no type that CUDA shuffles");
    long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = emulator_exchange(site, mask, bits, source, nullptr);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// Lanes are apart by `width`, a power of two.
template <typename T>
__forceinline__ T emulator_shuffle(
    const char* site, unsigned mask, T value, int source, int width = 32) {
    int first = emulator_lane() & -width;
    return emulator_from(site, mask, value, first + (source & (width - 1)));
}

template <typename T>
__forceinline__ T emulator_shuffle_xor(
    const char* site, unsigned mask, T value, int by, int width = 32) {
    int lane = emulator_lane(), end = (lane & -width) + width, source = lane ^ by;
    return emulator_from(site, mask, value, source < end ? source : lane);
}

template <typename T>
__forceinline__ T emulator_shuffle_up(
    const char* site, unsigned mask, T value, unsigned by, int width = 32) {
    int lane = emulator_lane(), first = lane & -width, source = lane - (int)by;
    return emulator_from(site, mask, value, source >= first ? source : lane);
}

template <typename T>
__forceinline__ T emulator_shuffle_down(
    const char* site, unsigned mask, T value, unsigned by, int width = 32) {
    int lane = emulator_lane(), end = (lane & -width) + width, source = lane + (int)by;
    return emulator_from(site, mask, value, source < end ? source : lane);
}

__forceinline__ unsigned emulator_ballot(const char* site, unsigned mask, bool predicate) {
    return emulator_exchange(site, mask, predicate, 0, [](const long long* values, unsigned lanes) {
        long long found = 0;
        for (int i = 0; i < 32; i++)
            if (lanes >> i & 1) found |= values[i] << i;
        return found;
    });
}

struct EmulatorAdd {
    static long long of(long long a, long long b) { return a + b; }
};
struct EmulatorMin {
    static long long of(long long a, long long b) { return a < b ? a : b; }
};
struct EmulatorMax {
    static long long of(long long a, long long b) { return a > b ? a : b; }
};

template <typename Two, typename T>
__forceinline__ T emulator_reduce(const char* site, unsigned mask, T value) {
    static_assert(T(0.5) == T(0) && sizeof(T) == 4, "no type that CUDA reduces");
    return emulator_exchange(site, mask, value, 0, [](const long long* values, unsigned lanes) {
        int first = __builtin_ctz(lanes);
        long long found = values[first];
        for (int i = first + 1; i < 32; i++)
            if (lanes >> i & 1) found = Two::of(found, values[i]);
        return found;
    });
}

// One OS thread runs all, so an atomic operation is a plain one; others may come before it.
#define EMULATOR_ATOMIC(name, type, value)           \
    inline type name(type* at, type x) {             \
        emulator_step();                             \
        type old = *at;                              \
        *at = value;                                 \
        return old;                                  \
    }
#define EMULATOR_ATOMICS(type)                             \
    EMULATOR_ATOMIC(atomicMin, type, old < x ? old : x)    \
    EMULATOR_ATOMIC(atomicMax, type, old > x ? old : x)    \
    EMULATOR_ATOMIC(atomicAnd, type, old & x)              \
    EMULATOR_ATOMIC(atomicOr, type, old | x)               \
    EMULATOR_ATOMIC(atomicXor, type, old ^ x)              \
    EMULATOR_ATOMIC(atomicExch, type, x)                   \
    inline type atomicCAS(type* at, type wanted, type x) { \
        emulator_step();                                   \
        type old = *at;                                    \
        if (old == wanted) *at = x;                        \
        return old;                                        \
    }
EMULATOR_ATOMICS(int)
EMULATOR_ATOMICS(unsigned)
EMULATOR_ATOMICS(unsigned long long)
EMULATOR_ATOMIC(atomicAdd, int, int(unsigned(old) + unsigned(x)))
EMULATOR_ATOMIC(atomicAdd, unsigned, old + x)
EMULATOR_ATOMIC(atomicAdd, unsigned long long, old + x)
EMULATOR_ATOMIC(atomicAdd, float, old + x)
EMULATOR_ATOMIC(atomicAdd, double, old + x)
EMULATOR_ATOMIC(atomicSub, int, int(unsigned(old) - unsigned(x)))
EMULATOR_ATOMIC(atomicSub, unsigned, old - x)
EMULATOR_ATOMIC(atomicExch, float, x)
EMULATOR_ATOMIC(atomicInc, unsigned, old >= x ? 0 : old + 1)
EMULATOR_ATOMIC(atomicDec, unsigned, old == 0 || old > x ? x : old - 1)

inline void __threadfence() { emulator_step(); }
inline void __threadfence_block() { emulator_step(); }
inline void __threadfence_system() { emulator_step(); }
inline void __nanosleep(unsigned) { emulator_step(); }

#define EMULATOR_LOAD(name) \
    template <typename T>   \
    T name(const T* at) {   \
        return *at;         \
    }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldcv)
EMULATOR_LOAD(__ldlu)

template <typename T>
struct EmulatorSame {
    using Type = T;
};
#define EMULATOR_STORE(name)                              \
    template <typename T>                                 \
    void name(T* at, typename EmulatorSame<T>::Type x) {  \
        *at = x;                                          \
    }
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)

// A kernel as whoever launches it calls it: arguments by addresses, evaluated in their order.
template <typename... T>
struct EmulatorCall {
    EmulatorCall(void (*kernel)(T...), T... arguments) { kernel(arguments...); }
};

template <typename... T>
void emulator_call(void (*kernel)(T...), void** at) {
    EmulatorCall<T...>{kernel, *static_cast<T*>(*at++)...};
}

template <typename T>
const char* emulator_type() {
    return __PRETTY_FUNCTION__;
}

// The text that names the type of parameter i, or null behind the last.
template <typename... T>
const char* emulator_parameter(void (*)(T...), int i) {
    const char* types[] = {emulator_type<T>()..., nullptr};
    return types[i];
}

inline char* emulator_statics() {
    static thread_local char one;
    return &one;
}
