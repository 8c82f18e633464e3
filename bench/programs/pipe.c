/* A byte goes to and fro between two processes, on one processor (same) or on two (cross). */
#define _GNU_SOURCE
#include "unit.h"
#include <sched.h>
#include <unistd.h>

static int there[2], back[2];

static uint64_t unit(void)
{
    char c = 'x';
    for (int i = 0; i < 1000; i++)
        if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1)
            give_up("pipe");
    return (uint64_t)c;
}

static void pin(int processor)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    if (sched_setaffinity(0, sizeof(set), &set))
        give_up("sched_setaffinity");
}

int main(int argc, char **argv)
{
    static const char *const words[] = { "same", "cross", NULL };
    int cross = chosen(argc, argv, words);
    char c;

    if (pipe(there) || pipe(back))
        give_up("pipe");
    pid_t child = fork();
    if (child < 0)
        give_up("fork");
    pin(child == 0 ? cross : 0);
    if (child == 0) {
        close(there[1]);
        while (read(there[0], &c, 1) == 1 && write(back[1], &c, 1) == 1)
            ;
        _exit(0);
    }
    return measure(unit);
}
