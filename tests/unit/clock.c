/* The clock and the loop: order of timers, pause, both readings agree, work and descriptors. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "base/base.h"
#include "base/clock.h"
#include "base/loop.h"
#include "unit/cmocka_all.h"

struct probe {
    struct timer timer;
    struct clock *clock;
    uint64_t fired_ns[16];
    int count, id, *order, *order_count;
    uint64_t period;
};

static void probe_fire(void *owner)
{
    struct probe *probe = owner;
    probe->fired_ns[probe->count++ & 15] = clock_ns(probe->clock);
    if (probe->order)
        probe->order[(*probe->order_count)++] = probe->id;
    if (probe->period)
        timer_arm(&probe->timer, clock_ns(probe->clock) + probe->period);
}

static void manual_timers_fire_in_order_at_their_deadlines(void **state)
{
    struct clock *clock = clock_create_manual();
    struct probe probes[40] = { 0 };
    int order[40], count = 0;
    for (int i = 0; i < 40; i++) {
        probes[i] = (struct probe){ .clock = clock, .id = i, .order = order, .order_count = &count };
        timer_init(&probes[i].timer, clock, probe_fire, &probes[i]);
        timer_arm(&probes[i].timer, 1000 + (uint64_t)(i * 7 % 40) * 10);
    }
    timer_disarm(&probes[3].timer);
    assert_false(timer_armed(&probes[3].timer));
    timer_arm(&probes[0].timer, 5000);
    clock_advance(clock, 2000);
    assert_int_equal(count, 38);
    for (int i = 1; i < count; i++)
        assert_true(probes[order[i]].fired_ns[0] > probes[order[i - 1]].fired_ns[0]);
    assert_int_equal(probes[1].fired_ns[0], 1070);
    assert_int_equal(clock_ns(clock), 2000);
    clock_advance(clock, 3000);
    assert_int_equal(probes[0].fired_ns[0], 5000);
    clock_destroy(clock);
}

static void periodic_timer_rearms_itself(void **state)
{
    struct clock *clock = clock_create_manual();
    struct probe probe = { .clock = clock, .period = 100 };
    timer_init(&probe.timer, clock, probe_fire, &probe);
    timer_arm(&probe.timer, 100);
    clock_advance(clock, 1000);
    assert_int_equal(probe.count, 10);
    timer_disarm(&probe.timer);
    clock_destroy(clock);
}

static void note_earlier(void *owner) { ++*(int *)owner; }

static void counted_time_is_instructions_and_sleep(void **state)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct clock *clock = clock_create_counted(&lock, 2000);
    struct probe probe = { .clock = clock };
    int earlier = 0;
    clock_on_earlier(clock, note_earlier, &earlier);
    timer_init(&probe.timer, clock, probe_fire, &probe);
    assert_true(clock_counted(clock));
    assert_int_equal(clock_fire_due(clock), UINT64_MAX);
    assert_false(clock_skip(clock));
    timer_arm(&probe.timer, 1000);
    assert_int_equal(earlier, 1);
    assert_int_equal(clock_fire_due(clock), 2000);
    clock_count(clock, 1999);
    assert_int_equal(clock_tsc(clock), 1999);
    assert_int_equal(clock_fire_due(clock), 1);
    assert_int_equal(probe.count, 0);
    clock_count(clock, 2000);
    assert_int_equal(clock_fire_due(clock), UINT64_MAX);
    assert_int_equal(probe.count, 1);
    assert_int_equal(probe.fired_ns[0], 1000);
    timer_arm(&probe.timer, 5000);
    assert_int_equal(clock_fire_due(clock), 8000);
    timer_arm(&probe.timer, 9000);              /* later: nobody need be told */
    assert_int_equal(earlier, 2);
    assert_true(clock_skip(clock));
    assert_int_equal(clock_ns(clock), 9000);
    clock_fire_due(clock);
    assert_int_equal(probe.count, 2);
    clock_count(clock, 2001);
    assert_int_equal(clock_tsc(clock), 18001);
    clock_pause(clock);
    clock_resume(clock);
    assert_int_equal(clock_tsc(clock), 18001);
    clock_destroy(clock);
}

