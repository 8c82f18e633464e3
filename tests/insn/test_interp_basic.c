/*
 * What the host CPU cannot judge at user level: the interpreter's own promises about self-modifying code, page-crossing
 * instructions, budgets, single steps, shadows and restarts; and that no such case decodes
 * again and again what has not changed.
 */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "bus/bus.h"
#include "engine/engine.h"
#include "mem/code_map.h"
#include "mem/ram.h"
#include "mmu/mmu.h"
#include "vcpu/thread.h"
#include "x86/x86.h"

enum {
    RAM_SIZE = 4 << 20, MMIO_BASE = 0x800000, TABLES = 0x1000, CODE = 0x100000, DATA = 0x200000, STACK = 0x300000,
    PTE = 3, PTE_LARGE = 0x83, FIRST_PT = 0x4000,
};

struct tiny {
    struct log log;
    struct ram *ram;
    struct bus *mmio, *ports;
    struct clock *clock;
    struct cpu_model *model;
    struct vcpu *vcpu, *all[1];
    struct region region;
    unsigned mmio_writes, request_after;
};

static void put64(struct tiny *t, uint64_t gpa, uint64_t value)
{
    assert_true(ram_write(t->ram, gpa, &value, 8));
}

/* Linear = physical for the first 2 MiB in small pages (tables at FIRST_PT), the rest of 16 MiB in large ones. */
static void make_tables(struct tiny *t)
{
    put64(t, TABLES, (TABLES + 0x1000) | PTE);
    put64(t, TABLES + 0x1000, (TABLES + 0x2000) | PTE);
    put64(t, TABLES + 0x2000, FIRST_PT | PTE);
    for (unsigned i = 1; i < 8; i++)
        put64(t, TABLES + 0x2000 + 8 * i, ((uint64_t)i << 21) | PTE_LARGE);
    for (unsigned i = 0; i < 512; i++)
        put64(t, FIRST_PT + 8 * i, ((uint64_t)i << PAGE_SHIFT) | PTE);
}

static void code_written(void *owner, uint64_t gpa, uint64_t size)
{
    struct tiny *t = owner;
    if (!t->vcpu->overwriting)
        t->vcpu->engine->code_written(t->vcpu, gpa, size);
}

static enum access_result device(void *owner, struct access *access)
{
    struct tiny *t = owner;
    if (access->write && ++t->mmio_writes == t->request_after)
        atomic_fetch_or(&t->vcpu->request, REQUEST_INTERRUPT);
    access->value = access->write ? access->value : 0x5A;
    return ACCESS_OK;
}

static int start(void **state)
{
    struct tiny *t = calloc(1, sizeof(*t));
    struct error err;
    log_init(&t->log, stderr);
    t->ram = ram_create();
    t->mmio = bus_create("mmio", 1ull << 40, &t->log);
    t->ports = bus_create("port", 0x10000, &t->log);
    t->clock = clock_create_manual();
    t->model = x86_model_create(NULL, 1, clock_tsc_hz(t->clock), &err);
    assert_true(t->model && ram_add(t->ram, "RAM", 0, RAM_SIZE, false, &err));
    t->region = (struct region){ .name = "device", .base = MMIO_BASE, .size = 0x1000, .access = device, .owner = t };
    bus_map(t->mmio, &t->region);
    struct vcpu *vcpu = t->vcpu = aligned_alloc(64, align_up(sizeof(*vcpu), 64));
    memset(vcpu, 0, sizeof(*vcpu));
    vcpu_thread_init(vcpu);
    t->all[0] = vcpu;
    vcpu->model = t->model;
    vcpu->ram = t->ram;
    vcpu->mmio = t->mmio;
    vcpu->ports = t->ports;
    vcpu->clock = t->clock;
    vcpu->log = &t->log;
    vcpu->all = t->all;
    vcpu->all_count = 1;
    vcpu->mmu = mmu_create();
    vcpu->engine = engine_find("interp");
    x86_reset(vcpu, false);
    t->ram->watcher = (struct ram_watcher){ code_written, t };
    make_tables(t);
    vcpu->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    vcpu->cr3 = TABLES;
    vcpu->cr4 = CR4_PAE | CR4_OSFXSR;
    vcpu->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    vcpu->seg[CS] = (struct segment){ .selector = 0x10, .limit = 0xFFFFFFFF, .attr = 0xA09B };
    vcpu->seg[SS] = (struct segment){ .selector = 0x18, .limit = 0xFFFFFFFF, .attr = 0xC093 };
    vcpu->cpl = 0;
    vcpu->activity = ACTIVITY_ACTIVE;
    vcpu->rflags = 2;
    x86_update_mode(vcpu);
    mmu_mode_changed(vcpu);
    assert_true(vcpu->engine->attach(vcpu));
    *state = t;
    return 0;
}

