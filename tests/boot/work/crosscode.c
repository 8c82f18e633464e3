/*
 * One processor changes code that another runs: a constant in a function, in place and with one aligned store, which the runner
 * has to see in order and in the end; and whole functions, handed over by a flag, which have to be the new ones when called.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { LAST = 3000, ROUNDS = 3000 };

typedef uint32_t function(void);

static unsigned char *code;
static _Atomic uint32_t ready, seen;

static function *at(size_t offset) { return (function *)(void *)(code + offset); }

static void pin(int processor)
{
    cpu_set_t mine;
    CPU_ZERO(&mine);
    CPU_SET(processor, &mine);
    sched_setaffinity(0, sizeof(mine), &mine);
}

/* mov eax, value; ret, with the value in an aligned doubleword. */
static void write_function(size_t offset, uint32_t value)
{
    code[offset + 3] = 0xB8;
    memcpy(code + offset + 4, &value, 4);
    code[offset + 8] = 0xC3;
}

static void *change(void *unused)
{
    pin(1);
    for (uint32_t i = 1; i <= LAST; i++) {
        *(volatile uint32_t *)(void *)(code + 4) = i;
        for (volatile int wait = 0; wait < 200; wait++)
            ;
    }
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        write_function(4096 + (i % 16) * 64, i);
        atomic_store(&ready, i);
        while (atomic_load(&seen) != i)
            sched_yield();
    }
    return unused;
}

static int serialize(void)
{
    int a = 0, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : "memory");
    return a;
}

int main(void)
{
    pthread_t thread;
    uint32_t before = 0, value;
    code = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED)
        return 2;
    write_function(0, 0);
    pin(0);
    pthread_create(&thread, NULL, change, NULL);
    while (before != LAST) {
        value = at(3)();
        if (value < before || value > LAST) {
            printf("the constant went from %u to %u\n", before, value);
            return 1;
        }
        before = value;
    }
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        while (atomic_load(&ready) != i)
            sched_yield();
        serialize();
        value = at(4096 + (i % 16) * 64 + 3)();
        if (value != i) {
            printf("function %u gave %u\n", i, value);
            return 1;
        }
        atomic_store(&seen, i);
    }
    pthread_join(thread, NULL);
    puts("in order");
    return 0;
}
