// What kernels that are compiled as C++, and whoever launches them, know of the fibers.

#pragma once

struct uint3 { unsigned x, y, z; };

using EmulatorFold = long long (*)(const long long* values, unsigned mask);

extern "C" {
extern const uint3* emulator_thread;                           // threadIdx of the fiber that runs
extern uint3 emulator_block, emulator_threads, emulator_grid;  // blockIdx, blockDim, gridDim
extern char* emulator_shared;                                  // dynamic shared memory

// Waits for all threads of the block. In how many `predicate` holds.
int emulator_barrier(const char* site, bool predicate);

// Waits for the lanes of `mask`. What `fold` makes of their values or, without it, the value of
// lane `source`, and poison where the mask has no such lane.
long long emulator_exchange(
    const char* site, unsigned mask, long long value, int source, EmulatorFold fold);

unsigned emulator_lane();
unsigned emulator_lanes();  // of this warp that have not left the kernel
void emulator_step();       // lets others run where the order is random
}

struct Launch {
    void (*call)(void**);
    void** arguments;
    char* (*statics)();              // an address in the kernel's static shared memory
    unsigned grid[3], threads, shared;
    int order, seconds;              // of threads: see `Order`; of CPU time that it may take
    unsigned long long seed;
    unsigned long long first, step;  // of blocks, modulo their number
};

struct Report {
    unsigned block[3];
    int thread, line;            // -1: none, 0: not known
    unsigned long long address;  // that was touched and is not there, or 0
    unsigned long long pc;       // in `library`
    char library[512], file[256], what[512];
};