static int stop(void **state)
{
    struct tiny *t = *state;
    t->vcpu->engine->detach(t->vcpu);
    mmu_destroy(t->vcpu->mmu);
    vcpu_thread_fini(t->vcpu);
    free(t->vcpu);
    x86_model_destroy(t->model);
    clock_destroy(t->clock);
    bus_destroy(t->mmio);
    bus_destroy(t->ports);
    ram_destroy(t->ram);
    free(t);
    return 0;
}

/* Places code at gpa and points rip at it, registers cleared. */
static void place(struct tiny *t, uint64_t at, const char *code, size_t size)
{
    assert_true(ram_write(t->ram, at, code, size));
    memset(t->vcpu->gpr, 0, sizeof(t->vcpu->gpr));
    t->vcpu->gpr[RSP] = STACK;
    t->vcpu->rip = at;
}
#define PLACE(t, at, code) place(t, at, code, sizeof(code) - 1)

static enum run_result run(struct tiny *t, uint64_t budget)
{
    return t->vcpu->engine->run(t->vcpu, budget);
}

static uint64_t executed(struct tiny *t) { return counter_get(&t->vcpu->counters, COUNTER_instructions); }

/* --- self-modifying code --- */

static void a_store_into_the_present_block_takes_effect_at_the_next_instruction(void **state)
{
    struct tiny *t = *state;
    /* mov byte [rip+1], 7 ; mov al, 1 ; hlt: the store hits the immediate of the very next instruction */
    static const char code[] = "\xc6\x05\x01\x00\x00\x00\x07\xb0\x01\xf4";
    for (unsigned i = 0; i < 3; i++) {
        PLACE(t, CODE, code);
        t->vcpu->activity = ACTIVITY_ACTIVE;
        assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
        assert_int_equal(t->vcpu->gpr[RAX], 7);
        assert_int_equal(t->vcpu->rip, CODE + sizeof(code) - 1);
    }
}

static void a_read_modify_write_of_the_present_block_takes_effect_too(void **state)
{
    struct tiny *t = *state;
    /* lock add byte [rip+1], 4 ; mov al, 1 ; hlt */
    PLACE(t, CODE, "\xf0\x80\x05\x01\x00\x00\x00\x04\xb0\x01\xf4");
    assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
    assert_int_equal(t->vcpu->gpr[RAX], 5);
}

static void a_repeated_string_over_its_own_block_takes_effect(void **state)
{
    struct tiny *t = *state;
    /* mov al, 0x90 ; mov edi, CODE+14 ; mov ecx, 4 ; rep stosb ; then four int3 that become nops ; hlt */
    PLACE(t, CODE, "\xb0\x90\xbf\x0e\x00\x10\x00\xb9\x04\x00\x00\x00\xf3\xaa\xcc\xcc\xcc\xcc\xf4");
    assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
    assert_int_equal(t->vcpu->rip, CODE + 19);
}

static void code_written_by_a_device_is_decoded_anew(void **state)
{
    struct tiny *t = *state;
    PLACE(t, CODE, "\xb0\x01\xf4");
    assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
    assert_int_equal(t->vcpu->gpr[RAX], 1);
    t->vcpu->activity = ACTIVITY_ACTIVE;
    PLACE(t, CODE, "\xb0\x02\xf4");
    assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
    assert_int_equal(t->vcpu->gpr[RAX], 2);
}

/* --- pages --- */

/* The page wears out by what this processor writes, while another one decodes elsewhere in it: what is run from it again is marked again. */
static void a_page_that_wore_out_is_marked_anew(void **state)
{
    struct tiny *t = *state;
    enum { ELSEWHERE = CODE + 0x800 };
    PLACE(t, CODE, "\xb0\x01\xf4");
    assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
    assert_true(code_map_hit(t->ram, CODE, 1));
    code_map_remove(t->ram, CODE, PAGE_SIZE);
    code_map_add(t->ram, ELSEWHERE, 1);
    t->vcpu->code_overwritten(t->vcpu, CODE, PAGE_SIZE);
    t->vcpu->activity = ACTIVITY_ACTIVE;
    t->vcpu->rip = CODE;
    assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
    assert_true(code_map_hit(t->ram, CODE, 1));
}

