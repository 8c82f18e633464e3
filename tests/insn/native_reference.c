#include "native_reference.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { IMAGE = 512, CODE = 1024, SIZE = 8192 };  /* the page: a word, the caller's x87 state, code */

static uint8_t *page;
static uint8_t *at, *insn, *after;
static struct reference_fault fault;
static bool running;

static void on_signal(int sig, siginfo_t *info, void *context)
{
    __builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() & ~(uint64_t)RFLAGS_AC);
    ucontext_t *ucontext = context;
    uintptr_t rip = (uintptr_t)ucontext->uc_mcontext.gregs[REG_RIP];
    if (!running || rip < (uintptr_t)page || rip >= (uintptr_t)page + SIZE)
        abort();
    fault = (struct reference_fault){ sig, info->si_code, (uintptr_t)info->si_addr };
    ucontext->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)after;
}

void reference_init(void)
{
    const int signals[] = { SIGFPE, SIGSEGV, SIGILL, SIGBUS };
    struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
    for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
        sigaction(signals[i], &action, NULL);
    page = mmap(NULL, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void put(const void *bytes, size_t count)
{
    memcpy(at, bytes, count);
    at += count;
}
#define PUT(...) put((const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

static void put32(size_t value)
{
    uint32_t v = (uint32_t)value;
    put(&v, 4);
}

/* mov between a general register and [rax + offset] */
static void gpr(bool store, unsigned n, size_t offset)
{
    PUT((uint8_t)(0x48 | (n >> 3) << 2), store ? 0x89 : 0x8B, (uint8_t)(0x80 | (n & 7) << 3));
    put32(offset);
}

static void vectors(bool store)
{
    bool wide = __builtin_cpu_supports("avx512f");
    for (unsigned n = 0; n < (wide ? 32u : 16u); n++) {
        if (wide)
            PUT(0x62, (uint8_t)((n & 8 ? 0 : 0x80) | 0x60 | (n & 16 ? 0 : 0x10) | 1), 0x7C, 0x48);
        else
            PUT(0xC5, (uint8_t)((n & 8 ? 0 : 0x80) | 0x7C));
        PUT(store ? 0x11 : 0x10, (uint8_t)(0x80 | (n & 7) << 3));
        put32(offsetof(struct vcpu, fpu.zmm) + n * 64);
    }
    for (unsigned n = 0; wide && n < 8; n++) {
        PUT(0xC4, 0xE1, 0xF8, store ? 0x91 : 0x90, (uint8_t)(0x80 | n << 3));
        put32(offsetof(struct vcpu, fpu.k) + n * 8);
    }
}

static void load_rax(const void *pointer)
{
    PUT(0x48, 0xB8);
    put(&pointer, 8);
}

static void build(struct vcpu *state, const uint8_t *bytes, unsigned length)
{
    static const uint8_t saved[] = { 0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, 0x50 };
    static const uint8_t restored[] = { 0x58, 0x41, 0x5F, 0x41, 0x5E, 0x41, 0x5D, 0x41, 0x5C, 0x5D, 0x5B };
    at = page + CODE;
    put(saved, sizeof(saved));
    load_rax(page + IMAGE);
    PUT(0x48, 0x0F, 0xAE, 0x00);                /* fxsave64: the caller may keep a guest's state there */
    load_rax(state);
    PUT(0x48, 0x0F, 0xAE, 0x88);                /* fxrstor64 */
    put32(offsetof(struct vcpu, fpu.fxsave));
    vectors(false);
    PUT(0xFF, 0xB0);                            /* push rflags */
    put32(offsetof(struct vcpu, rflags));
    PUT(0x9D);
    for (unsigned n = 1; n < 16; n++)
        if (n != RSP)
            gpr(false, n, offsetof(struct vcpu, gpr) + n * 8);
    gpr(false, RAX, offsetof(struct vcpu, gpr));
    insn = at;
    put(bytes, length);
    after = at;
    PUT(0x48, 0xA3);                            /* mov [page], rax */
    put(&page, 8);
    load_rax(state);
    for (unsigned n = 1; n < 16; n++)
        if (n != RSP)
            gpr(true, n, offsetof(struct vcpu, gpr) + n * 8);
    PUT(0x9C, 0x8F, 0x80);                      /* pushfq; pop rflags */
    put32(offsetof(struct vcpu, rflags));
    PUT(0x68, 0x02, 0x02, 0, 0, 0x9D);          /* AC off again */
    vectors(true);
    PUT(0x48, 0x0F, 0xAE, 0x80);                /* fxsave64 */
    put32(offsetof(struct vcpu, fpu.fxsave));
    load_rax(page + IMAGE);
    PUT(0x48, 0x0F, 0xAE, 0x08);
    if (__builtin_cpu_supports("avx"))
        PUT(0xC5, 0xF8, 0x77);
    put(restored, sizeof(restored));
    PUT(0xC3);
}

struct reference_fault reference_run(struct vcpu *state, const uint8_t *bytes, unsigned length)
{
    unsigned mxcsr = __builtin_ia32_stmxcsr();
    build(state, bytes, length);
    fault = (struct reference_fault){ 0 };
    uint64_t entry = (uintptr_t)page + CODE;
    running = true;
    ((void (*)(void))entry)();
    running = false;
    __builtin_ia32_ldmxcsr(mxcsr);
    memcpy(&state->gpr[RAX], page, 8);
    return fault;
}

uint64_t reference_address(void)
{
    return (uintptr_t)insn;
}
