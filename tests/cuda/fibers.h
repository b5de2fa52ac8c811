// Runs the blocks of a launch one after another, and each thread of a block as a fiber.
//
// A fiber runs until it waits: at a barrier, or at an exchange between lanes, which the last lane
// to come completes for all. Where nobody can run though threads wait, one that they wait for went
// elsewhere. Fibers live on from launch to launch; one that fails leaves them where they are, and
// the next begins with new ones.

#pragma once

#include <sys/mman.h>

#include "context.h"
#include "faults.h"

constexpr unsigned THREADS = 1024, WARP = 32;
constexpr size_t GUARD = 64 << 10, STACK = 256 << 10;

enum Order { ASCENDING, DESCENDING, RANDOM };

struct Fiber {
    Context context;
    uint3 index;
    const char* site;  // where it waits, or null
    unsigned mask;     // of the lanes it waits for; 0: the whole block
    int source;
    long long value;
    bool started, left;
};

static Fiber fibers[THREADS];
static Fiber* now;
static unsigned ready[WARP], warps_ready;      // lanes of each warp that can run; warps with any
static unsigned posted[WARP];                  // lanes that wait for an exchange
static unsigned waiting, predicates, counted;  // at the barrier; at the last one
static unsigned threads, left;
static int order;
static unsigned long long random_state;
static void (*call)(void**);
static void** arguments;
static char* stacks;
constexpr long long POISONS = 0x7ffd7ffd7ffd7ffd;  // NaN in every type, and no likely integer
static Context between;  // blocks

const uint3* emulator_thread;

static unsigned any(unsigned bits) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    unsigned turn = random_state >> 40 & 31;
    return (__builtin_ctz(bits >> turn | bits << (-turn & 31)) + turn) & 31;
}

static unsigned pick(unsigned bits) {
    if (order == ASCENDING) return __builtin_ctz(bits);
    return order == DESCENDING ? 31 - __builtin_clz(bits) : any(bits);
}

static void set_ready(unsigned warp, unsigned lanes) {
    ready[warp] |= lanes;
    warps_ready |= 1u << warp;
}

static void set_waiting(unsigned thread) {
    unsigned warp = thread / WARP;
    ready[warp] &= ~(1u << thread % WARP);
    if (!ready[warp]) warps_ready &= ~(1u << warp);
}

static unsigned lanes_of(unsigned warp) {
    unsigned count = threads - warp * WARP;
    return count >= WARP ? ~0u : (1u << count) - 1;
}

static int thread_now() { return now ? now - fibers : -1; }

static bool same(const char* a, const char* b) { return a == b || (a && b && !strcmp(a, b)); }

[[noreturn]] static void fail_apart(const Fiber& by, const Fiber& other) {
    char where[300];
    snprintf(where, sizeof where, "waits in %s with mask %#x", other.site, other.mask);
    fail(&by - fibers, "waits in %s for thread %d, which %s", by.site, int(&other - fibers),
         other.left ? "has left the kernel" : where);
}

// Whom the fiber waits for in vain.
static const Fiber* missed(const Fiber& by) {
    unsigned first = 0, end = threads;
    if (by.mask) first = (&by - fibers) / WARP * WARP, end = first + WARP;
    for (unsigned i = first; i < end; i++) {
        if (by.mask && !(by.mask >> i % WARP & 1)) continue;
        if (fibers[i].mask != by.mask || !same(fibers[i].site, by.site)) return fibers + i;
    }
    return nullptr;
}

// An exchange that lacks lanes may be why others wait for the whole warp.
[[noreturn]] static void fail_waiting() {
    for (int whole = 0; whole < 2; whole++)
        for (const Fiber* by = fibers; by < fibers + threads; by++)
            if (by->site && !by->mask == whole)
                if (const Fiber* other = missed(*by)) fail_apart(*by, *other);
    fail(-1, "no thread can run");
}

[[noreturn]] static void fiber_main();

static void prepare(Fiber& fiber) {
    unsigned i = &fiber - fibers;
    char* stack = stacks + i * STACK + GUARD;
    mprotect(stack, STACK - GUARD, PROT_READ | PROT_WRITE);
    // stacks that all began alike would fall on the same lines of the caches
    prepare(fiber.context, stack, STACK - GUARD - i % 64 * 448, fiber_main);
    fiber.started = true;
}

