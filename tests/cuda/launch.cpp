// A launch: its grid of blocks, and the shared memory of a block.

#include <fenv.h>
#include <link.h>

#include "fibers.h"

uint3 emulator_block, emulator_threads, emulator_grid;
char* emulator_shared;

constexpr size_t SHARED = 256 << 10;  // bytes that a launch may ask for
constexpr size_t BEFORE = 256;        // bytes before them that are watched

static void poison(char* at, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) at[i] = char(POISONS >> 8 * (i % 2));
}

static bool is_poison(const char* at, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (at[i] != char(POISONS >> 8 * (i % 2))) return false;
    return true;
}

// Static shared memory is thread-local, so it lies apart from all else.
struct Statics {
    char *begin, *end;
};

static int find_statics(dl_phdr_info* info, size_t, void* sought) {
    Statics& found = *(Statics*)sought;
    char* begin = (char*)info->dlpi_tls_data;
    for (int i = 0; begin && i < info->dlpi_phnum; i++) {
        char* end = begin + info->dlpi_phdr[i].p_memsz;
        if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
        if (found.begin < begin || found.begin >= end) continue;
        found = {begin, end};
        return 1;
    }
    return 0;
}

// Dynamic shared memory ends, but for alignment to 16 bytes, at its guard.
static void reserve_shared(unsigned bytes) {
    if (!shared_begin) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        char* at = (char*)mmap(nullptr, 3 * SHARED, PROT_NONE, flags, -1, 0);
        mprotect(at + SHARED, SHARED, PROT_READ | PROT_WRITE);
        shared_begin = at;
        shared_end = at + 3 * SHARED;
    }
    shared_bytes = bytes;
    emulator_shared = (char*)shared_begin + 2 * SHARED - (bytes + 15) / 16 * 16;
}

static void run_blocks(const Launch& launch) {
    Statics statics = {launch.statics(), nullptr};
    if (!dl_iterate_phdr(find_statics, &statics)) fail(-1, "its static shared memory is not found");
    size_t dynamic = (launch.shared + 15) / 16 * 16;
    const unsigned* grid = launch.grid;
    unsigned long long blocks = (unsigned long long)grid[0] * grid[1] * grid[2];
    for (unsigned long long i = 0, block = launch.first; i < blocks; i++) {
        emulator_block = {
            unsigned(block % grid[0]), unsigned(block / grid[0] % grid[1]),
            unsigned(block / grid[0] / grid[1])};
        poison(statics.begin, statics.end - statics.begin);
        poison(emulator_shared - BEFORE, BEFORE + dynamic);
        run_block();
        if (!is_poison(emulator_shared - BEFORE, BEFORE))
            fail(-1, "writes before dynamic shared memory");
        if (!is_poison(emulator_shared + launch.shared, dynamic - launch.shared))
            fail(-1, "writes behind the %u bytes of dynamic shared memory", launch.shared);
        block = (block + launch.step) % blocks;
    }
}

// Whether it ended well; else `to` says why not.
extern "C" bool emulator_launch(const Launch* launch, Report* to) {
    fenv_t environment;
    fegetenv(&environment);
    fesetenv(FE_DFL_ENV);  // denormal numbers are numbers
    report = to;
    emulator_threads = {launch->threads, 1, 1};
    emulator_grid = {launch->grid[0], launch->grid[1], launch->grid[2]};
    begin(*launch);
    reserve_shared(launch->shared);
    bool well;
    {
        Signals signals(launch->seconds);
        well = !_setjmp(launcher);
        if (well) run_blocks(*launch);
    }
    if (!well) forget_fibers();
    fesetenv(&environment);
    return well;
}
