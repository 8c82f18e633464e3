/* Processes and threads made and waited for: fork, fork and exec, pthread_create. */
#include "unit.h"
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

static char *self;

static void await(pid_t child)
{
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status)
        give_up("child");
}

static uint64_t forks(void)
{
    for (int i = 0; i < 40; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        await(child);
    }
    return 0;
}

static uint64_t execs(void)
{
    for (int i = 0; i < 10; i++) {
        pid_t child = fork();
        if (child == 0) {
            execl(self, self, "nothing", (char *)NULL);
            _exit(1);
        }
        await(child);
    }
    return 0;
}

static void *nothing(void *argument) { return argument; }

static uint64_t threads(void)
{
    for (int i = 0; i < 100; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, nothing, NULL) || pthread_join(thread, NULL))
            give_up("thread");
    }
    return 0;
}

int main(int argc, char **argv)
{
    static const char *const words[] = { "fork", "exec", "thread", "nothing", NULL };
    static uint64_t (*const units[])(void) = { forks, execs, threads };
    int which = chosen(argc, argv, words);
    self = argv[0];
    return which == 3 ? 0 : measure(units[which]);
}
