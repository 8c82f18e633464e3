/*
 * A processor with a megabyte of RAM, no paging, its own GDT, IDT and TSS, and no engine: the rules of x86/ are called
 * as an engine would. Addresses are linear and physical alike.
 */
#ifndef DOPPEL_TESTS_X86_FIXTURE_H
#define DOPPEL_TESTS_X86_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/error.h"
#include "bus/bus.h"
#include "mem/ram.h"
#include "mmu/mmu.h"
#include "x86/descriptor.h"

enum {
    GDT = 0x1000, IDT = 0x2000, TSS = 0x3000, TSS_B = 0x3400, LDT = 0x3800, STACK0 = 0x8000, STACK1 = 0x9000, STACK3 = 0xA000,
    HANDLER = 0x4000, PAGE_TABLES = 0x10000, RAM_BYTES = 0x100000,
};

/* Selectors of the fixture's GDT. */
enum {
    SEL_CODE0 = 0x08, SEL_DATA0 = 0x10, SEL_CODE3 = 0x18 | 3, SEL_DATA3 = 0x20 | 3, SEL_TSS = 0x28, SEL_CODE64 = 0x38,
    SEL_CONFORMING = 0x40, SEL_NOT_PRESENT = 0x48, SEL_GATE = 0x50, SEL_TSS_B = 0x60, SEL_LDT = 0x70, SEL_DATA1 = 0x78 | 1,
    SEL_CODE1 = 0x80 | 1, SEL_CODE16 = 0x88, SEL_TASK_GATE = 0x90, SEL_EXPAND_DOWN = 0x98, SEL_READONLY = 0xA0, SEL_END = 0xA8,
};

/* Access bytes: present, S, type 3 (data, written) or 11 (code, read), accessed. */
enum { DATA = 0x93, CODE = 0x9B, RING1 = 0x20, RING3 = 0x60, FLAT32 = 0xC000, FLAT64 = 0xA000, SMALL = 0 };

struct x86_fixture {
    struct vcpu vcpu;
    struct vcpu *all[1];
    unsigned triple_faults;
};

static inline void poke(struct x86_fixture *f, uint64_t gpa, uint64_t value, unsigned size)
{
    memcpy(ram_host(f->vcpu.ram, gpa), &value, size);
}

static inline uint64_t peek(struct x86_fixture *f, uint64_t gpa, unsigned size)
{
    uint64_t value = 0;
    memcpy(&value, ram_host(f->vcpu.ram, gpa), size);
    return value;
}

static inline uint64_t make_descriptor(uint32_t base, uint32_t limit, uint32_t attr)
{
    return (limit & 0xFFFF) | (uint64_t)(base & 0xFFFFFF) << 16 | (uint64_t)(attr & 0xF0FF) << 40 |
           (uint64_t)(limit >> 16 & 0xF) << 48 | (uint64_t)(base >> 24) << 56;
}

static inline void put_descriptor(struct x86_fixture *f, uint16_t selector, uint32_t base, uint32_t limit, uint32_t attr)
{
    poke(f, GDT + (selector & ~7), make_descriptor(base, limit, attr), 8);
}

/* A gate: type and DPL in `access`, e.g. 0x8E. low_count: parameter count or IST. */
static inline uint64_t make_gate(uint16_t selector, uint32_t offset, uint8_t access, uint8_t low_count)
{
    return (offset & 0xFFFF) | (uint64_t)selector << 16 | (uint64_t)low_count << 32 | (uint64_t)access << 40 |
           (uint64_t)(offset >> 16) << 48;
}

static inline void count_triple(void *owner, struct vcpu *vcpu, unsigned event)
{
    if (event == SYSTEM_TRIPLE_FAULT)
        ((struct x86_fixture *)owner)->triple_faults++;
}