static void ticks_and_nanoseconds_agree(void **state)
{
    struct loop *loop = loop_create(NULL);
    struct clock *clock = clock_create(loop, NULL, 0);
    uint64_t values[] = { 0, 1, 999, 123456789, 3600 * NS_PER_SECOND, 400 * 86400 * NS_PER_SECOND };
    for (unsigned i = 0; i < ARRAY_SIZE(values); i++) {
        uint64_t tsc = clock_ns_to_tsc(clock, values[i]);
        assert_true(clock_tsc_to_ns(clock, tsc) >= values[i]);
        assert_true(tsc == 0 || clock_tsc_to_ns(clock, tsc - 1) < values[i]);
    }
    assert_true(clock_ns_to_tsc(clock, UINT64_MAX) > 0);
    clock_destroy(clock);
    loop_destroy(loop);
}

static uint64_t host_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

static void real_clock_keeps_the_hosts_pace_and_stands_still_when_paused(void **state)
{
    struct loop *loop = loop_create(NULL);
    struct clock *clock = clock_create(loop, NULL, 0);
    /* Each reading between two of the host's, however long we are kept from running. */
    uint64_t before_start = host_ns(), start = clock_ns(clock), after_start = host_ns();
    nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
    uint64_t before_end = host_ns(), end = clock_ns(clock), after_end = host_ns();
    double passed = (double)(end - start);
    assert_true(passed > (double)(before_end - after_start) * 0.99 && passed < (double)(after_end - before_start) * 1.01);
    clock_pause(clock);
    uint64_t frozen = clock_tsc(clock);
    nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
    assert_int_equal(clock_tsc(clock), frozen);
    clock_resume(clock);
    uint64_t after = clock_tsc(clock);
    assert_true(after >= frozen && clock_tsc_to_ns(clock, after - frozen) < 1000000000);
    clock_destroy(clock);
    loop_destroy(loop);
}

/* Where the clock follows the host's TSC it says how, soon after it was started; not while it stands still, and other clocks never do. */
static void the_hosts_tsc_is_told_of_as_long_as_it_is_followed(void **state)
{
    struct loop *loop = loop_create(NULL);
    struct clock *clock = clock_create(loop, NULL, 0), *manual = clock_create_manual();
    uint64_t base, start = clock_ns(clock);
    bool told = false;
    while (!told && clock_ns(clock) - start < NS_PER_SECOND)
        told = clock_tsc_base(clock, &base);
    if (told) {
        uint64_t before = clock_tsc(clock), now = __rdtsc() - base, after = clock_tsc(clock);
        enum { APART = 10000 };                 /* ticks that processors may differ by */
        assert_true(now + APART >= before && now <= after + APART);
    }
    clock_pause(clock);
    assert_false(clock_tsc_base(clock, &base));
    assert_false(clock_tsc_base(manual, &base));
    clock_destroy(manual);
    clock_destroy(clock);
    loop_destroy(loop);
}

static void the_tsc_is_found_among_the_hosts_clock_sources(void **state)
{
    static const char *const good[] = { "tsc\n", "tsc kvm-clock \n", "kvm-clock tsc hpet acpi_pm \n", "hpet tsc" };
    static const char *const bad[] = { "", "hpet acpi_pm \n", "hyperv_clocksource_tsc_page acpi_pm \n", "tsc-early hpet \n", "hyperv_tsc\n", "tscx" };
    for (unsigned i = 0; i < ARRAY_SIZE(good); i++)
        assert_true(clock_lists_tsc(good[i]));
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(clock_lists_tsc(bad[i]));
}

static void real_timers_fire_on_the_loop(void **state)
{
    struct loop *loop = loop_create(NULL);
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct clock *clock = clock_create(loop, &lock, 0);
    struct probe soon = { .clock = clock }, past = { .clock = clock };
    timer_init(&soon.timer, clock, probe_fire, &soon);
    timer_init(&past.timer, clock, probe_fire, &past);
    uint64_t deadline = clock_ns(clock) + 5000000;
    timer_arm(&soon.timer, deadline);
    timer_arm(&past.timer, 1);
    for (int i = 0; i < 1000 && !soon.count; i++)
        loop_run_once(loop, 100);
    assert_int_equal(past.count, 1);
    assert_int_equal(soon.count, 1);
    assert_true(soon.fired_ns[0] >= deadline);
    clock_destroy(clock);
    loop_destroy(loop);
}

struct counted {
    struct loop *loop;
    struct loop_work work;
    struct loop_fd fd, *victim;
    int runs, again;
};

static void run_counted(void *owner)
{
    struct counted *counted = owner;
    counted->runs++;
    if (counted->again-- > 0)
        loop_post(counted->loop, &counted->work);
}

