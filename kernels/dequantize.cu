// A packed matrix as plain numbers, for the vendor's matrix product of many tokens.

#include "matrix.cuh"

// y [rows, k] = (value − zero) · scale; a thread has a unit of 16 bytes.
extern "C" __global__ void __launch_bounds__(THREADS) dequantize(
    const void* data, const SCALE* scales, const unsigned char* zeros, TYPE* y, int rows, int k,
    int units, int groups, int divide) {
    long long i_unit = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (i_unit >= (long long)rows * units) return;
    int row[ROWS] = {(int)(i_unit / units)}, unit = i_unit % units;
    Matrix m = {data, scales, zeros, rows, k, units, groups, (unsigned)divide};
    Unit found = load_unit(m, row, unit);
    const unsigned* words = &found.words[0].raw.x;
    for (int i = 0; i < IN_WORD; i++)
        for (int w = 0; w < 4; w++) {
            int column = unit * COLUMNS + 4 * i + w;
            float value = (float)(words[w] >> BITS * i & ONES) - found.zeros[0];
            if (column < k) store(y + (long long)row[0] * k + column, value * found.scales[0]);
        }
}