static Fiber* next_fiber() {
    unsigned warp = pick(warps_ready);
    return fibers + warp * WARP + pick(ready[warp]);
}

// Returns when this fiber is the one to run; none is when all have left.
static inline void next() {
    Fiber* from = now;
    if (!warps_ready) {
        if (left < threads) fail_waiting();
        now = nullptr;
        emulator_switch(&from->context, &between);
        return;
    }
    now = next_fiber();
    emulator_thread = &now->index;
    if (now != from) emulator_switch(&from->context, &now->context);
}

[[noreturn]] static void fiber_main() {
    for (;;) {
        call(arguments);
        now->left = true;
        left++;
        set_waiting(now - fibers);
        next();
    }
}

static void begin(const Launch& launch) {
    if (!stacks) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        stacks = (char*)mmap(nullptr, THREADS * STACK, PROT_NONE, flags, -1, 0);
        stacks_begin = stacks;
        stacks_end = stacks + THREADS * STACK;
    }
    call = launch.call;
    arguments = launch.arguments;
    threads = launch.threads;
    order = launch.order;
    random_state = launch.seed * 0x9e3779b97f4a7c15 | 1;
}

static void run_block() {
    waiting = predicates = left = 0;
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].index = {i, 0, 0};
        fibers[i].site = nullptr;
        fibers[i].left = false;
        if (!fibers[i].started) prepare(fibers[i]);
    }
    for (unsigned warp = 0; warp * WARP < threads; warp++) {
        posted[warp] = 0;
        set_ready(warp, lanes_of(warp));
    }
    now = next_fiber();
    emulator_thread = &now->index;
    emulator_switch(&between, &now->context);
}

// After a launch that failed.
static void forget_fibers() {
    for (Fiber& fiber : fibers) fiber.started = false;
    for (unsigned& lanes : ready) lanes = 0;
    warps_ready = 0;
    now = nullptr;
}

int emulator_barrier(const char* site, bool predicate) {
    now->site = site;
    now->mask = 0;
    predicates += predicate;
    set_waiting(now - fibers);
    if (++waiting == threads) {
        if (const Fiber* other = missed(*fibers)) fail_apart(*fibers, *other);
        counted = predicates;
        waiting = predicates = 0;
        for (unsigned i = 0; i < threads; i++) fibers[i].site = nullptr;
        for (unsigned warp = 0; warp * WARP < threads; warp++) set_ready(warp, lanes_of(warp));
    }
    next();
    return counted;
}

static void complete(unsigned warp, unsigned mask, EmulatorFold fold) {
    long long values[WARP];
    Fiber* lanes = fibers + warp * WARP;
    if (const Fiber* other = missed(*now)) fail_apart(*now, *other);
    for (unsigned i = 0; i < WARP; i++) values[i] = mask >> i & 1 ? lanes[i].value : POISONS;
    long long folded = fold ? fold(values, mask) : 0;
    for (unsigned i = 0; i < WARP; i++) {
        if (!(mask >> i & 1)) continue;
        lanes[i].value = fold ? folded : values[lanes[i].source];
        lanes[i].site = nullptr;
    }
    posted[warp] &= ~mask;
    set_ready(warp, mask);
}

long long emulator_exchange(
    const char* site, unsigned mask, long long value, int source, EmulatorFold fold) {
    unsigned thread = now - fibers, warp = thread / WARP, lane = thread % WARP;
    if (!(mask >> lane & 1)) fail(thread, "is not in the mask %#x of %s", mask, site);
    if (mask & ~lanes_of(warp))
        fail(thread, "the mask %#x of %s names lanes that a block of %u threads does not have",
             mask, site, threads);
    now->site = site;
    now->mask = mask;
    now->source = source;
    now->value = value;
    posted[warp] |= 1u << lane;
    set_waiting(thread);
    if ((posted[warp] & mask) == mask) complete(warp, mask, fold);
    next();
    return now->value;
}

unsigned emulator_lane() { return (now - fibers) % WARP; }

unsigned emulator_lanes() {
    unsigned warp = (now - fibers) / WARP, lanes = lanes_of(warp);
    for (unsigned i = 0; i < WARP; i++)
        if (fibers[warp * WARP + i].left) lanes &= ~(1u << i);
    return lanes;
}

void emulator_step() {
    if (order == RANDOM) next();
}