static void an_instruction_across_pages_follows_its_second_page(void **state)
{
    struct tiny *t = *state;
    uint64_t at = CODE + PAGE_SIZE - 2;        /* mov eax, imm32 with three bytes in the next page */
    for (unsigned i = 0; i < 4; i++) {
        uint64_t second = CODE + PAGE_SIZE * (1 + (i & 1));
        uint8_t rest[] = { 0, 0, (uint8_t)(i & 1), 0xF4 };
        ram_write(t->ram, second, rest, sizeof(rest));
        put64(t, FIRST_PT + 8 * ((CODE >> PAGE_SHIFT) + 1), second | PTE);
        mmu_flush_page(t->vcpu, CODE + PAGE_SIZE);
        PLACE(t, at, "\xb8\x11");
        t->vcpu->activity = ACTIVITY_ACTIVE;
        assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
        assert_int_equal(t->vcpu->gpr[RAX], 0x11 + ((uint64_t)(i & 1) << 24));
    }
}

static void a_fetch_fault_in_the_second_page_names_that_page(void **state)
{
    struct tiny *t = *state;
    put64(t, FIRST_PT + 8 * ((CODE >> PAGE_SHIFT) + 1), 0);
    PLACE(t, CODE + PAGE_SIZE - 4, "\x90\x90\xb8\x11");
    assert_int_equal(run(t, UINT64_MAX), RUN_EVENT);
    assert_int_equal(t->vcpu->pending.vector, VEC_PF);
    assert_int_equal(t->vcpu->pending.payload, CODE + PAGE_SIZE);
    assert_int_equal(t->vcpu->pending.error, PF_I);
    assert_int_equal(t->vcpu->rip, CODE + PAGE_SIZE - 2);
    assert_int_equal(executed(t), 2);
}

static void a_branch_to_a_page_that_was_remapped_runs_the_new_code(void **state)
{
    struct tiny *t = *state;
    ram_write(t->ram, CODE + PAGE_SIZE, "\xb0\x01\xf4", 3);
    ram_write(t->ram, CODE + 2 * PAGE_SIZE, "\xb0\x02\xf4", 3);
    for (unsigned i = 0; i < 4; i++) {
        put64(t, FIRST_PT + 8 * ((CODE >> PAGE_SHIFT) + 1), (CODE + PAGE_SIZE * (1 + (i & 1))) | PTE);
        mmu_flush_page(t->vcpu, CODE + PAGE_SIZE);
        t->vcpu->activity = ACTIVITY_ACTIVE;
        PLACE(t, CODE, "\xe9\xfb\x0f\x00\x00");
        assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
        assert_int_equal(t->vcpu->gpr[RAX], 1 + (i & 1));
    }
}

/* --- decoding --- */

static void faults_of_decoding(void **state)
{
    struct tiny *t = *state;
    static const struct { const char *code; size_t size; uint8_t vector; } cases[] = {
        { "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90", 16, VEC_GP },     /* 16 bytes */
        { "\xf0\x01\xc0", 3, VEC_UD },          /* LOCK on a register */
        { "\xf0\x8b\x00", 3, VEC_UD },          /* LOCK MOV */
        { "\x0f\x0b", 2, VEC_UD },              /* UD2 */
        { "\x8e\xc8", 2, VEC_UD },              /* MOV CS */
        { "\x27", 1, VEC_UD },                  /* DAA in 64-bit mode */
        { "\x0f\x22\xc8", 3, VEC_UD },          /* MOV CR1 */
        { "\x0f\xff\xc0", 3, VEC_UD },          /* UD0 */
        { "\xc4\x81\x7a\xb8\xc4", 5, VEC_UD },  /* POPCNT in a VEX encoding that only Knights Corner had */
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        place(t, CODE, cases[i].code, cases[i].size);
        assert_int_equal(run(t, UINT64_MAX), RUN_EVENT);
        assert_int_equal(t->vcpu->pending.vector, cases[i].vector);
        assert_int_equal(t->vcpu->rip, CODE);
        t->vcpu->pending.kind = EVENT_NONE;
    }
}

