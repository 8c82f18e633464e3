/* Posted work between vCPU threads, and code that appears in a page that another vCPU writes. */
#include <sched.h>

#include "engine/engine.h"
#include "mmu_fixture.h"
#include "vcpu/thread.h"
#include "vcpu/work.h"

enum { THREADS = 3, POSTS = 3000, EXCHANGES = 1500, NAPS = 200 };

struct crowd {
    struct vcpu vcpu[THREADS];
    struct vcpu *all[THREADS];
    pthread_t thread[THREADS];
    atomic_bool stop;
    _Atomic unsigned ran, disorder, finished;
    unsigned last[THREADS];
    uint32_t wakes;                     /* what ends the sleep of sleep_loop, besides an interrupt */
};

static void crowd_start(struct crowd *crowd, void *(*body)(void *))
{
    for (unsigned i = 0; i < THREADS; i++) {
        crowd->all[i] = &crowd->vcpu[i];
        crowd->vcpu[i].index = i;
        crowd->vcpu[i].all = crowd->all;
        crowd->vcpu[i].all_count = THREADS;
        crowd->vcpu[i].watches = i > 0;         /* both ways to wait are used */
        crowd->vcpu[i].system_owner = crowd;
        pthread_mutex_init(&crowd->vcpu[i].mutex, NULL);
        pthread_cond_init(&crowd->vcpu[i].wake, NULL);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_create(&crowd->thread[i], NULL, body, &crowd->vcpu[i]);
}

static void crowd_join(struct crowd *crowd)
{
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(crowd->thread[i], NULL);
}

/* A vCPU that runs nothing but its posted work. */
static void *idle_loop(void *opaque)
{
    struct vcpu *vcpu = opaque;
    struct crowd *crowd = vcpu->system_owner;
    while (!atomic_load(&crowd->stop)) {
        if (atomic_load(&vcpu->request) & REQUEST_WORK)
            vcpu_serve_work(vcpu);
        else
            sched_yield();
    }
    return NULL;
}

static void check_order(struct vcpu *vcpu, void *argument)
{
    struct crowd *crowd = vcpu->system_owner;
    unsigned n = (uintptr_t)argument;
    if (crowd->last[vcpu->index] + 1 != n)
        atomic_fetch_add(&crowd->disorder, 1);
    crowd->last[vcpu->index] = n;
    atomic_fetch_add(&crowd->ran, 1);
}

static void posts_run_once_and_in_order(void **state)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    crowd_start(crowd, idle_loop);
    for (unsigned n = 1; n <= POSTS; n++)
        for (unsigned i = 0; i < THREADS; i++)
            vcpu_post(&crowd->vcpu[i], check_order, (void *)(uintptr_t)n);
    for (unsigned i = 0; i < THREADS; i++)      /* waits, from outside, for all before it */
        vcpu_run_on(NULL, &crowd->vcpu[i], check_order, (void *)(uintptr_t)(POSTS + 1));
    assert_int_equal(atomic_load(&crowd->ran), THREADS * (POSTS + 1));
    assert_int_equal(atomic_load(&crowd->disorder), 0);
    atomic_store(&crowd->stop, true);
    crowd_join(crowd);
    free(crowd);
}

static void count_run(struct vcpu *vcpu, void *argument)
{
    atomic_fetch_add((_Atomic unsigned *)argument, 1);
}

static void *ask_everybody(void *opaque)
{
    struct vcpu *vcpu = opaque;
    struct crowd *crowd = vcpu->system_owner;
    for (unsigned n = 0; n < EXCHANGES; n++)
        for (unsigned i = 0; i < THREADS; i++)
            vcpu_run_on(vcpu, &crowd->vcpu[i], count_run, &crowd->ran);
    atomic_fetch_add(&crowd->finished, 1);
    while (atomic_load(&crowd->finished) < THREADS) {
        vcpu_serve_work(vcpu);
        sched_yield();
    }
    return NULL;
}

