// The numbers of CUDA C for a CPU: vectors, conversions and mathematical functions.
//
// Functions that CUDA only approximates are as exact here as the C library's.

#pragma once

#include "emulator.h"

using size_t = __SIZE_TYPE__;
using ptrdiff_t = __PTRDIFF_TYPE__;
using dim3 = uint3;

inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

#define EMULATOR_VECTORS(type, name)                                               \
    struct name##1 { type x; };                                                    \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; };                       \
    struct alignas(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; }; \
    inline name##1 make_##name##1(type x) { return {x}; }                          \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }               \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

#define EMULATOR_VECTOR3(type, name)       \
    struct name##3 { type x, y, z; };      \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }

EMULATOR_VECTORS(signed char, char)
EMULATOR_VECTORS(unsigned char, uchar)
EMULATOR_VECTORS(short, short)
EMULATOR_VECTORS(unsigned short, ushort)
EMULATOR_VECTORS(int, int)
EMULATOR_VECTORS(unsigned, uint)
EMULATOR_VECTORS(long long, longlong)
EMULATOR_VECTORS(unsigned long long, ulonglong)
EMULATOR_VECTORS(float, float)
EMULATOR_VECTORS(double, double)
EMULATOR_VECTOR3(int, int)
EMULATOR_VECTOR3(float, float)
EMULATOR_VECTOR3(double, double)

extern "C" {
float acosf(float), asinf(float), atan2f(float, float), atanf(float), cbrtf(float), ceilf(float);
float copysignf(float, float), cosf(float), coshf(float), erfcf(float), erff(float), exp2f(float);
float expf(float), expm1f(float), fabsf(float), floorf(float), fmaf(float, float, float);
float fmaxf(float, float), fminf(float, float), fmodf(float, float), frexpf(float, int*);
float hypotf(float, float), ldexpf(float, int), log10f(float), log1pf(float), log2f(float);
float logf(float), nearbyintf(float), powf(float, float), rintf(float), roundf(float);
float sinf(float), sinhf(float), sqrtf(float), tanf(float), tanhf(float), truncf(float);
double cos(double), exp(double), exp2(double), fabs(double), floor(double);
double fma(double, double, double), log(double), log2(double), pow(double, double);
double sin(double), sqrt(double);
int printf(const char*, ...);
}

inline float rsqrtf(float x) { return 1.0 / sqrt(x); }
inline bool isnan(float x) { return x != x; }
inline bool isinf(float x) { return fabsf(x) == __builtin_inff(); }
inline bool isfinite(float x) { return fabsf(x) < __builtin_inff(); }
inline bool signbit(float x) { return __builtin_signbit(x); }

inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x != x || x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }

inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }

#define EMULATOR_TWO(type)                                      \
    inline type min(type x, type y) { return y < x ? y : x; }   \
    inline type max(type x, type y) { return x < y ? y : x; }
EMULATOR_TWO(int)
EMULATOR_TWO(unsigned)
EMULATOR_TWO(long long)
EMULATOR_TWO(unsigned long long)
EMULATOR_TWO(double)
inline unsigned min(int x, unsigned y) { return min((unsigned)x, y); }
inline unsigned min(unsigned x, int y) { return min(x, (unsigned)y); }
inline unsigned max(int x, unsigned y) { return max((unsigned)x, y); }
inline unsigned max(unsigned x, int y) { return max(x, (unsigned)y); }
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline int abs(int x) { return x < 0 ? -x : x; }
inline long long abs(long long x) { return x < 0 ? -x : x; }
inline float abs(float x) { return fabsf(x); }

// Bits.
template <typename To, typename From>
To emulator_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "types of one size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulator_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline float __int_as_float(int x) { return emulator_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator_bits<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned long long)x * y >> 32; }
inline int __mulhi(int x, int y) { return (long long)x * y >> 32; }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned __int128)x * y >> 64;
}

inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned places) {
    unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned found = 0;
    for (int i = 0; i < 4; i++) found |= (both >> 8 * (places >> 4 * i & 7) & 0xff) << 8 * i;
    return found;
}

inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return ((unsigned long long)high << 32 | low) << (by & 31) >> 32;
}

inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return ((unsigned long long)high << 32 | low) >> (by & 31);
}

inline int __dp4a(int x, int y, int sum) {
    for (int i = 0; i < 4; i++) sum += (signed char)(x >> 8 * i) * (signed char)(y >> 8 * i);
    return sum;
}

inline unsigned __dp4a(unsigned x, unsigned y, unsigned sum) {
    for (int i = 0; i < 4; i++) sum += (x >> 8 * i & 0xff) * (y >> 8 * i & 0xff);
    return sum;
}

// Conversions stop at the ends of the range, and what is no number becomes 0.
inline int emulator_to_int(float x) {
    if (x != x) return 0;
    return x >= 0x1p31f ? 0x7fffffff : x < -0x1p31f ? -0x7fffffff - 1 : (int)x;
}

inline unsigned emulator_to_uint(float x) {
    if (!(x > 0.0f)) return 0;
    return x >= 0x1p32f ? 0xffffffffu : (unsigned)x;
}

#define EMULATOR_ROUNDED(mode, function)                                               \
    inline int __float2int_##mode(float x) { return emulator_to_int(function(x)); }    \
    inline unsigned __float2uint_##mode(float x) { return emulator_to_uint(function(x)); }
EMULATOR_ROUNDED(rn, rintf)
EMULATOR_ROUNDED(rz, truncf)
EMULATOR_ROUNDED(rd, floorf)
EMULATOR_ROUNDED(ru, ceilf)
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __ll2float_rn(long long x) { return (float)x; }

// Half precision, which common.cuh takes of the compiler.
inline float half_to_float(unsigned short bits) {
    unsigned sign = (bits & 0x8000u) << 16, rest = (bits & 0x7fffu) << 13;
    if (rest >= 0x0f800000) return __uint_as_float(sign | 0x70000000 | rest);  // infinite or none
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest) * 0x1p112f));
}

// To nearest even.
inline unsigned short float_to_half(float x) {
    unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (x != x) return 0x7fff;
    if (rest >= 0x477ff000) return sign | 0x7c00;
    if (rest < 0x38800000)  // denormal: the sum rounds to its unit, 2^-24
        return sign | (__float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000);
    return sign | (rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13;
}
