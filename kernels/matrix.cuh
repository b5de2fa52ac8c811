// A few tokens times a block of rows of a matrix: the loop that all matrix kernels share.
//
// A block has ROWS rows and TOKENS tokens, and each thread of it 16 bytes of every row at a time, a
// unit. RMSNorm needs no pass of its own: y = W(x ∘ w) / sqrt(mean(x²) + eps), and the threads see
// every x.
//
// Packed values stay in their word: bits BITS · i of it are, as a float, the value times
// 2^(BITS · i − 149), a denormal number or just above, exact below 2^24. So a weight is one AND and
// one FMA. The other powers of two go into x, which all rows share, and 2^65 into the scale,
// so that |x| < 2^43 is in range.
//
// TYPE: of activations. BITS: of a weight; 4 and 8 are packed (see packed.py), 16 and 32 dense, of
// type TYPE. SCALE: type of the scales. ZEROS: whether there are any; else it is the middle value.
// NORM: whether x is normalized. ALIGNED: whether k is a multiple of a unit's columns, and rows
// begin at multiples of 16 bytes. TOKENS · ROWS: a power of two, at most 32.

#pragma once

#include "common.cuh"

constexpr bool PACKED = BITS <= 8;
constexpr int IN_WORD = 32 / BITS;
constexpr int PIECE = 16 / (int)sizeof(TYPE);               // columns that are loaded of x at once
constexpr int COLUMNS = PACKED ? 4 * IN_WORD : PIECE;       // of a unit
constexpr unsigned ONES = 0xffffffffu >> (32 - BITS);       // a value's bits
constexpr int HELD = 24 / BITS;  // values of a word below bit 24; the others are shifted down
constexpr int WARPS = 4;         // of a block
constexpr int THREADS = WARPS * WARP;
constexpr int SUMS = TOKENS * ROWS;

// data: int [rows, 4 · units], or TYPE [rows, k]. scales, zeros: [rows, groups].
// divide: units of a group g as 2³² / g rounded up; 0 where a group is one unit.
struct Matrix {
    const void* data;
    const SCALE* scales;
    const unsigned char* zeros;
    int rows, k, units, groups;
    unsigned divide;
};

struct Piece {
    float x[PIECE];
};

// Numbers `first` and up of a row of k, past its end 0; ONCE: the row is not read again.
template <bool ONCE = false, typename T>
__device__ inline Piece load_piece(const T* row, int first, int k) {
    Piece found;
    if (ALIGNED) {
#pragma unroll
        for (int i = 0; i < PIECE; i += Pack<T>::SIZE) {
            const T* at = row + first + i;
            Pack<T> part = ONCE ? load_once((const Pack<T>*)at) : load_pack(at);
#pragma unroll
            for (int j = 0; j < Pack<T>::SIZE; j++) found.x[i + j] = unpacked(part, j);
        }
    } else {
#pragma unroll
        for (int i = 0; i < PIECE; i++) found.x[i] = first + i < k ? to_float(row[first + i]) : 0.0f;
    }
    return found;
}

__device__ constexpr int place_of(int i) { return i < HELD ? i : i - 8 / BITS; }

// Value i of a word times 2^(BITS · place − 149).
__device__ inline float in_place(unsigned word, int i) {
    return __uint_as_float((i < HELD ? word : word >> 8) & ONES << BITS * place_of(i));
}

// What makes it the value times 2^-65.
__device__ inline float factor_of(int i) {
    return __uint_as_float((unsigned)(127 + 84 - BITS * place_of(i)) << 23);
}

// A unit of each row, as it lies there.
struct Unit {
    Pack<int> words[PACKED ? ROWS : 1];
    Piece dense[PACKED ? 1 : ROWS];
    float scales[ROWS], zeros[ROWS];
};

__device__ inline Unit load_unit(const Matrix& m, const int (&rows)[ROWS], unsigned unit) {
    Unit found;
    unsigned group = m.groups == 1 ? 0 : m.divide ? __umulhi(unit, m.divide) : unit;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (PACKED) {
            unsigned at = rows[r] * (unsigned)m.groups + group;
            found.words[r] = load_once((const Pack<int>*)m.data + (rows[r] * (unsigned)m.units + unit));
            found.scales[r] = to_float(m.scales[at]);
            found.zeros[r] = ZEROS ? (float)m.zeros[at] : (float)(1 << (BITS - 1));
        } else {
            const TYPE* row = (const TYPE*)m.data + (long long)rows[r] * m.k;
            found.dense[r] = load_piece<true>(row, unit * COLUMNS, m.k);
        }
    }
    return found;
}

