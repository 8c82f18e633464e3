/* Threads: what they are called, which signals they take, how many processors there are for them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cmocka.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "base/base.h"
#include "base/error.h"
#include "base/thread.h"
#include "mem/fetch.h"

enum { PIECE = 1 << 20 };

static void *look(void *mask)
{
    pthread_sigmask(SIG_SETMASK, NULL, mask);
    return NULL;
}

static void *wait_for_end(void *end)
{
    pthread_mutex_lock(end);
    pthread_mutex_unlock(end);
    return NULL;
}

static void signals_from_outside_are_left_to_the_main_thread(void **state)
{
    static const int outside[] = { SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGUSR1, SIGPIPE, SIGALRM },
                     own[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
    sigset_t seen, before, after;
    pthread_t thread;
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    assert_int_equal(thread_start(&thread, "looks", look, &seen), 0);
    pthread_join(thread, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(outside); i++)
        assert_int_equal(sigismember(&seen, outside[i]), 1);
    for (unsigned i = 0; i < ARRAY_SIZE(own); i++)
        assert_int_equal(sigismember(&seen, own[i]), 0);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    for (int i = 1; i < SIGRTMIN; i++)
        assert_int_equal(sigismember(&after, i), sigismember(&before, i));
}

static void a_thread_is_called_as_was_asked(void **state)
{
    pthread_mutex_t end = PTHREAD_MUTEX_INITIALIZER;
    pthread_t thread;
    char name[16];
    pthread_mutex_lock(&end);
    assert_int_equal(thread_start(&thread, "fifteen letters", wait_for_end, &end), 0);
    assert_int_equal(pthread_getname_np(thread, name, sizeof(name)), 0);
    pthread_mutex_unlock(&end);
    pthread_join(thread, NULL);
    assert_string_equal(name, "fifteen letters");
}

static void processors_are_counted_that_the_process_may_run_on(void **state)
{
    cpu_set_t allowed, one;
    assert_int_equal(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    assert_int_equal(thread_processors(), CPU_COUNT(&allowed));
    CPU_ZERO(&one);
    for (int cpu = 0; !CPU_COUNT(&one); cpu++)
        if (CPU_ISSET(cpu, &allowed))
            CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    assert_int_equal(thread_processors(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof(allowed), &allowed), 0);
}

/* In a child that it ends. */
static void read_memory_of_a_file_that_was_cut(struct ram_fetcher *fetcher)
{
    const struct rlimit no_core = { 0 };
    struct error err;
    struct ram *ram = ram_create();
    int fd = memfd_create("cut", MFD_CLOEXEC);
    setrlimit(RLIMIT_CORE, &no_core);
    signal(SIGBUS, SIG_DFL);
    if (!ram || fd < 0 || ftruncate(fd, PIECE) || !ram_add(ram, "ram", 0, PIECE, false, &err) ||
        !ram_fetcher_add(fetcher, &ram->slot[0], &err) || !ram_map_file(&ram->slot[0], 0, PIECE, fd, &err) || ftruncate(fd, 0) ||
        !ram_fetcher_start(fetcher, &err))
        _exit(2);
    _exit(*(volatile uint8_t *)ram->slot[0].host);
}

static void memory_that_can_no_more_be_fetched_ends_the_process_and_does_not_hang_it(void **state)
{
    struct error err;
    struct ram_fetcher *fetcher = ram_fetcher_create(&err);
    int status;
    if (!fetcher)
        skip();
    ram_fetcher_destroy(fetcher);
    pid_t child = fork();
    if (!child) {
        fetcher = ram_fetcher_create(&err);
        if (!fetcher)
            _exit(3);
        read_memory_of_a_file_that_was_cut(fetcher);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(signals_from_outside_are_left_to_the_main_thread),
        cmocka_unit_test(a_thread_is_called_as_was_asked),
        cmocka_unit_test(processors_are_counted_that_the_process_may_run_on),
        cmocka_unit_test(memory_that_can_no_more_be_fetched_ends_the_process_and_does_not_hang_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
