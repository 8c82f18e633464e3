/*
 * A vCPU with RAM, an MMU and a bus, and nothing else. The rules of x86/ that the MMU calls are replaced here by recorders;
 * they are weak, so that the real ones may be linked beside them.
 */
#ifndef DOPPEL_TESTS_MMU_FIXTURE_H
#define DOPPEL_TESTS_MMU_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "bus/bus.h"
#include "mem/code_map.h"
#include "mem/ram.h"
#include "mmu/mmu.h"
#include "mmu/walk.h"
#include "x86/model.h"

#define TEST_FAKE __attribute__((weak, used, noinline))

enum { FIXTURE_PHYSICAL_BITS = 36 };

TEST_FAKE bool x86_raise_error(struct vcpu *vcpu, uint8_t vector, uint32_t error)
{
    vcpu->pending = (struct event){ .kind = EVENT_FAULT, .vector = vector, .has_error = true, .error = error };
    return false;
}

TEST_FAKE bool x86_raise_page_fault(struct vcpu *vcpu, uint64_t gla, uint32_t error)
{
    x86_raise_error(vcpu, VEC_PF, error);
    vcpu->pending.payload = gla;
    return false;
}

TEST_FAKE void x86_cpuid(struct vcpu *vcpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    memset(out, 0, 16);
    out[3] = leaf == 1 ? 1u << 17 : leaf == 0x80000001 ? 1u << 26 : 0;
}

TEST_FAKE void x86_debug_data(struct vcpu *vcpu, uint64_t gla, unsigned size, bool write)
{
    vcpu->pending_debug = 1;
}

TEST_FAKE void vcpu_kick(struct vcpu *vcpu, uint32_t request)
{
    atomic_fetch_or(&vcpu->request, request);
    pthread_mutex_lock(&vcpu->mutex);
    pthread_cond_broadcast(&vcpu->wake);
    pthread_mutex_unlock(&vcpu->mutex);
}

struct fixture {
    struct vcpu vcpu;
    struct vcpu *all[1];
    uint64_t seed;
};

static inline uint64_t fixture_random(struct fixture *f)
{
    f->seed ^= f->seed << 13;
    f->seed ^= f->seed >> 7;
    f->seed ^= f->seed << 17;
    return f->seed * 0x2545F4914F6CDD1Dull;
}

static inline uint64_t fixture_below(struct fixture *f, uint64_t n) { return (fixture_random(f) >> 11) % n; }
static inline bool fixture_chance(struct fixture *f, unsigned one_in) { return fixture_below(f, one_in) == 0; }

static inline void fixture_vcpu_init(struct vcpu *vcpu, struct ram *ram, struct bus *bus)
{
    static const struct cpu_model model = { .physical_bits = FIXTURE_PHYSICAL_BITS, .vmx[0].ept_vpid = ~0ull };
    vcpu->model = &model;
    vcpu->ram = ram;
    vcpu->mmio = bus;
    vcpu->mmu = mmu_create();
    vcpu->monitor_gpa = ~0ull;
    pthread_mutex_init(&vcpu->mutex, NULL);
    pthread_cond_init(&vcpu->wake, NULL);
    /* The walker takes its limits once from CPUID; a test wants its own. */
    vcpu->mmu->mode = (struct paging_mode){ .physical_bits = FIXTURE_PHYSICAL_BITS, .pse36 = true, .page1gb = true, .ept_2m = true,
                                              .ept_1g = true, .ept_execute_only = true };
    paging_format_select_ept(&vcpu->mmu->ept_format, &vcpu->mmu->mode);
    vcpu->mmu->limits_known = true;
    mmu_mode_changed(vcpu);
}

static inline struct fixture *fixture_create(uint64_t ram_size)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct ram *ram = ram_create();
    struct error err;
    if (!ram_add(ram, "test-ram", 0, ram_size, false, &err))
        fail_msg("%s", err.text);
    fixture_vcpu_init(&f->vcpu, ram, bus_create("mmio", 1ull << 52, NULL));
    f->all[0] = &f->vcpu;
    f->vcpu.all = f->all;
    f->vcpu.all_count = 1;
    f->seed = 0x9E3779B97F4A7C15ull;
    return f;
}

static inline void fixture_destroy(struct fixture *f)
{
    mmu_destroy(f->vcpu.mmu);
    bus_destroy(f->vcpu.mmio);
    ram_destroy(f->vcpu.ram);
    free(f);
}

/* 64-bit mode at the privilege level, with tables at cr3. */
static inline void fixture_long_mode(struct fixture *f, uint64_t cr3)
{
    struct vcpu *vcpu = &f->vcpu;
    vcpu->cr0 = CR0_PE | CR0_PG | CR0_WP;
    vcpu->cr4 = CR4_PAE | CR4_PGE;
    vcpu->efer = EFER_LME | EFER_LMA | EFER_NXE;
    vcpu->cr3 = cr3;
    vcpu->cpl = 0;
    vcpu->seg[CS].attr = SEG_L;
    mmu_mode_changed(vcpu);
}

static inline void fixture_put64(struct fixture *f, uint64_t gpa, uint64_t value)
{
    *(uint64_t *)ram_host(f->vcpu.ram, gpa) = value;
}

static inline uint64_t fixture_get64(struct fixture *f, uint64_t gpa)
{
    return *(uint64_t *)ram_host(f->vcpu.ram, gpa);
}

/*
 * Four-level tables at cr3 whose tables come from *next (advanced). level 0: a 4 KiB page, 1: 2 MiB, 2: 1 GiB.
 * Returns the address of the leaf entry.
 */
static inline uint64_t fixture_map(struct fixture *f, uint64_t cr3, uint64_t *next, uint64_t gla, uint64_t leaf, unsigned level)
{
    uint64_t table = cr3;
    for (unsigned n = 3;; n--) {
        uint64_t at = table + ((gla >> (12 + 9 * n)) & 511) * 8;
        if (n == level) {
            fixture_put64(f, at, leaf);
            return at;
        }
        uint64_t entry = fixture_get64(f, at);
        if (!(entry & PTE_P)) {
            entry = *next | PTE_P | PTE_W | PTE_U;
            *next += PAGE_SIZE;
            fixture_put64(f, at, entry);
        }
        table = entry & 0x000FFFFFFFFFF000ull;
    }
}

#endif
