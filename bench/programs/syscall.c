/* The shortest system call, and the clock that is read without one. */
#define _GNU_SOURCE
#include "unit.h"
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t getppid_calls(void)
{
    for (int i = 0; i < 20000; i++)
        syscall(SYS_getppid);
    return 0;
}

static uint64_t clock_reads(void)
{
    struct timespec t;
    for (int i = 0; i < 50000; i++)
        clock_gettime(CLOCK_MONOTONIC, &t);
    return 0;
}

int main(int argc, char **argv)
{
    static const char *const words[] = { "getppid", "clock_gettime", NULL };
    return measure(chosen(argc, argv, words) ? clock_reads : getppid_calls);
}