static void vcpus_that_wait_for_each_other_go_on(void **state)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    crowd_start(crowd, ask_everybody);
    crowd_join(crowd);
    assert_int_equal(atomic_load(&crowd->ran), THREADS * THREADS * EXCHANGES);
    free(crowd);
}

/* While a vCPU waits inside an instruction, what was posted for its next border must not run. */
static void *ask_with_posts_pending(void *opaque)
{
    struct vcpu *vcpu = opaque;
    struct crowd *crowd = vcpu->system_owner;
    if (vcpu->index)
        return idle_loop(opaque);
    for (unsigned n = 0; n < EXCHANGES; n++) {
        vcpu_post(vcpu, count_run, &crowd->ran);
        vcpu_run_on(vcpu, &crowd->vcpu[1], count_run, &crowd->last[1]);
        if (atomic_load(&crowd->ran) != n)
            atomic_fetch_add(&crowd->disorder, 1);
        vcpu_serve_work(vcpu);
    }
    atomic_store(&crowd->stop, true);
    return NULL;
}

static void posts_wait_for_the_border(void **state)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    crowd_start(crowd, ask_with_posts_pending);
    crowd_join(crowd);
    assert_int_equal(atomic_load(&crowd->disorder), 0);
    assert_int_equal(crowd->last[1], EXCHANGES);
    free(crowd);
}

/* The target never serves; the caller is told to exit and takes its work back. */
static void *ask_the_dead(void *opaque)
{
    struct vcpu *vcpu = opaque;
    struct crowd *crowd = vcpu->system_owner;
    if (vcpu->index == 0)
        vcpu_run_on(vcpu, &crowd->vcpu[1], count_run, &crowd->ran);
    else if (vcpu->index == 2)
        vcpu_kick(&crowd->vcpu[0], REQUEST_EXIT);
    return NULL;
}

static void an_exiting_vcpu_does_not_wait_for_ever(void **state)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    crowd_start(crowd, ask_the_dead);
    crowd_join(crowd);
    assert_int_equal(atomic_load(&crowd->ran), 0);
    assert_null(crowd->vcpu[1].work);
    free(crowd);
}

static void the_work_of_a_vcpu_that_left_is_done_by_who_asks(void **state)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    atomic_store(&crowd->stop, true);
    crowd_start(crowd, idle_loop);
    crowd_join(crowd);
    vcpu_post(&crowd->vcpu[0], count_run, &crowd->ran);
    vcpu_end_work(&crowd->vcpu[0]);
    assert_int_equal(atomic_load(&crowd->ran), 1);
    vcpu_run_on(NULL, &crowd->vcpu[0], count_run, &crowd->ran);
    assert_int_equal(atomic_load(&crowd->ran), 2);
    free(crowd);
}

/* --- vCPUs that sleep --- */

static bool is_asleep(struct vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->mutex);
    bool asleep = vcpu->asleep;
    pthread_mutex_unlock(&vcpu->mutex);
    return asleep;
}

static void await_sleep(struct vcpu *vcpu)
{
    while (!is_asleep(vcpu))
        sched_yield();
}

/* As in HLT: an interrupt counts as finished. */
static void *sleep_loop(void *opaque)
{
    struct vcpu *vcpu = opaque;
    struct crowd *crowd = vcpu->system_owner;
    while (!atomic_load(&crowd->stop)) {
        vcpu_sleep(vcpu, crowd->wakes | REQUEST_INTERRUPT);
        bool interrupted = atomic_fetch_and(&vcpu->request, ~(uint32_t)REQUEST_INTERRUPT) & REQUEST_INTERRUPT;
        vcpu_serve_work(vcpu);
        atomic_fetch_add(&crowd->finished, interrupted);
    }
    return NULL;
}

static void wake_and_end(struct crowd *crowd)
{
    atomic_store(&crowd->stop, true);
    for (unsigned i = 0; i < THREADS; i++)
        vcpu_kick(&crowd->vcpu[i], REQUEST_INTERRUPT);
    crowd_join(crowd);
}