static void addresses_of_all_forms(void **state)
{
    struct tiny *t = *state;
    put64(t, DATA, 0x1122334455667788);
    t->vcpu->seg[FS].base = DATA - 0x10;
    static const struct { const char *code; size_t size; } cases[] = {
        { "\x48\x8b\x04\x25\x00\x00\x20\x00\xf4", 9 },                  /* mov rax, [DATA] */
        { "\x64\x48\x8b\x04\x25\x10\x00\x00\x00\xf4", 10 },             /* mov rax, fs:[0x10] */
        { "\x48\xa1\x00\x00\x20\x00\x00\x00\x00\x00\xf4", 11 },         /* mov rax, moffs64 */
        { "\x48\x8b\x05\xf9\xff\x0f\x00\xf4", 8 },                      /* mov rax, [rip+..] */
        { "\xbb\x00\x00\x10\x00\x48\x8b\x04\x5b\x90\xf4", 11 },         /* rbx=100000: [rbx+rbx*2] is 300000 */
        { "\xbb\x00\x00\x10\x00\x67\x48\x8b\x04\x1b\xf4", 11 },         /* [ebx+ebx] */
        { "\x67\x49\x8b\x04\x65\x00\x00\x20\x00\xf4", 10 },             /* no base under REX.B and 67 */
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        place(t, CODE, cases[i].code, cases[i].size);
        t->vcpu->activity = ACTIVITY_ACTIVE;
        assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
        if (i == 4)
            assert_int_equal(t->vcpu->gpr[RAX], 0);
        else
            assert_true(t->vcpu->gpr[RAX] == 0x1122334455667788);
    }
}

/* --- budgets, steps, shadows --- */

static void budgets_are_exact_when_small(void **state)
{
    struct tiny *t = *state;
    char code[200];
    memset(code, 0x90, sizeof(code));
    for (unsigned budget = 1; budget < 60; budget += 7) {
        place(t, CODE, code, sizeof(code));
        uint64_t before = executed(t);
        assert_int_equal(run(t, budget), RUN_REQUEST);
        assert_int_equal(t->vcpu->rip, CODE + budget);
        assert_int_equal(executed(t) - before, budget);
    }
}

static void tf_traps_after_each_instruction(void **state)
{
    struct tiny *t = *state;
    PLACE(t, CODE, "\xff\xc0\xff\xc0\xf4");
    t->vcpu->rflags |= RFLAGS_TF;
    for (unsigned i = 1; i <= 2; i++) {
        assert_int_equal(run(t, UINT64_MAX), RUN_EVENT);
        assert_int_equal(t->vcpu->pending.vector, VEC_DB);
        assert_int_equal(t->vcpu->pending.kind, EVENT_TRAP);
        assert_int_equal(t->vcpu->pending.payload, DR6_BS);
        assert_int_equal(t->vcpu->rip, CODE + 2 * i);
        assert_int_equal(t->vcpu->gpr[RAX], i);
        t->vcpu->pending.kind = EVENT_NONE;
    }
}

static void sti_shadows_one_instruction(void **state)
{
    struct tiny *t = *state;
    PLACE(t, CODE, "\xfb\x90\x90\xf4");
    assert_int_equal(run(t, 1), RUN_REQUEST);
    assert_int_equal(t->vcpu->shadow, SHADOW_STI);
    assert_int_equal(run(t, 1), RUN_REQUEST);
    assert_int_equal(t->vcpu->shadow, 0);
    assert_int_equal(t->vcpu->rip, CODE + 2);
    t->vcpu->rflags &= ~(uint64_t)RFLAGS_IF;
}

static void mov_ss_holds_a_debug_trap_back(void **state)
{
    struct tiny *t = *state;
    PLACE(t, CODE, "\x8e\xd0\x90\x90\xf4");     /* mov ss, eax (null, allowed at CPL 0 in 64-bit mode) ; nop ; nop */
    t->vcpu->rflags |= RFLAGS_TF;
    assert_int_equal(run(t, UINT64_MAX), RUN_EVENT);
    assert_int_equal(t->vcpu->rip, CODE + 3);
    assert_int_equal(t->vcpu->pending.vector, VEC_DB);
}

static void an_instruction_breakpoint_faults_once_and_rf_passes_it(void **state)
{
    struct tiny *t = *state;
    PLACE(t, CODE, "\x90\x90\x90\xf4");
    t->vcpu->dr[0] = CODE + 1;
    t->vcpu->dr7 = DR7_FIXED | 2;
    mmu_mode_changed(t->vcpu);
    assert_int_equal(run(t, UINT64_MAX), RUN_EVENT);
    assert_int_equal(t->vcpu->pending.kind, EVENT_FAULT);
    assert_int_equal(t->vcpu->pending.vector, VEC_DB);
    assert_int_equal(t->vcpu->rip, CODE + 1);
    t->vcpu->pending.kind = EVENT_NONE;
    t->vcpu->rflags |= RFLAGS_RF;
    assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
    assert_int_equal(t->vcpu->rip, CODE + 4);
    assert_false(t->vcpu->rflags & RFLAGS_RF);
}