static inline void fill_gdt(struct x86_fixture *f)
{
    put_descriptor(f, SEL_CODE0, 0, 0xFFFFF, CODE | FLAT32);
    put_descriptor(f, SEL_DATA0, 0, 0xFFFFF, DATA | FLAT32);
    put_descriptor(f, SEL_CODE3, 0, 0xFFFFF, CODE | RING3 | FLAT32);
    put_descriptor(f, SEL_DATA3, 0, 0xFFFFF, DATA | RING3 | FLAT32);
    put_descriptor(f, SEL_CODE1, 0, 0xFFFFF, CODE | RING1 | FLAT32);
    put_descriptor(f, SEL_DATA1, 0, 0xFFFFF, DATA | RING1 | FLAT32);
    put_descriptor(f, SEL_TSS, TSS, 0x67 + 0x100, 0x89);
    put_descriptor(f, SEL_TSS_B, TSS_B, 0x67, 0x89);
    put_descriptor(f, SEL_LDT, LDT, 0xFF, 0x82);
    put_descriptor(f, SEL_CODE64, 0, 0xFFFFF, CODE | FLAT64);
    put_descriptor(f, SEL_CONFORMING, 0, 0xFFFFF, CODE | 4 | FLAT32);
    put_descriptor(f, SEL_NOT_PRESENT, 0, 0xFFFFF, (DATA & ~0x80) | FLAT32);
    put_descriptor(f, SEL_CODE16, 0, 0xFFFF, CODE);
    put_descriptor(f, SEL_EXPAND_DOWN, 0, 0x0FFF, 0x97 | 0x4000);
    put_descriptor(f, SEL_READONLY, 0, 0xFFFFF, 0x91 | FLAT32);
    poke(f, GDT + SEL_TASK_GATE, make_gate(SEL_TSS_B, 0, 0x85, 0), 8);
}

static inline struct x86_fixture *x86_fixture_create(const char *model)
{
    struct x86_fixture *f = aligned_alloc(64, align_up(sizeof(*f), 64));
    struct error err = { "" };

    memset(f, 0, sizeof(*f));
    f->vcpu.clock = clock_create_manual();
    f->vcpu.model = x86_model_create(model, 1, clock_tsc_hz(f->vcpu.clock), &err);
    if (!f->vcpu.model)
        fail_msg("%s", err.text);
    f->vcpu.ram = ram_create();
    assert_true(ram_add(f->vcpu.ram, "ram", 0, RAM_BYTES, false, &err));
    f->vcpu.mmio = bus_create("mmio", 1ull << 46, NULL);
    f->vcpu.ports = bus_create("port", 0x10000, NULL);
    f->all[0] = &f->vcpu;
    f->vcpu.all = f->all;
    f->vcpu.all_count = 1;
    f->vcpu.system_event = count_triple;
    f->vcpu.system_owner = f;
    pthread_mutex_init(&f->vcpu.mutex, NULL);
    pthread_cond_init(&f->vcpu.wake, NULL);
    f->vcpu.mmu = mmu_create();
    x86_reset(&f->vcpu, false);
    fill_gdt(f);
    return f;
}

static inline void x86_fixture_destroy(struct x86_fixture *f)
{
    mmu_destroy(f->vcpu.mmu);
    bus_destroy(f->vcpu.mmio);
    bus_destroy(f->vcpu.ports);
    ram_destroy(f->vcpu.ram);
    x86_model_destroy((struct cpu_model *)f->vcpu.model);
    clock_destroy(f->vcpu.clock);
    free(f);
}

