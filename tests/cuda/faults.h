// How a launch fails: what is reported, and how faults of the processor and of C++ come to it.

#pragma once

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <ucontext.h>

#include "emulator.h"

static Report* report;
static jmp_buf launcher;
static pthread_t caller;
static const char *stacks_begin, *stacks_end;  // of the fibers
static const char *shared_begin, *shared_end;  // dynamic shared memory with its guards
static unsigned shared_bytes;
static int thread_now();

[[noreturn]] static void fail(int thread, const char* format, ...) {
    va_list rest;
    va_start(rest, format);
    vsnprintf(report->what, sizeof report->what, format, rest);
    va_end(rest);
    report->thread = thread;
    report->block[0] = emulator_block.x;
    report->block[1] = emulator_block.y;
    report->block[2] = emulator_block.z;
    _longjmp(launcher, 1);
}

// Where the kernel was: for whoever reads the library's line numbers.
static void set_place(const void* pc) {
    Dl_info found;
    if (!dladdr(pc, &found)) return;
    report->pc = (const char*)pc - (const char*)found.dli_fbase;
    snprintf(report->library, sizeof report->library, "%s", found.dli_fname);
}

static const void* pc_of(const void* context) {
    const mcontext_t& machine = ((const ucontext_t*)context)->uc_mcontext;
#if defined __x86_64__
    return (const void*)machine.gregs[REG_RIP];
#elif defined __aarch64__
    return (const void*)machine.pc;
#else
    return nullptr;
#endif
}

[[noreturn]] static void fail_touching(const char* at) {
    if (at >= stacks_begin && at < stacks_end)
        fail(thread_now(), "takes more than its stack for local variables");
    if (at >= shared_begin && at < shared_end)
        fail(thread_now(), "touches byte %ld of dynamic shared memory, which has %u",
             long(at - emulator_shared), shared_bytes);
    report->address = (unsigned long long)at;
    fail(thread_now(), "touches memory that is not there");
}

static void on_signal(int number, siginfo_t* info, void* context) {
    if (!pthread_equal(pthread_self(), caller)) {  // no kernel's; it comes again at once
        if (number == SIGVTALRM)
            pthread_kill(caller, number);
        else
            signal(number, SIG_DFL);
        return;
    }
    set_place(pc_of(context));
    if (number == SIGVTALRM) fail(thread_now(), "is still running at the limit of time");
    bool named = info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR;
    if (number == SIGSEGV && named) fail_touching((const char*)info->si_addr);
    if (number == SIGSEGV || number == SIGBUS)
        fail(thread_now(), "touches what is no address, or no multiple of its alignment");
    fail(thread_now(), "ends by signal %d", number);
}

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGVTALRM};

// Signals come here while one lives.
struct Signals {
    struct sigaction before[sizeof SIGNALS / sizeof *SIGNALS];
    stack_t stack_before;

    explicit Signals(int seconds) {
        static char stack[64 << 10];
        stack_t own = {stack, 0, sizeof stack};
        caller = pthread_self();
        sigaltstack(&own, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        int i = 0;
        for (int number : SIGNALS) sigaction(number, &action, before + i++);
        set_timer(seconds);
    }

    ~Signals() {
        set_timer(0);
        int i = 0;
        for (int number : SIGNALS) sigaction(number, before + i++, nullptr);
        sigaltstack(&stack_before, nullptr);
    }

    static void set_timer(int seconds) {
        itimerval timer = {{0, 0}, {seconds, 0}};
        setitimer(ITIMER_VIRTUAL, &timer, nullptr);
    }
};

// What -fsanitize calls, in the place of its own library.
struct Place {
    const char* file;
    unsigned line, column;
};

struct TypeMismatch {
    Place place;
    const void* type;
    unsigned char log_alignment, kind;
};

[[noreturn]] static void fail_at(const Place& place, const void* pc, const char* what) {
    set_place((const char*)pc - 1);  // the call, not what follows it
    snprintf(report->file, sizeof report->file, "%s", place.file);
    report->line = place.line;
    fail(thread_now(), "%s", what);
}

#define ON_UNDEFINED(name, what)                            \
    extern "C" void __ubsan_handle_##name(Place* place) {   \
        fail_at(*place, __builtin_return_address(0), what); \
    }

ON_UNDEFINED(out_of_bounds, "takes an element that its array does not have")
ON_UNDEFINED(shift_out_of_bounds, "shifts by more bits than there are")
ON_UNDEFINED(divrem_overflow, "divides an integer by zero")
ON_UNDEFINED(add_overflow, "adds beyond the range of a signed integer")
ON_UNDEFINED(sub_overflow, "subtracts beyond the range of a signed integer")
ON_UNDEFINED(mul_overflow, "multiplies beyond the range of a signed integer")
ON_UNDEFINED(negate_overflow, "negates beyond the range of a signed integer")
ON_UNDEFINED(float_cast_overflow, "casts a float that the integer cannot hold")

extern "C" void __ubsan_handle_type_mismatch_v1(TypeMismatch* found, unsigned long long at) {
    if (at) report->address = at;
    fail_at(found->place, __builtin_return_address(0),
            at ? "touches a type at an address that is no multiple of its alignment"
               : "touches a null pointer");
}