static void note_own(struct vcpu *vcpu, void *argument) { *(bool *)argument = vcpu_thread_is_own(vcpu); }

/* Started by this thread, it ends at once. */
static bool watches_when_started(struct vcpu *vcpu, unsigned all_count)
{
    static const struct engine nothing = { 0 };
    struct error err;
    bool own = false;
    vcpu_post(vcpu, note_own, &own);
    vcpu->engine = &nothing;
    vcpu->all_count = all_count;
    vcpu_kick(vcpu, REQUEST_EXIT);
    assert_true(vcpu_thread_start(vcpu, &err));
    vcpu_thread_join(vcpu);
    assert_true(own);
    assert_false(vcpu_thread_is_own(vcpu));
    return vcpu->watches;
}

static void a_vcpu_watches_only_where_others_can_run_beside_it(void **state)
{
    struct vcpu *vcpu = calloc(1, sizeof(*vcpu));
    struct log log = { 0 };
    cpu_set_t allowed, one;
    vcpu->log = &log;
    vcpu_thread_init(vcpu);
    assert_int_equal(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    assert_int_equal(watches_when_started(vcpu, 2), CPU_COUNT(&allowed) > 1);
    assert_false(watches_when_started(vcpu, 1));
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    assert_false(watches_when_started(vcpu, 2));
    assert_int_equal(sched_setaffinity(0, sizeof(allowed), &allowed), 0);
    vcpu_thread_fini(vcpu);
    free(vcpu);
}

/* How long it watches is found out by halts; one that does not has nothing to find out, however short they are. */
static void a_vcpu_that_does_not_watch_sleeps_at_once(void **state)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    crowd_start(crowd, sleep_loop);
    for (unsigned n = 0; n < NAPS; n++) {
        await_sleep(&crowd->vcpu[0]);
        vcpu_kick(&crowd->vcpu[0], REQUEST_INTERRUPT);
        while (atomic_load(&crowd->finished) <= n)
            sched_yield();
    }
    wake_and_end(crowd);
    assert_int_equal(crowd->vcpu[0].watch_ns, 0);
    free(crowd);
}

static void posts_to_a_sleeper_are_done_before_it_goes_on(void **state)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    struct vcpu *sleeper = &crowd->vcpu[0];
    crowd_start(crowd, sleep_loop);
    await_sleep(sleeper);
    for (unsigned n = 1; n <= 10; n++)
        vcpu_post(sleeper, check_order, (void *)(uintptr_t)n);
    assert_int_equal(atomic_load(&crowd->ran), 0);
    vcpu_kick(sleeper, REQUEST_INTERRUPT);
    while (!atomic_load(&crowd->finished))
        sched_yield();
    assert_int_equal(atomic_load(&crowd->ran), 10);
    assert_int_equal(atomic_load(&crowd->disorder), 0);
    wake_and_end(crowd);
    free(crowd);
}

static void a_sleeper_is_woken_for_many_posts_and_for_who_waits(void **state)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    struct vcpu *sleeper = &crowd->vcpu[0];
    crowd->wakes = REQUEST_WORK;
    crowd_start(crowd, sleep_loop);
    await_sleep(sleeper);
    for (unsigned n = 1; n <= 100; n++)
        vcpu_post(sleeper, check_order, (void *)(uintptr_t)n);
    while (atomic_load(&crowd->ran) < 50)       /* for ever, if nothing wakes it */
        sched_yield();
    vcpu_run_on(NULL, sleeper, check_order, (void *)(uintptr_t)101);
    assert_int_equal(atomic_load(&crowd->ran), 101);
    assert_int_equal(atomic_load(&crowd->disorder), 0);
    wake_and_end(crowd);
    free(crowd);
}

