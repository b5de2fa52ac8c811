// What top-k, top-p and min-p keep of each row of scores: all from one score on, its floor.
//
// Nothing is sorted. Scores become integers of the same order, and the floor is found by halving the
// range between two of them. That takes some ten to twenty passes, so they go over little: first over
// the peaks of a row, then over what is as large as the peaks say, few scores unless the row is flat.

#include "common.cuh"
#include "sort_key.cuh"

constexpr int WARPS = 16, THREADS = WARPS * WARP;  // of a block
constexpr int PEAKS = 4;                           // of a thread
constexpr int EACH = 8;                            // scores that a thread loads at once
constexpr int MOST_INT = 0x7fffffff, NOTHING = -MOST_INT;  // no key is larger; no number's is less
constexpr float LOW = -1e30f;  // below all scores, but not so far that a multiple is infinite
constexpr float LOG2_E = 1.44269504f;

// Scores that are looked at again and again: of each thread `count`, `THREADS` apart. By weight a
// score counts exp2((score − peak) · rate), its probability next to that of the largest.
struct List {
    float* at;
    int count;
    float peak, rate;
};

// How much has a key and up, the greatest key below, and the least of those.
struct Around {
    float mass;
    int below, above;
};

__device__ inline Around merged(const Around& x, const Around& y) {
    return {x.mass + y.mass, max(x.below, y.below), min(x.above, y.above)};
}

template <int LANES>
__device__ inline Around lanes_around(Around x) {
    for (int step = LANES / 2; step > 0; step /= 2) {
        Around y = {__shfl_xor_sync(ALL, x.mass, step), __shfl_xor_sync(ALL, x.below, step),
                    __shfl_xor_sync(ALL, x.above, step)};
        x = merged(x, y);
    }
    return x;
}

// That of all threads, in every thread. All must call it; it may be called again at once.
__device__ inline Around block_around(Around x) {
    __shared__ Around parts[WARPS];
    int lane = threadIdx.x % WARP;
    x = lanes_around<WARP>(x);
    __syncthreads();
    if (lane == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    return lanes_around<WARPS>(parts[lane % WARPS]);
}

__device__ inline float weight_of(const List& list, float x) {
    return exp2f((x - list.peak) * list.rate);
}

__device__ inline Around around(const List& list, int at, bool weighted) {
    Around found = {0.0f, NOTHING, MOST_INT};
    for (int i = 0; i < list.count; i++) {
        float x = list.at[i * THREADS];
        int key = sort_key(x);
        if (key < at) {
            found.below = max(found.below, key);
        } else {
            found.mass += weighted ? weight_of(list, x) : 1.0f;
            found.above = min(found.above, key);
        }
    }
    return block_around(found);
}

// The least key from `low` on above which there is less than `limit`; `most` is the largest.
// Ends where one key is left, whatever the range: both its ends close in on keys that are there.
__device__ inline int least_kept(const List& list, int low, int most, float limit, bool weighted) {
    int high = most + 1;
    while (low + 1 < high) {
        int middle = (low & high) + ((low ^ high) >> 1);
        Around found = around(list, middle, weighted);
        if (found.mass < limit)
            high = found.below + 1;
        else
            low = min(found.above, high - 1);  // above `high` were NaN alone
    }
    return low;
}

// `EACH` scores of a row from `first` on, `THREADS` apart; past its end −infinity.
__device__ inline void load_scores(const float* row, int first, int vocab, float (&x)[EACH]) {
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        int i = first + j * THREADS;
        x[j] = i < vocab ? row[i] : __int_as_float(0xff800000);
    }
}

// Makes a list of the row's largest scores at each of THREADS · PEAKS places. The weight of the row,
// where it is asked for.
__device__ inline float list_peaks(const float* row, int vocab, bool weighted, List& list) {
    float peaks[PEAKS], x[EACH], top = LOW, mass = 0.0f;
#pragma unroll
    for (int j = 0; j < PEAKS; j++) peaks[j] = LOW;
    for (int first = threadIdx.x; first < vocab; first += THREADS * EACH) {
        load_scores(row, first, vocab, x);
        float before = top;
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            peaks[j % PEAKS] = fmaxf(peaks[j % PEAKS], x[j]);
            top = fmaxf(top, x[j]);
        }
        if (!weighted) continue;
        mass *= exp2f((before - top) * list.rate);
#pragma unroll
        for (int j = 0; j < EACH; j++) mass += exp2f((x[j] - top) * list.rate);
    }
#pragma unroll
    for (int j = 0; j < PEAKS; j++) list.at[j * THREADS] = peaks[j];
    list.count = PEAKS;
    list.peak = from_key(block_around({0.0f, sort_key(top), MOST_INT}).below);
    return block_sum(mass * weight_of(list, top));
}

// Makes it one of all scores with keys of `bound` and up.
__device__ inline void list_from(const float* row, int vocab, int bound, List& list) {
    float x[EACH];
    list.count = 0;
    for (int first = threadIdx.x; first < vocab; first += THREADS * EACH) {
        load_scores(row, first, vocab, x);
#pragma unroll
        for (int j = 0; j < EACH; j++)
            if (first + j * THREADS < vocab && sort_key(x[j]) >= bound)
                list.at[list.count++ * THREADS] = x[j];
    }
}

// The floor of a row of scores [rows, vocab], as a key. temperatures, …, min_ps, floors: [rows].
// kept: [rows, room], room for PEAKS and for ⌈vocab / THREADS⌉ scores of each thread.
extern "C" __global__ void __launch_bounds__(THREADS, 2) find_floor(
    const float* scores, const float* temperatures, const long long* top_ks, const float* top_ps,
    const float* min_ps, float* kept, int* floors, int vocab, int room) {
    int row = blockIdx.x, floor = NOTHING;
    float temperature = temperatures[row], top_p = top_ps[row], min_p = min_ps[row];
    int top_k = min(top_ks[row], (long long)vocab);
    if (temperature > 0.0f && (top_k > 0 || top_p < 1.0f || min_p > 0.0f)) {
        scores += (long long)row * vocab;
        List list = {kept + (long long)row * room + threadIdx.x, 0, 0.0f, LOG2_E / temperature};
        bool weighted = top_k <= 0;
        float mass = list_peaks(scores, vocab, weighted, list);
        int most = sort_key(list.peak);
        if (min_p > 0.0f) floor = sort_key(list.peak + temperature * logf(min_p));
        if (top_k > 0 || top_p < 1.0f) {
            // where the peaks alone have enough, the row has: a bound, near where few are likely
            float limit = weighted ? top_p * mass : top_k;
            int bound = least_kept(list, weighted ? floor : NOTHING, most, limit, weighted);
            list_from(scores, vocab, bound, list);
            if (!weighted) {
                bound = least_kept(list, bound, most, limit, false);
                mass = around(list, bound, true).mass;
            }
            floor = max(floor, bound);
            if (top_p < 1.0f) floor = least_kept(list, floor, most, top_p * mass, true);
        }
    }
    if (threadIdx.x == 0) floors[row] = floor;
}
