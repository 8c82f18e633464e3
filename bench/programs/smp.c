/*
 * Two processors. one, two: the same work on one thread, or on each of two at once; atomics: two threads add to one counter;
 * shootdown: a thread takes pages away that the other, which runs on, may hold in its TLB.
 */
#define _GNU_SOURCE
#include "unit.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>

enum { PAGE = 4096, THREADS = 2 };

static int threads = THREADS;
static uint64_t results[THREADS];
static _Atomic uint64_t counter;
static _Atomic int done;
static char *pages;

static void *work(void *slot)
{
    uint64_t a = 1, b = 2, table[256] = { 0 };
    for (int i = 0; i < 2000000; i++) {
        a = a * 6364136223846793005u + b;
        b ^= a >> 29;
        table[b & 255] += a;
    }
    return *(uint64_t *)slot = a + b + table[7], NULL;
}

static void *add(void *slot)
{
    (void)slot;
    for (int i = 0; i < 100000; i++)
        atomic_fetch_add(&counter, 1);
    return NULL;
}

static void *read_pages(void *slot)
{
    uint64_t sum = 0;
    while (!atomic_load(&done))
        sum += *(volatile char *)(pages + PAGE * (sum & 3));
    return *(uint64_t *)slot = sum, NULL;
}

static void *take_pages(void *slot)
{
    (void)slot;
    for (int i = 0; i < 300; i++)
        if (mprotect(pages, 4 * PAGE, PROT_READ) || mprotect(pages, 4 * PAGE, PROT_READ | PROT_WRITE))
            give_up("mprotect");
    atomic_store(&done, 1);
    return NULL;
}

static uint64_t run(void *(*const bodies[THREADS])(void *))
{
    pthread_t ids[THREADS];
    for (int i = 0; i < threads; i++) {
        pthread_attr_t attributes;
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(i, &set);
        pthread_attr_init(&attributes);
        pthread_attr_setaffinity_np(&attributes, sizeof(set), &set);
        if (pthread_create(&ids[i], &attributes, bodies[i], &results[i]))
            give_up("pthread_create");
    }
    for (int i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    return results[0];
}

static uint64_t works(void)
{
    static void *(*const bodies[])(void *) = { work, work };
    uint64_t result = run(bodies);
    if (results[threads - 1] != result)
        give_up("the threads differ");
    return result;
}

static uint64_t adds(void)
{
    static void *(*const bodies[])(void *) = { add, add };
    atomic_store(&counter, 0);
    run(bodies);
    return atomic_load(&counter);
}

static uint64_t shootdowns(void)
{
    static void *(*const bodies[])(void *) = { take_pages, read_pages };
    atomic_store(&done, 0);
    run(bodies);
    return 0;
}

int main(int argc, char **argv)
{
    static const char *const words[] = { "one", "two", "atomics", "shootdown", NULL };
    static uint64_t (*const units[])(void) = { works, works, adds, shootdowns };
    int which = chosen(argc, argv, words);
    threads = which == 0 ? 1 : THREADS;
    pages = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (pages == MAP_FAILED)
        give_up("mmap");
    return measure(units[which]);
}
