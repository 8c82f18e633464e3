/*
 * Windows, as translated code uses them, on the fixture of the MMU: accesses through the table, and address spaces that are hot.
 */
#ifndef DOPPEL_TESTS_WINDOW_FIXTURE_H
#define DOPPEL_TESTS_WINDOW_FIXTURE_H

#include "mmu_fixture.h"

#include <setjmp.h>
#include <signal.h>

#include "mmu/window.h"

enum { RAM_BYTES = 64 << 20, HOT = WINDOW_HOT };
static const uint64_t root = 0x1000, root2 = 0x2000, tables = 0x10000, gla = 0x7F0012345000;
static const uint64_t page_a = 0x400000, page_b = 0x801000;
static const uint64_t user = PTE_P | PTE_W | PTE_U | PTE_A | PTE_D;

/* --- as translated code does it --- */

static sigjmp_buf missed;

static inline void on_fault(int signal)
{
    siglongjmp(missed, signal);
}

/* In each test, since cmocka sets its own handlers for each. */
static inline void catch_faults(void)
{
    struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
    assert_return_code(sigaction(SIGSEGV, &action, NULL), 0);
    assert_return_code(sigaction(SIGBUS, &action, NULL), 0);
}

/* The host address for base + disp, by the sequence of window.h. */
static inline uintptr_t reach(uintptr_t table, uint64_t base, int32_t disp)
{
    const uint64_t *entry = (const uint64_t *)table;
    return base + entry[base >> WINDOW_CHUNK_SHIFT] + (uint64_t)(int64_t)disp;
}

/* False: the access faults. */
static inline bool try_load(uintptr_t table, uint64_t base, int32_t disp, uint8_t *value)
{
    if (sigsetjmp(missed, 1))
        return false;
    *value = *(volatile uint8_t *)reach(table, base, disp);
    return true;
}

static inline bool try_store(uintptr_t table, uint64_t base, uint8_t value)
{
    if (sigsetjmp(missed, 1))
        return false;
    *(volatile uint8_t *)reach(table, base, 0) = value;
    return true;
}

static inline bool shows(struct fixture *f, uint64_t at)
{
    uint8_t value;
    uintptr_t table = window_table(&f->vcpu);
    return table && try_load(table, at, 0, &value);
}

static inline bool lets_write(struct fixture *f, uint64_t at)
{
    uint8_t value;
    uintptr_t table = window_table(&f->vcpu);
    return table && try_load(table, at, 0, &value) && try_store(table, at, value);
}

/* A load as the engine makes it: through the window, or if that misses by the slow path and a fill. */
static inline uint8_t load(struct fixture *f, uint64_t at)
{
    uint8_t value = 0;
    uintptr_t table = window_table(&f->vcpu);
    if (table && try_load(table, at, 0, &value))
        return value;
    if (mmu_load_slow(&f->vcpu, at, &value, 1, MMU_USER))
        window_fill(&f->vcpu, at, false);
    return value;
}

static inline bool store(struct fixture *f, uint64_t at, uint8_t value)
{
    uintptr_t table = window_table(&f->vcpu);
    if (table && try_store(table, at, value))
        return true;
    if (!mmu_store_slow(&f->vcpu, at, &value, 1, MMU_USER))
        return false;
    window_fill(&f->vcpu, at, true);
    return true;
}

/* --- a guest --- */

static inline void set_cr3(struct fixture *f, uint64_t cr3, bool keep)
{
    f->vcpu.cr3 = cr3;
    mmu_load_cr3(&f->vcpu, keep);
}

static inline void enter_user(struct fixture *f, uint64_t cr3)
{
    catch_faults();
    fixture_long_mode(f, cr3);
    f->vcpu.cpl = 3;
    mmu_privilege_changed(&f->vcpu);
}

static inline void heat(struct fixture *f)
{
    window_account(&f->vcpu, HOT);
    assert_true(window_table(&f->vcpu));
}

static inline uint64_t counted(struct fixture *f, enum counter counter) { return counter_get(&f->vcpu.counters, counter); }

/* `count` pages from gla on, mapped to those from page_a on, each holding its number + 1. */
static inline struct fixture *prepared(unsigned count, uint64_t *pte, uint64_t flags)
{
    struct fixture *f = fixture_create(RAM_BYTES);
    uint64_t next = tables;
    for (unsigned i = 0; i < count; i++) {
        pte[i] = fixture_map(f, root, &next, gla + i * PAGE_SIZE, (page_a + i * PAGE_SIZE) | flags, 0);
        memset(ram_host(f->vcpu.ram, page_a + i * PAGE_SIZE), (int)i + 1, PAGE_SIZE);
    }
    memset(ram_host(f->vcpu.ram, page_b), 0xBB, PAGE_SIZE);
    for (uint64_t table = root; table < next; table = table == root ? tables : table + PAGE_SIZE)      /* all tables were used */
        for (unsigned i = 0; i < 512; i++)
            if (fixture_get64(f, table + 8 * i) & PTE_P)
                fixture_put64(f, table + 8 * i, fixture_get64(f, table + 8 * i) | (flags & PTE_A));
    enter_user(f, root);
    return f;
}

#endif