/* --- restarts --- */

static void a_repetition_leaves_at_an_element_when_asked(void **state)
{
    struct tiny *t = *state;
    PLACE(t, CODE, "\xf3\xaa\xf4");     /* rep stosb to the device */
    t->vcpu->gpr[RDI] = MMIO_BASE;
    t->vcpu->gpr[RCX] = 10;
    t->request_after = 4;
    assert_int_equal(run(t, UINT64_MAX), RUN_REQUEST);
    assert_int_equal(t->vcpu->rip, CODE);
    assert_int_equal(t->vcpu->gpr[RCX], 6);
    assert_int_equal(t->vcpu->gpr[RDI], MMIO_BASE + 4);
    atomic_store(&t->vcpu->request, 0);
    assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
    assert_int_equal(t->mmio_writes, 10);
}

static void a_repetition_faults_at_its_element(void **state)
{
    struct tiny *t = *state;
    put64(t, FIRST_PT + 8 * 0x181, 0);
    PLACE(t, CODE, "\xf3\xa4\xf4");
    t->vcpu->gpr[RSI] = DATA;
    t->vcpu->gpr[RDI] = 0x180F00;
    t->vcpu->gpr[RCX] = 0x1000;
    assert_int_equal(run(t, UINT64_MAX), RUN_EVENT);
    assert_int_equal(t->vcpu->pending.payload, 0x181000);
    assert_int_equal(t->vcpu->gpr[RCX], 0xF00);
    assert_int_equal(t->vcpu->gpr[RSI], DATA + 0x100);
    assert_int_equal(t->vcpu->rip, CODE);
}

/* SDM2 REP: "the EFLAGS value is restored". The host may be one of AMD's, which does not do so. */
static void a_repeated_comparison_that_faults_leaves_the_flags_of_before(void **state)
{
    struct tiny *t = *state;
    put64(t, FIRST_PT + 8 * 0x181, 0);
    PLACE(t, CODE, "\xf3\xae\xf4");     /* repe scasb of bytes that are equal */
    t->vcpu->gpr[RDI] = 0x180FF0;
    t->vcpu->gpr[RCX] = 0x100;
    t->vcpu->rflags = 2 | RFLAGS_CF | RFLAGS_SF | RFLAGS_OF;
    assert_int_equal(run(t, UINT64_MAX), RUN_EVENT);
    assert_int_equal(t->vcpu->gpr[RCX], 0xF0);
    assert_int_equal(t->vcpu->gpr[RDI], 0x181000);
    assert_int_equal(t->vcpu->rflags & RFLAGS_STATUS, RFLAGS_CF | RFLAGS_SF | RFLAGS_OF);
}

static void strings_into_a_page_with_code_arrive_whole(void **state)
{
    struct tiny *t = *state;
    /* rep stosb over [CODE+64+3, +200), then rep movsb from there to CODE+512+5, then the overlapping move by one */
    PLACE(t, CODE, "\xb0\x5a\xbf\x43\x00\x10\x00\xb9\xc8\x00\x00\x00\xf3\xaa"
                   "\xbe\x43\x00\x10\x00\xbf\x05\x02\x10\x00\xb9\xc8\x00\x00\x00\xf3\xa4"
                   "\xc6\x05\xdf\x01\x00\x00\x11"
                   "\xbe\x05\x02\x10\x00\xbf\x06\x02\x10\x00\xb9\x64\x00\x00\x00\xf3\xa4\xf4");
    assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
    uint8_t bytes[202];
    ram_read(t->ram, CODE + 0x42, bytes, sizeof(bytes));
    for (unsigned i = 0; i < 200; i++)
        assert_int_equal(bytes[1 + i], 0x5A);
    assert_int_equal(bytes[201], 0);
    ram_read(t->ram, CODE + 0x204, bytes, sizeof(bytes));
    for (unsigned i = 0; i < 200; i++)
        assert_int_equal(bytes[1 + i], i <= 100 ? 0x11 : 0x5A);
}

