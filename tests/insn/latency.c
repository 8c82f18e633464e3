/*
 * How long an engine takes to notice a request: a vCPU runs code that never ends, another thread kicks it at random moments. What is
 * measured is the processor time of the vCPU's thread from the kick until `run` has come back, so that other work on
 * the host does not count. Prints a line for each kind of code: median, 99 of 100, longest, in microseconds.
 *   latency [--engine NAME] [--samples N]
 */
#include "case.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"

struct spin {
    const char *name;
    const char *body;           /* one round; then it starts again */
    unsigned length, repeat;    /* the body stands there so many times */
};

#define BODY(bytes) bytes, sizeof(bytes) - 1
/* rbx points into the data, rdi is set where it is needed. */
static const struct spin spins[] = {
    { "jump to itself", BODY(""), 0 },
    { "loads and stores", BODY("\x48\x89\x03\x48\x8B\x0B\x48\x01\xC8"), 4 },                       /* mov [rbx], rax; mov rcx, [rbx]; add rax, rcx */
    { "straight line", BODY("\x48\x01\xC8\x48\x31\xC2"), 240 },                                    /* add rax, rcx; xor rdx, rax */
    { "calls and returns", BODY("\xE8\x02\x00\x00\x00\xEB\x01\xC3"), 8 },                          /* call 1f; jmp 2f; 1: ret; 2: */
    { "locked", BODY("\xF0\x48\x0F\xC1\x03"), 20 },                                                /* lock xadd [rbx], rax */
    { "long strings", BODY("\xBF\x00\x10\x00\x10\xB9\x00\x20\x00\x00\xF3\xAA"), 8 },               /* mov edi, DATA; mov ecx, 8192; rep stosb */
    { "SSE square roots", BODY("\x66\x0F\x51\xC0\x66\x0F\x58\xC0"), 100 },                         /* sqrtpd xmm0, xmm0; addpd xmm0, xmm0 */
    { "x87 square roots", BODY("\xD9\xFA\xD8\xC0"), 200 },                                         /* fsqrt; fadd st0 */
};

struct bench {
    struct guest *guest;
    uint64_t noticed_ns;        /* of the spinning thread's processor time */
    sem_t noticed, go_on;
    atomic_bool end;
};

static uint64_t now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void *spin_main(void *argument)
{
    struct bench *bench = argument;
    while (!atomic_load(&bench->end)) {
        guest_run_until_kicked(bench->guest);
        bench->noticed_ns = now_ns(CLOCK_THREAD_CPUTIME_ID);
        sem_post(&bench->noticed);
        sem_wait(&bench->go_on);
    }
    return NULL;
}

static void make_spin(const struct spin *spin, struct run *run)
{
    memset(run, 0, sizeof(*run));
    run->start.rip = CODE_BASE;
    run->start.rflags = 0x202;
    run->start.gpr[3] = DATA_BASE + 0x100;
    run->start.gpr[4] = DATA_BASE + 0x1800;
    memcpy(run->start.fxsave, "\x7F\x03", 2);
    memcpy(run->start.fxsave + 24, "\x80\x1F", 2);
    for (unsigned i = 0; i < spin->repeat; i++, run->code_length += spin->length)
        memcpy(run->code + run->code_length, spin->body, spin->length);
    int32_t back = -(int32_t)(run->code_length + 5);
    run->code[run->code_length] = 0xE9;
    memcpy(run->code + run->code_length + 1, &back, 4);
    run->code_length += 5;
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void measure(const char *engine, const struct spin *spin, unsigned samples)
{
    struct run run;
    struct bench bench = { .guest = guest_start(engine, "host") };
    uint64_t *taken = calloc(samples, sizeof(*taken)), random = 1;
    pthread_t thread;
    clockid_t clock;
    sem_init(&bench.noticed, 0, 0);
    sem_init(&bench.go_on, 0, 0);
    make_spin(spin, &run);
    guest_prepare(bench.guest, &run, (struct guest_how){ 0 });
    pthread_create(&thread, NULL, spin_main, &bench);
    pthread_getcpuclockid(thread, &clock);
    for (unsigned i = 0; i < samples; i++) {
        nanosleep(&(struct timespec){ .tv_nsec = (long)(200000 + next_random(&random) % 200000) }, NULL);
        uint64_t kicked = now_ns(clock);
        guest_kick(bench.guest);
        sem_wait(&bench.noticed);
        taken[i] = bench.noticed_ns - kicked;
        atomic_store(&bench.end, i + 1 == samples);
        sem_post(&bench.go_on);
    }
    pthread_join(thread, NULL);
    qsort(taken, samples, sizeof(*taken), by_size);
    printf("%-8s %-20s %8.1f %8.1f %8.1f\n", engine, spin->name, (double)taken[samples / 2] / 1000,
           (double)taken[samples * 99 / 100] / 1000, (double)taken[samples - 1] / 1000);
    fflush(stdout);
    free(taken);
    guest_stop(bench.guest);
}

int main(int argc, char **argv)
{
    const char *engines[] = { "interp", "dbt" };
    unsigned samples = 2000, engine_count = 2;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--engine"))
            engines[0] = argv[i + 1], engine_count = 1;
        else if (!strcmp(argv[i], "--samples"))
            samples = (unsigned)max_u64(1, strtoull(argv[i + 1], NULL, 0));
        else
            argc = 0;
    }
    if (argc % 2 == 0) {
        fprintf(stderr, "usage: latency [--engine NAME] [--samples N]\n");
        return 2;
    }
    printf("%-8s %-20s %8s %8s %8s  microseconds\n", "engine", "code", "median", "99 %", "longest");
    for (unsigned e = 0; e < engine_count; e++)
        for (unsigned i = 0; i < ARRAY_SIZE(spins); i++)
            measure(engines[e], &spins[i], samples);
    return 0;
}
