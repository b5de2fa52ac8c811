// Drawing the next tokens: ops/sample.py is the definition. Where rows are truncated, truncate.cu
// finds before it the least score that each keeps.

#include "common.cuh"
#include "sort_key.cuh"

constexpr int WARPS = 8, THREADS = WARPS * WARP;  // of a block
constexpr int EACH = 4;                           // tokens of a thread
constexpr int MOST_INT = 0x7fffffff;
constexpr long long LEAST_RANK = -0x7fffffffffffffffLL - 1;

// The number between 0 and 1, neither, of a vocabulary index; see ops/noise.py.
__device__ inline float uniform(long long seed, long long draw, int index) {
    unsigned c0 = index, c1 = draw, c2 = draw >> 32, c3 = 0, k0 = seed, k1 = seed >> 32;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        unsigned high0 = __umulhi(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
        unsigned high2 = __umulhi(c2, 0xCD9E8D57u), low2 = c2 * 0xCD9E8D57u;
        c0 = high2 ^ c1 ^ k0, c1 = low2;
        c2 = high0 ^ c3 ^ k1, c3 = low0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return ((float)(c0 >> 9) + 0.5f) * 0x1p-23f;
}

// The best score of some tokens, as its key above the index, which falls: the largest rank is the
// first of the best. The peak of their logits, finite unless one is not, and Σ exp(logit − peak).
struct alignas(16) Best {
    long long rank;
    float peak, total;
};

__device__ inline long long rank_of(float score, int index) {
    return (long long)sort_key(score) << 32 | (index ^ MOST_INT);
}

// The best of all lanes, in every lane.
__device__ inline Best warp_best(Best x) {
    float peak = warp_max(x.peak);
    for (int step = WARP / 2; step > 0; step /= 2)
        x.rank = max(x.rank, __shfl_xor_sync(ALL, x.rank, step));
    return {x.rank, peak, warp_sum(x.total * expf(x.peak - peak))};
}

__device__ inline Best merged(const Best& x, const Best& y) {
    float peak = fmaxf(x.peak, y.peak);
    return {max(x.rank, y.rank), peak, x.total * expf(x.peak - peak) + y.total * expf(y.peak - peak)};
}

// Whether `count` − 1 others were here before this warp, which stored with its first lane. Then the
// counter is 0 for the next launch.
__device__ inline bool is_last(int* counter, int count) {
    int before = 0;
    if (threadIdx.x % WARP == 0) {
        __threadfence();
        before = atomicAdd(counter, 1);
        __threadfence();
        if (before == count - 1) *counter = 0;
    }
    bool last = __shfl_sync(ALL, before, 0) == count - 1;
    __syncwarp();  // what the others left is there for all lanes
    return last;
}

// A score over the temperature, with the noise by which the largest is a draw.
__device__ inline float heated(float score, float temperature, float u) {
    return __fdiv_rn(score, temperature) - logf(-logf(u));
}

// A thread a score, [rows, vocab] each: logits with the bias and without the penalties. bias, or
// generated and what comes behind it: null where there are none.
extern "C" __global__ void penalize(
    const float* logits, const float* bias, const int* generated, const unsigned char* prompted,
    const float* repetition, const float* presence, const float* frequency, float* scores, int vocab) {
    int row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    long long at = (long long)row * vocab + i;
    if (i >= vocab) return;
    float x = logits[at];
    if (bias) x += bias[at];
    if (generated) {
        int count = generated[at];
        float factor = repetition[row];
        // products are rounded before they are subtracted, as the definition's are
        if (count > 0 || prompted[at]) x = x > 0.0f ? __fdiv_rn(x, factor) : __fmul_rn(x, factor);
        if (count > 0) x -= presence[row];
        x -= __fmul_rn(frequency[row], (float)count);
    }
    scores[at] = x;
}

// The best of a block of a row, of which the row's last block takes the best, its token and the
// token's log-probability. logits, scores: [rows, vocab]; without scores, the logits are. floors,
// temperatures, seeds, draws: [rows]; without floors nothing is dropped, and without temperatures
// all are 0. bests: [rows, blocks]. counters: [rows], zeros, and so they are afterwards.
extern "C" __global__ void __launch_bounds__(THREADS) draw(
    const float* logits, const float* scores, const int* floors, const float* temperatures,
    const long long* seeds, const long long* draws, Best* bests, int* counters, long long* tokens,
    float* logprobs, int vocab) {
    __shared__ Best parts[WARPS];
    const float minus_infinity = __int_as_float(0xff800000);
    const Best none = {LEAST_RANK, -0x1.fffffep127f, 0.0f};
    int row = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int first = blockIdx.y * THREADS * EACH + threadIdx.x;
    logits += (long long)row * vocab;
    scores = scores ? scores + (long long)row * vocab : logits;
    float temperature = temperatures ? temperatures[row] : 0.0f;
    long long seed = seeds[row], i_draw = draws[row];
    int floor = floors ? floors[row] : -MOST_INT - 1;

    float x[EACH], score[EACH];
    Best best = none;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        int i = first + j * THREADS;
        x[j] = i < vocab ? logits[i] : minus_infinity;
        score[j] = i < vocab ? scores[i] : minus_infinity;
        best.peak = fmaxf(best.peak, x[j]);
    }
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        int i = first + j * THREADS;
        best.total += expf(x[j] - best.peak);
        if (temperature > 0.0f) {
            bool kept = sort_key(score[j]) >= floor;
            float hot = heated(score[j], temperature, uniform(seed, i_draw, i));
            score[j] = kept ? hot : minus_infinity;
        }
        if (i < vocab) best.rank = max(best.rank, rank_of(score[j], i));
    }
    best = warp_best(best);
    if (lane == 0) parts[warp] = best;
    __syncthreads();
    if (warp > 0) return;

    best = warp_best(lane < WARPS ? parts[lane] : none);
    bests += (long long)row * gridDim.y;
    if (lane == 0) bests[blockIdx.y] = best;
    if (!is_last(counters + row, gridDim.y)) return;
    best = none;
    for (int i = lane; i < gridDim.y; i += WARP) {
        // past the first-level cache, which may hold what an earlier launch wrote
        Best part = {__ldcg(&bests[i].rank), __ldcg(&bests[i].peak), __ldcg(&bests[i].total)};
        best = merged(best, part);
    }
    best = warp_best(best);
    if (lane > 0) return;
    int token = (int)best.rank ^ MOST_INT;
    tokens[row] = token;
    logprobs[row] = logits[token] - best.peak - logf(best.total);
}
