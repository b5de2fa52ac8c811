// Switching between fibers, without the system call of ucontext's where that is known how.

#pragma once

#include <stddef.h>
#include <string.h>
#include <ucontext.h>

#if defined __x86_64__ && !defined EMULATOR_UCONTEXT

// What a function must keep lies on its stack.
struct Context {
    void** stack;
};

asm(R"(
    .local emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, . - emulator_switch
)");
constexpr int KEPT_WORDS = 8, RETURN_WORD = 6;  // the word behind it is for alignment

#elif defined __aarch64__ && !defined EMULATOR_UCONTEXT

struct Context {
    void** stack;
};

asm(R"(
    .local emulator_switch
    .type emulator_switch, %function
emulator_switch:
    sub sp, sp, #160
    stp x29, x30, [sp]
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x2, sp
    str x2, [x0]
    ldr x2, [x1]
    mov sp, x2
    ldp x29, x30, [sp]
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size emulator_switch, . - emulator_switch
)");
constexpr int KEPT_WORDS = 20, RETURN_WORD = 1;

#else

struct Context {
    ucontext_t kept;
};

static void emulator_switch(Context* from, Context* to) { swapcontext(&from->kept, &to->kept); }

static void prepare(Context& context, char* stack, size_t bytes, void (*start)()) {
    getcontext(&context.kept);
    context.kept.uc_stack.ss_sp = stack;
    context.kept.uc_stack.ss_size = bytes;
    makecontext(&context.kept, start, 0);
}

#endif

#if (defined __x86_64__ || defined __aarch64__) && !defined EMULATOR_UCONTEXT

// Returns when something switches to `from`.
extern "C" void emulator_switch(Context* from, Context* to);

// The first switch to the context calls `start`, which never returns. bytes: a multiple of 16.
static void prepare(Context& context, char* stack, size_t bytes, void (*start)()) {
    context.stack = (void**)(stack + bytes) - KEPT_WORDS;
    memset(context.stack, 0, KEPT_WORDS * sizeof(void*));
    context.stack[RETURN_WORD] = (void*)start;
}

#endif