static void posted_work_runs_once_each_round(void **state)
{
    struct loop *loop = loop_create(NULL);
    struct counted a = { .loop = loop, .again = 1 }, b = { .loop = loop };
    a.work = (struct loop_work){ .run = run_counted, .owner = &a };
    b.work = (struct loop_work){ .run = run_counted, .owner = &b };
    loop_post(loop, &a.work);
    loop_post(loop, &a.work);
    loop_post(loop, &b.work);
    loop_run_once(loop, 1000);
    assert_int_equal(a.runs, 1);
    assert_int_equal(b.runs, 1);
    loop_run_once(loop, 1000);
    loop_run_once(loop, 0);
    assert_int_equal(a.runs, 2);
    assert_int_equal(b.runs, 1);
    loop_destroy(loop);
}

struct restless {
    struct loop *loop;
    struct loop_work work, *victim;
    unsigned runs;
};

/* Posts itself again and again, and takes back the last that was posted before the round. */
static void run_restless(void *owner)
{
    struct restless *restless = owner;
    restless->runs++;
    loop_cancel(restless->loop, restless->victim);
    loop_post(restless->loop, &restless->work);
}

static void a_round_ends_even_if_its_last_work_is_taken_back(void **state)
{
    struct loop *loop = loop_create(NULL);
    struct counted last = { .loop = loop };
    struct restless restless = { .loop = loop, .victim = &last.work };
    last.work = (struct loop_work){ .run = run_counted, .owner = &last };
    restless.work = (struct loop_work){ .run = run_restless, .owner = &restless };
    loop_post(loop, &restless.work);
    loop_post(loop, &last.work);
    loop_run_once(loop, 1000);
    assert_int_equal(restless.runs, 1);
    loop_post(loop, &last.work);
    loop_cancel(loop, &last.work);
    loop_run_once(loop, 1000);
    assert_int_equal(restless.runs, 2);
    assert_int_equal(last.runs, 0);
    loop_destroy(loop);
}

static void fd_ready(void *owner, uint32_t events)
{
    struct counted *counted = owner;
    counted->runs++;
    if (counted->victim)
        loop_remove(counted->loop, counted->victim);
}

static void removed_descriptor_is_not_handled_even_in_the_same_batch(void **state)
{
    struct loop *loop = loop_create(NULL);
    int p[2];
    assert_int_equal(pipe(p), 0);
    assert_int_equal(write(p[1], "x", 1), 1);
    struct counted a = { .loop = loop }, b = { .loop = loop };
    int copy = dup(p[0]);
    a.fd = (struct loop_fd){ .fd = p[0], .events = EPOLLIN, .ready = fd_ready, .owner = &a };
    b.fd = (struct loop_fd){ .fd = copy, .events = EPOLLIN, .ready = fd_ready, .owner = &b };
    a.victim = &b.fd;
    b.victim = &a.fd;
    loop_add(loop, &a.fd);
    loop_add(loop, &b.fd);
    loop_run_once(loop, 1000);
    assert_int_equal(a.runs + b.runs, 1);
    loop_destroy(loop);
    close(p[0]);
    close(p[1]);
    close(copy);
}

static void regular_file_is_always_ready(void **state)
{
    struct loop *loop = loop_create(NULL);
    FILE *file = tmpfile();
    struct counted a = { .loop = loop };
    a.fd = (struct loop_fd){ .fd = fileno(file), .events = EPOLLIN, .ready = fd_ready, .owner = &a };
    loop_add(loop, &a.fd);
    loop_run_once(loop, -1);
    loop_run_once(loop, -1);
    assert_int_equal(a.runs, 2);
    loop_change(loop, &a.fd, 0);
    loop_run_once(loop, 0);
    assert_int_equal(a.runs, 2);
    loop_remove(loop, &a.fd);
    loop_destroy(loop);
    fclose(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(manual_timers_fire_in_order_at_their_deadlines),
        cmocka_unit_test(periodic_timer_rearms_itself),
        cmocka_unit_test(counted_time_is_instructions_and_sleep),
        cmocka_unit_test(ticks_and_nanoseconds_agree),
        cmocka_unit_test(real_clock_keeps_the_hosts_pace_and_stands_still_when_paused),
        cmocka_unit_test(the_hosts_tsc_is_told_of_as_long_as_it_is_followed),
        cmocka_unit_test(the_tsc_is_found_among_the_hosts_clock_sources),
        cmocka_unit_test(real_timers_fire_on_the_loop),
        cmocka_unit_test(posted_work_runs_once_each_round),
        cmocka_unit_test(removed_descriptor_is_not_handled_even_in_the_same_batch),
        cmocka_unit_test(regular_file_is_always_ready),
        cmocka_unit_test(a_round_ends_even_if_its_last_work_is_taken_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
