/* The guest of bench/engines.py: small kernels, each timed. As process 1 it powers the machine off at the end. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t sink;
static uint8_t bytes[1 << 20];
static uint32_t words[1 << 18];

static void sieve(void)
{
    for (int round = 0; round < 4; round++) {
        memset(bytes, 1, sizeof(bytes));
        for (unsigned i = 2; i * i < sizeof(bytes); i++)
            for (unsigned j = i * i; bytes[i] && j < sizeof(bytes); j += i)
                bytes[j] = 0;
    }
    sink += bytes[1009];
}

static void mix(void)
{
    uint64_t a = 1, b = 2, c = 3;
    for (int i = 0; i < 10000000; i++) {
        a = a * 6364136223846793005u + b;
        b ^= a >> 29;
        c += (b << 3) ^ (a & 0xFF);
    }
    sink += a + b + c;
}

static int by_value(const void *a, const void *b)
{
    return (*(const uint32_t *)a > *(const uint32_t *)b) - (*(const uint32_t *)a < *(const uint32_t *)b);
}

static void sort(void)
{
    uint32_t x = 1;
    for (unsigned i = 0; i < 1 << 16; i++)
        words[i] = x = x * 1664525 + 1013904223;
    qsort(words, 1 << 16, sizeof(words[0]), by_value);
    sink += words[7];
}

static __attribute__((noinline)) unsigned fibonacci(unsigned n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
static void calls(void) { sink += fibonacci(29); }

static void checksum(void)
{
    uint32_t crc = ~0u;
    for (unsigned i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0xEDB88320 ^ (c >> 1) : c >> 1;
        words[i] = c;
    }
    for (int round = 0; round < 4; round++)
        for (unsigned i = 0; i < sizeof(bytes); i++)
            crc = words[(crc ^ bytes[i]) & 0xFF] ^ (crc >> 8);
    sink += crc;
}

static void chase(void)
{
    uint32_t at = 0, count = 1 << 18;
    for (uint32_t i = 0; i < count; i++)
        words[i] = (i * 1103515245 + 12345) & (count - 1);
    for (int i = 0; i < 4000000; i++)
        at = words[at];
    sink += at;
}

static void floating(void)
{
    volatile double seed = 1.0;
    double x = seed, y = 0.5;
    for (int i = 0; i < 1000000; i++) {
        x = x * 0.999 + y * 0.001;
        y = y + (x - y) / 3.0;
    }
    sink += (uint64_t)(x + y);
}

static void copies(void)
{
    for (int i = 0; i < 200; i++)
        memcpy(words, bytes, sizeof(bytes));
}

static void system_calls(void)
{
    for (int i = 0; i < 100000; i++)
        sink += (uint64_t)getppid();
}

static void faults(void)
{
    enum { SIZE = 8 << 20 };
    for (int round = 0; round < 4; round++) {
        char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (int i = 0; i < SIZE; i += 4096)
            p[i] = 1;
        munmap(p, SIZE);
    }
}

static void forks(void)
{
    for (int i = 0; i < 100; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        waitpid(pid, NULL, 0);
    }
}

static void switches(void)
{
    int there[2], back[2];
    char c = 0;
    if (pipe(there) || pipe(back))
        return;
    pid_t pid = fork();
    if (pid == 0) {
        close(there[1]);
        while (read(there[0], &c, 1) == 1 && write(back[1], &c, 1) == 1)
            ;
        _exit(0);
    }
    for (int i = 0; i < 5000; i++)
        if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1)
            break;
    close(there[0]), close(there[1]), close(back[0]), close(back[1]);
    waitpid(pid, NULL, 0);
}

int main(void)
{
    static const struct { const char *name; void (*run)(void); } kernels[] = {
        { "arithmetic", mix }, { "sieve", sieve }, { "checksum", checksum }, { "sort", sort }, { "calls", calls },
        { "pointer chase", chase }, { "floating point", floating }, { "memcpy", copies }, { "system calls", system_calls },
        { "page faults", faults }, { "fork", forks }, { "context switches", switches },
    };
    if (getpid() == 1)
        sleep(2);           /* the kernel still has work of its own to finish */
    for (unsigned i = 0; i < sizeof(kernels) / sizeof(kernels[0]); i++) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        kernels[i].run();
        clock_gettime(CLOCK_MONOTONIC, &to);
        printf("KERNEL %s: %.6f\n", kernels[i].name, (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9);
        fflush(stdout);
    }
    if (getpid() == 1)
        reboot(RB_POWER_OFF);
    return 0;
}