// Adds a unit's share to the sums, and to Σx² of each token.
__device__ inline void add_unit(
    const Unit& w, const TYPE* const (&x)[TOKENS], const float* norm, int first, int k,
    float (&sums)[SUMS], float (&squares)[TOKENS]) {
    float parts[SUMS] = {}, x_sums[TOKENS] = {};
#pragma unroll
    for (int c = 0; c < COLUMNS; c += PIECE) {
        Piece weights;
        if (NORM) weights = load_piece(norm, first + c, k);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            Piece piece = load_piece(x[t], first + c, k);
#pragma unroll
            for (int j = 0; j < PIECE; j++) {
                float value = piece.x[j];
                if (NORM) {
                    squares[t] = fmaf(value, value, squares[t]);
                    value *= weights.x[j];
                }
                int i = (c + j) / 4, word = (c + j) % 4;
                if (PACKED) {
                    x_sums[t] += value;
                    value *= factor_of(i);
                }
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    const unsigned* words = &w.words[PACKED ? r : 0].raw.x;
                    float weight = PACKED ? in_place(words[word], i) : w.dense[PACKED ? 0 : r].x[j];
                    parts[t * ROWS + r] = fma_denormal(weight, value, parts[t * ROWS + r]);
                }
            }
        }
    }
#pragma unroll
    for (int s = 0; s < SUMS; s++) {
        int r = s % ROWS;
        if (PACKED)
            sums[s] += w.scales[r] * (parts[s] * 0x1p65f - w.zeros[r] * x_sums[s / ROWS]);
        else
            sums[s] += parts[s];
    }
}

// The sums over a warp of N numbers a lane: lane l has that of number l · N / 32.
template <int STEP = WARP / 2, int N>
__device__ inline float warp_sums(const float (&x)[N]) {
    if constexpr (N == 1) {
        float sum = x[0];
#pragma unroll
        for (int step = STEP; step > 0; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
        return sum;
    } else {
        bool upper = threadIdx.x & STEP;
        float half[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            float kept = upper ? x[i + N / 2] : x[i], given = upper ? x[i] : x[i + N / 2];
            half[i] = kept + __shfl_xor_sync(ALL, given, STEP);
        }
        return warp_sums<STEP / 2>(half);
    }
}

// W · norm(x) of the block's rows and tokens: thread i has token i / ROWS and row i % ROWS of them.
// x: [tokens, k]. Every thread of the block must call it, once.
__device__ inline float matrix_sum(
    const Matrix& m, const TYPE* x, const float* norm, float eps, int tokens) {
    __shared__ float all_sums[WARPS][SUMS], all_squares[WARPS][TOKENS];
    int rows[ROWS];
    const TYPE* from[TOKENS];
    float sums[SUMS] = {}, squares[TOKENS] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++) rows[r] = min((int)blockIdx.x * ROWS + r, m.rows - 1);
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
        from[t] = x + (long long)min((int)blockIdx.y * TOKENS + t, tokens - 1) * m.k;
    for (int unit = threadIdx.x; unit < m.units; unit += THREADS)
        add_unit(load_unit(m, rows, unit), from, norm, unit * COLUMNS, m.k, sums, squares);

    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    constexpr int LANES = WARP / SUMS;  // that have the same sum
    float sum = warp_sums(sums);
    if (lane % LANES == 0) all_sums[warp][lane / LANES] = sum;
#pragma unroll
    for (int t = 0; t < TOKENS && NORM; t++) {
        float square = warp_sum(squares[t]);
        if (lane == 0) all_squares[warp][t] = square;
    }
    __syncthreads();
    if (threadIdx.x >= SUMS) return 0.0f;
    float total = 0.0f, square = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        total += all_sums[w][threadIdx.x];
        if (NORM) square += all_squares[w][threadIdx.x / ROWS];
    }
    return NORM ? total * rsqrtf(square / m.k + eps) : total;
}