#define accept(call)                                                                                                       \
    do {                                                                                                                   \
        f->vcpu.pending.kind = EVENT_NONE;                                                                                 \
        if (!(call))                                                                                                       \
            fail_msg("%s raised vector %u error %#x", #call, f->vcpu.pending.vector, f->vcpu.pending.error);              \
    } while (0)

#define refuse(call, vector_, error_)                                                                                      \
    do {                                                                                                                   \
        f->vcpu.pending.kind = EVENT_NONE;                                                                                 \
        assert_false(call);                                                                                                \
        assert_int_equal(f->vcpu.pending.kind, EVENT_FAULT);                                                               \
        assert_int_equal(f->vcpu.pending.vector, vector_);                                                                 \
        assert_int_equal(f->vcpu.pending.error, error_);                                                                   \
    } while (0)

/* Flat 32-bit protected mode at CPL 0, TR loaded, stacks of the inner rings in the TSS. */
static inline void enter_protected(struct x86_fixture *f)
{
    struct vcpu *vcpu = &f->vcpu;

    vcpu->gdtr = (struct table_register){ GDT, SEL_END - 1 };
    vcpu->idtr = (struct table_register){ IDT, 0x7FF };
    accept(x86_write_cr(vcpu, 0, CR0_PE | CR0_NE));
    accept(x86_far_jump(vcpu, SEL_CODE0, HANDLER, 4, 0));
    for (enum seg seg = ES; seg < SEG_COUNT; seg++)
        if (seg != CS)
            accept(x86_load_segment(vcpu, seg, SEL_DATA0));
    accept(x86_ltr(vcpu, SEL_TSS));
    poke(f, TSS + 4, STACK0, 4);
    poke(f, TSS + 8, SEL_DATA0, 2);
    poke(f, TSS + 12, STACK1, 4);
    poke(f, TSS + 16, SEL_DATA1, 2);
    vcpu->gpr[RSP] = STACK0;
}

/* From CPL 0 to CPL 3 by IRET, as a kernel does. */
static inline void enter_user(struct x86_fixture *f, uint32_t eip)
{
    uint32_t frame[] = { eip, SEL_CODE3, RFLAGS_FIXED | RFLAGS_IF, STACK3, SEL_DATA3 };

    f->vcpu.gpr[RSP] = STACK0 - sizeof(frame);
    memcpy(ram_host(f->vcpu.ram, STACK0 - sizeof(frame)), frame, sizeof(frame));
    accept(x86_iret(&f->vcpu, 4, 0));
    assert_int_equal(f->vcpu.cpl, 3);
}

/* IA-32e mode, 64-bit code at CPL 0; the megabyte is mapped one to one, for the user too. */
static inline void enter_long(struct x86_fixture *f)
{
    struct vcpu *vcpu = &f->vcpu;

    enter_protected(f);
    poke(f, PAGE_TABLES, (PAGE_TABLES + 0x1000) | 7, 8);
    poke(f, PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | 7, 8);
    poke(f, PAGE_TABLES + 0x2000, 0x87, 8);
    accept(x86_write_cr(vcpu, 4, CR4_PAE));
    accept(x86_write_cr(vcpu, 3, PAGE_TABLES));
    accept(x86_wrmsr(vcpu, 0xC0000080, EFER_LME | EFER_SCE | EFER_NXE));
    accept(x86_write_cr(vcpu, 0, CR0_PE | CR0_NE | CR0_PG | CR0_WP));
    assert_int_equal(vcpu->mode, MODE_COMPAT32);
    /* A 64-bit TSS has a 16-byte descriptor: the next slot holds its upper half, zero here. */
    put_descriptor(f, SEL_TSS, TSS, 0x67 + 0x100, 0x89);
    accept(x86_ltr(vcpu, SEL_TSS));
    memset(ram_host(vcpu->ram, TSS), 0, 0x68);
    poke(f, TSS + 4, STACK0, 8);
    poke(f, TSS + 0x24, STACK1, 8);     /* IST1 */
    accept(x86_far_jump(vcpu, SEL_CODE64, HANDLER, 4, 0));
    assert_int_equal(vcpu->mode, MODE_LONG64);
}

static inline void put_gate64(struct x86_fixture *f, unsigned vector, uint16_t selector, uint64_t offset, uint8_t access, uint8_t ist)
{
    poke(f, IDT + vector * 16, make_gate(selector, offset, access, ist), 8);
    poke(f, IDT + vector * 16 + 8, offset >> 32, 8);
}

static inline void put_gate32(struct x86_fixture *f, unsigned vector, uint16_t selector, uint32_t offset, uint8_t access)
{
    poke(f, IDT + vector * 8, make_gate(selector, offset, access, 0), 8);
}

#endif