static void overlapping_moves_repeat_their_start(void **state)
{
    struct tiny *t = *state;
    put64(t, DATA, 0xAB);
    PLACE(t, CODE, "\xf3\xa4\xf4");
    t->vcpu->gpr[RSI] = DATA;
    t->vcpu->gpr[RDI] = DATA + 1;
    t->vcpu->gpr[RCX] = 100;
    assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
    uint8_t bytes[101];
    ram_read(t->ram, DATA, bytes, sizeof(bytes));
    for (unsigned i = 0; i < sizeof(bytes); i++)
        assert_int_equal(bytes[i], 0xAB);
}

/* --- how much is done again --- */

/* Blocks decoded in `rounds` rounds of a loop that ends by HLT; RCX counts them. */
static uint64_t decoded_in(struct tiny *t, uint64_t at, const char *code, size_t size, uint64_t rounds)
{
    uint64_t before = counter_get(&t->vcpu->counters, COUNTER_blocks_decoded);
    place(t, at, code, size);
    t->vcpu->gpr[RCX] = rounds;
    t->vcpu->gpr[RDI] = DATA;
    t->vcpu->activity = ACTIVITY_ACTIVE;
    assert_int_equal(run(t, UINT64_MAX), RUN_IDLE);
    assert_int_equal(t->vcpu->gpr[RCX], 0);
    return counter_get(&t->vcpu->counters, COUNTER_blocks_decoded) - before;
}
#define DECODED_IN(t, at, code, rounds) decoded_in(t, at, code, sizeof(code) - 1, rounds)

/* A work item of twenty instructions and more, of which one writes: beside the loop, or into it. */
#define WORK "\xff\xc0\xff\xc3\x01\xd8\x31\xc3\xff\xc0\xff\xc3\x01\xd8\x31\xc3\xff\xc0\xff\xc3\x01\xd8\x31\xc3\xff\xc0\xff\xc3\x01\xd8\x31\xc3"
static void no_case_is_pathological(void **state)
{
    enum { ROUNDS = 2000, FEW = 50 };
    struct tiny *t = *state;
    /* mov [rdi], cl ; work ; dec ecx ; jnz ; hlt */
    uint64_t normal = DECODED_IN(t, CODE, "\x88\x0f" WORK "\xff\xc9\x75\xda\xf4", ROUNDS);
    /* mov [rip+1], cl: into the immediate of the MOV AL behind it */
    uint64_t modifying = DECODED_IN(t, CODE, "\x88\x0d\x01\x00\x00\x00\xb0\x01" WORK "\xff\xc9\x75\xd4\xf4", ROUNDS);
    /* mov [rip+..], cl: data in the code's page, far enough from it */
    uint64_t beside = DECODED_IN(t, CODE, "\x88\x0d\xfa\x01\x00\x00" WORK "\xff\xc9\x75\xd6\xf4", ROUNDS);
    /* the same as `normal`, across a page border */
    uint64_t crossing = DECODED_IN(t, CODE + PAGE_SIZE - 9, "\x88\x0f" WORK "\xff\xc9\x75\xda\xf4", ROUNDS);
    printf("blocks decoded in %d rounds: normal %lu, self-modifying %lu, data in the code page %lu, page-crossing %lu\n", ROUNDS, normal,
           modifying, beside, crossing);
    assert_true(normal < FEW && modifying < FEW && beside < FEW && crossing < FEW);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, start, stop)
    const struct CMUnitTest tests[] = {
        TEST(a_store_into_the_present_block_takes_effect_at_the_next_instruction),
        TEST(a_read_modify_write_of_the_present_block_takes_effect_too),
        TEST(a_repeated_string_over_its_own_block_takes_effect),
        TEST(code_written_by_a_device_is_decoded_anew),
        TEST(a_page_that_wore_out_is_marked_anew),
        TEST(an_instruction_across_pages_follows_its_second_page),
        TEST(a_fetch_fault_in_the_second_page_names_that_page),
        TEST(a_branch_to_a_page_that_was_remapped_runs_the_new_code),
        TEST(faults_of_decoding),
        TEST(addresses_of_all_forms),
        TEST(budgets_are_exact_when_small),
        TEST(tf_traps_after_each_instruction),
        TEST(sti_shadows_one_instruction),
        TEST(mov_ss_holds_a_debug_trap_back),
        TEST(an_instruction_breakpoint_faults_once_and_rf_passes_it),
        TEST(a_repetition_leaves_at_an_element_when_asked),
        TEST(a_repetition_faults_at_its_element),
        TEST(a_repeated_comparison_that_faults_leaves_the_flags_of_before),
        TEST(strings_into_a_page_with_code_arrive_whole),
        TEST(overlapping_moves_repeat_their_start),
        TEST(no_case_is_pathological),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
