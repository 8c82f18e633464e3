/* Prints what the paths of the software MMU cost, in cycles of the host's TSC: the figures of docs/mmu.md. */
#include <stdio.h>
#include <x86intrin.h>

#include "mmu_fixture.h"

#include "mmu/window.h"

enum { PAGES = 4096, TURNS = 50, REPEATS = 5000 };
static const uint64_t base = 0x7F0000000000, frames = 0x1000000;

static void report(const char *what, uint64_t cycles, uint64_t times)
{
    printf("%-48s %6.1f\n", what, (double)cycles / (double)times);
}

static void loads(struct fixture *f, const char *what, unsigned pages, unsigned offset)
{
    uint64_t value, start = __rdtsc();
    for (unsigned n = 0; n < TURNS; n++)
        for (unsigned i = 0; i < PAGES; i++)
            mmu_load64(&f->vcpu, base + (i % pages) * PAGE_SIZE + offset, &value);
    report(what, __rdtsc() - start, TURNS * PAGES);
}

static void flush_cr3(struct vcpu *vcpu) { mmu_load_cr3(vcpu, false); }
static void flush_page(struct vcpu *vcpu) { mmu_flush_page(vcpu, base); }
static void drop_writes(struct vcpu *vcpu) { mmu_drop_write_entries(vcpu, 0x12000); }

static void change_privilege(struct vcpu *vcpu)
{
    vcpu->cpl ^= 3;
    mmu_privilege_changed(vcpu);
    __asm__ volatile("" ::: "memory");
}

static void repeated(struct fixture *f, const char *what, void (*act)(struct vcpu *), bool load)
{
    uint64_t value, start = __rdtsc();
    for (unsigned n = 0; n < REPEATS; n++) {
        act(&f->vcpu);
        if (load)
            mmu_load64(&f->vcpu, base, &value);
    }
    report(what, __rdtsc() - start, REPEATS);
}

static void turn_hot(struct vcpu *vcpu)
{
    while (!window_table(vcpu))
        window_account(vcpu, 1 << 24);
}

/* The signal of a real miss is not in these. */
static void windows(struct fixture *f)
{
    uint64_t cycles = 0, value, count = 0, start;
    f->vcpu.cpl = 3;
    mmu_privilege_changed(&f->vcpu);
    for (uint64_t i = 0; i < PAGES; i++)
        mmu_load64(&f->vcpu, base + i * PAGE_SIZE, &value);      /* sets A in all tables */
    turn_hot(&f->vcpu);
    for (uint64_t i = 0; i < PAGES; i += 64, count++) {
        mmu_load64(&f->vcpu, base + i * PAGE_SIZE, &value);
        start = __rdtsc();
        window_fill(&f->vcpu, base + i * PAGE_SIZE, false);
        cycles += __rdtsc() - start;
    }
    report("window fill, mean of up to 512 pages each", cycles, count);
    start = __rdtsc();
    for (unsigned n = 0; n < TURNS; n++) {
        mmu_load_cr3(&f->vcpu, false);
        window_table(&f->vcpu);
    }
    report("views compared after a flush, each page", __rdtsc() - start, TURNS * PAGES);
    f->vcpu.cpl = 0;
    mmu_privilege_changed(&f->vcpu);
}

int main(void)
{
    struct fixture *f = fixture_create(64 << 20);
    uint64_t next = 0x10000;
    for (uint64_t i = 0; i < PAGES; i++)
        fixture_map(f, 0x1000, &next, base + i * PAGE_SIZE, (frames + i * PAGE_SIZE) | PTE_P | PTE_W | PTE_U | PTE_A | PTE_D, 0);
    fixture_long_mode(f, 0x1000);
    for (unsigned warm = 0; warm < 2; warm++) {
        printf("%s\n", warm ? "warm:" : "cold:");
        loads(f, "hit", 64, 64);
        loads(f, "misaligned within a page", 64, 3);
        loads(f, "miss, 4-level walk included", PAGES, 0);
        repeated(f, "change of privilege", change_privilege, false);
        repeated(f, "MOV CR3 that flushes, and the next miss", flush_cr3, true);
        repeated(f, "INVLPG", flush_page, false);
        repeated(f, "write entries of a page dropped (one context)", drop_writes, false);
        repeated(f, "whole flush, and the next miss", mmu_flush_all, true);
    }
    windows(f);
    fixture_destroy(f);
    return 0;
}
