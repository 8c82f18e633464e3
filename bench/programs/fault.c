/* The memory manager: pages touched for the first time, protection changed, faults handled by the program itself. */
#define _GNU_SOURCE
#include "unit.h"
#include <signal.h>
#include <sys/mman.h>

enum { PAGE = 4096, PAGES = 1024 };

static char *one;

static char *pages(int count)
{
    char *p = mmap(NULL, (size_t)count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        give_up("mmap");
    madvise(p, (size_t)count * PAGE, MADV_NOHUGEPAGE);
    return p;
}

static uint64_t touches(void)
{
    char *p = pages(PAGES);
    for (int i = 0; i < PAGES; i++)
        p[i * PAGE] = 1;
    munmap(p, (size_t)PAGES * PAGE);
    return 0;
}

static uint64_t protections(void)
{
    for (int i = 0; i < 2000; i++) {
        if (mprotect(one, PAGE, PROT_READ) || mprotect(one, PAGE, PROT_READ | PROT_WRITE))
            give_up("mprotect");
        *(volatile char *)one = 1;
    }
    return 0;
}

static void on_signal(int number) { (void)number; }

static uint64_t signals(void)
{
    for (int i = 0; i < 2000; i++)
        raise(SIGUSR1);
    return 0;
}

static void on_fault(int number)
{
    (void)number;
    mprotect(one, PAGE, PROT_READ | PROT_WRITE);
}

static uint64_t faults(void)
{
    for (int i = 0; i < 1000; i++) {
        mprotect(one, PAGE, PROT_NONE);
        *(volatile char *)one = 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    static const char *const words[] = { "page", "mprotect", "signal", "segv", NULL };
    static uint64_t (*const units[])(void) = { touches, protections, signals, faults };
    int which = chosen(argc, argv, words);
    one = pages(1);
    signal(SIGUSR1, on_signal);
    signal(SIGSEGV, on_fault);
    return measure(units[which]);
}
