/* Memory granted ahead: what is asked for is granted in turn, once, and holds what was written meanwhile; no more is taken on than there is room for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>
#include <pthread.h>
#include <semaphore.h>

#include "base/ahead.h"

enum { MANY = 1000, ARENA = 3 * AHEAD_PIECE + AHEAD_PIECE / 2, HOST_PAGE = 4096 };

struct log {
    sem_t begun, may_end;
    unsigned count;
    uint8_t *at[MANY];
};

/* Waits for the test, call by call. */
static void note(void *owner, uint8_t *at, size_t size)
{
    struct log *log = owner;
    assert_int_equal(size, 7);
    log->at[log->count++] = at;
    sem_post(&log->begun);
    sem_wait(&log->may_end);
}

static void what_is_asked_is_done_in_turn_and_not_beyond_the_room(void **state)
{
    static uint8_t byte[MANY];
    static struct log log;
    struct ahead *ahead = ahead_create();
    unsigned asked = 0;
    assert_non_null(ahead);
    sem_init(&log.begun, 0, 0);
    sem_init(&log.may_end, 0, 0);
    assert_true(ahead_ask(ahead, note, &log, &byte[0], 7));
    sem_wait(&log.begun);               /* it is at work, so nothing leaves the queue */
    for (asked = 1; asked < MANY && ahead_ask(ahead, note, &log, &byte[asked], 7);)
        asked++;
    assert_in_range(asked, 2, MANY - 1);
    for (unsigned i = 1; i < asked; i++) {
        sem_post(&log.may_end);
        sem_wait(&log.begun);
    }
    sem_post(&log.may_end);
    ahead_destroy(ahead);
    assert_int_equal(log.count, asked);
    for (unsigned i = 0; i < asked; i++)
        assert_ptr_equal(log.at[i], &byte[i]);
}

static void without_a_thread_nothing_is_taken_on(void **state)
{
    uint8_t byte;
    struct ahead_arena arena = { .base = &byte, .size = 1 };
    assert_false(ahead_ask(NULL, note, NULL, &byte, 7));
    ahead_of_arena(NULL, &arena, 1);
    assert_int_equal(arena.asked, 0);
    ahead_destroy(NULL);
}

static void post(void *owner, uint8_t *at, size_t size)
{
    (void)at;
    (void)size;
    sem_post(owner);
}

/* All that was asked before has been done. */
static void wait_for(struct ahead *ahead)
{
    sem_t done;
    uint8_t byte;
    sem_init(&done, 0, 0);
    assert_true(ahead_ask(ahead, post, &done, &byte, 1));
    sem_wait(&done);
    sem_destroy(&done);
}

static bool is_resident(uint8_t *at)
{
    unsigned char resident = 0;
    assert_int_equal(mincore(at, HOST_PAGE, &resident), 0);
    return resident & 1;
}

static void an_arena_is_granted_piece_by_piece_before_it_is_used(void **state)
{
    struct ahead *ahead = ahead_create();
    uint8_t *memory = mmap(NULL, ARENA + AHEAD_PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    uint8_t *base = (uint8_t *)(((uintptr_t)memory + AHEAD_PIECE - 1) & ~(uintptr_t)(AHEAD_PIECE - 1));
    struct ahead_arena arena = { .base = base, .size = ARENA };
    *base = 0x5A;
    ahead_of_arena(ahead, &arena, 0);
    assert_int_equal(arena.asked, AHEAD_PIECE);
    ahead_of_arena(ahead, &arena, AHEAD_PIECE - AHEAD_MARGIN);
    assert_int_equal(arena.asked, AHEAD_PIECE);
    wait_for(ahead);
    assert_true(is_resident(base));
    assert_false(is_resident(base + AHEAD_PIECE));
    ahead_of_arena(ahead, &arena, AHEAD_PIECE - AHEAD_MARGIN + 1);
    assert_int_equal(arena.asked, 2 * AHEAD_PIECE);
    ahead_of_arena(ahead, &arena, ARENA);
    assert_int_equal(arena.asked, ARENA);
    wait_for(ahead);
    for (size_t at = 0; at < ARENA; at += AHEAD_PIECE)
        assert_true(is_resident(base + at));
    assert_int_equal(*base, 0x5A);
    ahead_destroy(ahead);
    munmap(memory, ARENA + AHEAD_PIECE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_asked_is_done_in_turn_and_not_beyond_the_room),
        cmocka_unit_test(without_a_thread_nothing_is_taken_on),
        cmocka_unit_test(an_arena_is_granted_piece_by_piece_before_it_is_used),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