/* What another vCPU asks for in between takes nothing off the count of what waits. */
static void a_sleeper_is_woken_for_many_posts_whatever_else_is_asked_of_it(void **state)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    struct vcpu *sleeper = &crowd->vcpu[0], *caller = &crowd->vcpu[THREADS - 1];
    _Atomic unsigned asked = 0;
    crowd->wakes = REQUEST_WORK;
    crowd_start(crowd, sleep_loop);
    await_sleep(sleeper);
    await_sleep(caller);                        /* this thread plays it */
    for (unsigned n = 1; n <= 100; n++) {
        vcpu_post(sleeper, check_order, (void *)(uintptr_t)n);
        vcpu_run_on(caller, sleeper, count_run, &asked);
    }
    while (atomic_load(&crowd->ran) < 50)       /* for ever, if nothing wakes it */
        sched_yield();
    assert_int_equal(atomic_load(&asked), 100);
    wake_and_end(crowd);
    vcpu_serve_work(sleeper);                   /* what came when it had looked for the last time */
    assert_int_equal(atomic_load(&crowd->ran), 100);
    assert_int_equal(atomic_load(&crowd->disorder), 0);
    free(crowd);
}

static void note_thread(struct vcpu *vcpu, void *argument) { *(pthread_t *)argument = pthread_self(); }

static void the_work_of_a_sleeper_is_done_by_the_vcpu_that_waits(void **state)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    struct vcpu *sleeper = &crowd->vcpu[0], *caller = &crowd->vcpu[THREADS - 1];
    crowd_start(crowd, sleep_loop);
    await_sleep(caller);                        /* this thread plays it: the work is on the sleeper's data alone */
    for (unsigned n = 0; n < NAPS; n++) {
        pthread_t ran_on = 0;
        await_sleep(sleeper);
        vcpu_post(sleeper, count_run, &crowd->ran);
        vcpu_run_on(caller, sleeper, note_thread, &ran_on);
        assert_true(pthread_equal(ran_on, pthread_self()));
        assert_int_equal(atomic_load(&crowd->ran), n);      /* what was posted waits for the border */
        vcpu_kick(sleeper, REQUEST_INTERRUPT);
        while (atomic_load(&crowd->finished) <= n)
            sched_yield();
        assert_int_equal(atomic_load(&crowd->ran), n + 1);
    }
    wake_and_end(crowd);
    free(crowd);
}

/* Those who ask, those who sleep and those who wake them, all at once. */
static void *ask_and_sleep(void *opaque)
{
    struct vcpu *vcpu = opaque;
    struct crowd *crowd = vcpu->system_owner;
    for (unsigned n = 0; n < EXCHANGES; n++) {
        struct vcpu *next = &crowd->vcpu[(vcpu->index + 1) % THREADS];
        vcpu_run_on(vcpu, next, count_run, &crowd->ran);
        vcpu_kick(next, REQUEST_INTERRUPT);
        if (n + 1 < EXCHANGES) {
            vcpu_sleep(vcpu, REQUEST_WORK | REQUEST_INTERRUPT);
            atomic_fetch_and(&vcpu->request, ~(uint32_t)REQUEST_INTERRUPT);
            vcpu_serve_work(vcpu);
        }
    }
    atomic_fetch_add(&crowd->finished, 1);
    while (atomic_load(&crowd->finished) < THREADS) {
        vcpu_kick(&crowd->vcpu[(vcpu->index + 1) % THREADS], REQUEST_INTERRUPT);
        atomic_fetch_and(&vcpu->request, ~(uint32_t)REQUEST_INTERRUPT);
        vcpu_serve_work(vcpu);
        sched_yield();
    }
    return NULL;
}

static void sleepers_and_askers_go_on(void **state)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    crowd_start(crowd, ask_and_sleep);
    crowd_join(crowd);
    assert_int_equal(atomic_load(&crowd->ran), THREADS * EXCHANGES);
    free(crowd);
}

/*
 * Writers store rising numbers into a page; a decoder marks code there, takes a copy of the bytes, and
 * checks at its next border: if the bytes changed since, it must have been told.
 */
enum { ROUNDS = 3000 };
static const uint64_t page_gpa = 0x8000;

struct race {
    struct crowd crowd;
    struct ram *ram;
    _Atomic unsigned told, missed;
};

static void told(void *owner, uint64_t gpa, uint64_t size)
{
    atomic_fetch_add(&((struct race *)owner)->told, 1);
}

static void *writer_loop(struct race *race, struct vcpu *vcpu)
{
    for (uint64_t n = vcpu->index; !atomic_load(&race->crowd.stop); n += 2) {
        mmu_store64(vcpu, page_gpa + 64, n);
        if (atomic_load(&vcpu->request) & REQUEST_WORK)
            vcpu_serve_work(vcpu);
    }
    return NULL;
}

static void *racer(void *opaque)
{
    struct vcpu *vcpu = opaque;
    struct race *race = (struct race *)vcpu->system_owner;
    if (vcpu->index)
        return writer_loop(race, vcpu);
    volatile uint64_t *bytes = (volatile uint64_t *)ram_host(race->ram, page_gpa + 64);
    for (unsigned n = 0; n < ROUNDS; n++) {
        unsigned before = atomic_load(&race->told);
        if (code_map_add(race->ram, page_gpa + 64, 8))
            mmu_unshare_writes(vcpu, page_gpa);
        uint64_t decoded = *bytes;
        for (unsigned spin = 0; spin < 50; spin++)
            atomic_thread_fence(memory_order_seq_cst);
        /* A writer stores first and tells afterwards: give it the time in between. */
        uint64_t now = *bytes;
        for (unsigned wait = 0; now != decoded && atomic_load(&race->told) == before && wait < 100000; wait++)
            sched_yield();
        if (now != decoded && atomic_load(&race->told) == before)
            atomic_fetch_add(&race->missed, 1);
        code_map_remove(race->ram, page_gpa + 64, 8);
        if (n % 16 == 0)
            sched_yield();
    }
    atomic_store(&race->crowd.stop, true);
    return NULL;
}

static void no_write_to_decoded_code_goes_unseen(void **state)
{
    struct race *race = calloc(1, sizeof(*race));
    race->ram = ram_create();
    assert_true(ram_add(race->ram, "ram", 0, 0x10000, false, NULL));
    race->ram->watcher = (struct ram_watcher){ .code_written = told, .owner = race };
    for (unsigned i = 0; i < THREADS; i++)
        fixture_vcpu_init(&race->crowd.vcpu[i], race->ram, NULL);
    crowd_start(&race->crowd, racer);
    crowd_join(&race->crowd);
    assert_int_equal(atomic_load(&race->missed), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        vcpu_serve_work(&race->crowd.vcpu[i]);
        mmu_destroy(race->crowd.vcpu[i].mmu);
    }
    ram_destroy(race->ram);
    free(race);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(posts_run_once_and_in_order),
        cmocka_unit_test(vcpus_that_wait_for_each_other_go_on),
        cmocka_unit_test(posts_wait_for_the_border),
        cmocka_unit_test(an_exiting_vcpu_does_not_wait_for_ever),
        cmocka_unit_test(the_work_of_a_vcpu_that_left_is_done_by_who_asks),
        cmocka_unit_test(a_vcpu_watches_only_where_others_can_run_beside_it),
        cmocka_unit_test(a_vcpu_that_does_not_watch_sleeps_at_once),
        cmocka_unit_test(posts_to_a_sleeper_are_done_before_it_goes_on),
        cmocka_unit_test(a_sleeper_is_woken_for_many_posts_and_for_who_waits),
        cmocka_unit_test(a_sleeper_is_woken_for_many_posts_whatever_else_is_asked_of_it),
        cmocka_unit_test(the_work_of_a_sleeper_is_done_by_the_vcpu_that_waits),
        cmocka_unit_test(sleepers_and_askers_go_on),
        cmocka_unit_test(no_write_to_decoded_code_goes_unseen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
