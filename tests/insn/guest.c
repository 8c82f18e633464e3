/* The guest side: one vCPU at CPL 3 under 4-level paging, with the same addresses mapped as the host's child has. */
#include "case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "bus/bus.h"
#include "engine/dbt/beside.h"
#include "engine/dbt/hot.h"
#include "engine/engine.h"
#include "mem/ram.h"
#include "mmu/mmu.h"
#include "mmu/window.h"
#include "vcpu/thread.h"
#include "vcpu/work.h"
#include "x86/x86.h"

enum {
    GUEST_RAM = 4 * MiB,
    TABLES_GPA = 0x10000, DATA_GPA = 0x100000, CODE_GPA = 0x200000,
    CODE_PLACES = 128,          /* the code lies at one after the other of so many pairs of pages that are not neighbours */
    PTE_WRITABLE = 2, PTE_USER_RW = 7,
};
#define PTE_NX (1ull << 63)

struct guest {
    struct log log;
    struct ram *ram;
    struct bus *mmio, *ports;
    struct clock *clock;
    struct cpu_model *model;
    struct vcpu *vcpu;
    struct vcpu *all[1];
    struct beside *beside;      /* NULL: none */
    unsigned code_place;
};

static void put_entry(struct guest *guest, uint64_t table, unsigned index, uint64_t entry)
{
    ram_write(guest->ram, table + 8 * index, &entry, 8);
}

/* Maps one page (entry: its address, and NX); the tables for both areas are at fixed places, since both lie below 1 GiB. */
static void map_page(struct guest *guest, uint64_t gla, uint64_t entry)
{
    uint64_t pml4 = TABLES_GPA, pdpt = pml4 + 0x1000, pd = pdpt + 0x1000;
    uint64_t pt = pd + 0x1000 * (1 + (gla >= CODE_BASE));
    put_entry(guest, pml4, 0, pdpt | PTE_USER_RW);
    put_entry(guest, pdpt, 0, pd | PTE_USER_RW);
    put_entry(guest, pd, (unsigned)bits(gla, 29, 21), pt | PTE_USER_RW);
    put_entry(guest, pt, (unsigned)bits(gla, 20, 12), entry);
}

/* The page of the code's second half lies apart from the first's. */
static uint64_t code_gpa(const struct guest *guest, uint64_t gla)
{
    uint64_t offset = gla - CODE_BASE, place = CODE_GPA + guest->code_place * PAGE_SIZE;
    return offset < PAGE_SIZE ? place + offset : place + CODE_PLACES * PAGE_SIZE + offset - PAGE_SIZE;
}

/* The next place, with nothing in it. */
static void map_code(struct guest *guest)
{
    uint8_t fill[PAGE_SIZE];
    memset(fill, CODE_FILL, sizeof(fill));
    guest->code_place = (guest->code_place + 1) % CODE_PLACES;
    for (uint64_t gla = CODE_BASE; gla < CODE_BASE + CODE_SIZE; gla += PAGE_SIZE) {
        ram_write(guest->ram, code_gpa(guest, gla), fill, sizeof(fill));
        map_page(guest, gla, code_gpa(guest, gla) | PTE_USER_RW);
        mmu_flush_page(guest->vcpu, gla);
    }
}

static void map_data(struct guest *guest)
{
    for (unsigned i = 0; i < DATA_PAGES; i++) {
        const struct data_page *p = &data_page[i];
        map_page(guest, DATA_BASE + p->page * PAGE_SIZE,
                 (DATA_GPA + p->backing * PAGE_SIZE) | PTE_NX | (p->writable ? PTE_USER_RW : PTE_USER_RW - PTE_WRITABLE));
    }
}

/* The code to guest memory (`to_guest`) or back, in pieces that do not cross its pages. */
static void copy_code(struct guest *guest, const struct run *run, uint8_t *code, bool to_guest)
{
    for (unsigned done = 0, part; done < run->code_length; done += part) {
        uint64_t gla = run->start.rip + done;
        part = run->code_length - done;
        if ((gla & PAGE_MASK) + part > PAGE_SIZE)
            part = PAGE_SIZE - (unsigned)(gla & PAGE_MASK);
        if (to_guest)
            ram_write(guest->ram, code_gpa(guest, gla), code + done, part);
        else
            memcpy(code + done, ram_host(guest->ram, code_gpa(guest, gla)), part);
    }
}

static void code_written(void *owner, uint64_t gpa, uint64_t size)
{
    struct guest *guest = owner;
    guest->vcpu->engine->code_written(guest->vcpu, gpa, size);
}

static void ignore_event(void *owner, struct vcpu *vcpu, unsigned event) {}

static struct segment user_segment(uint16_t selector, uint32_t attr)
{
    return (struct segment){ .selector = selector, .limit = 0xFFFFFFFF, .attr = attr };
}

struct guest *guest_start(const char *engine, const char *cpu_model)
{
    struct guest *guest = calloc(1, sizeof(*guest));
    struct error err;
    log_init(&guest->log, stderr);
    guest->ram = ram_create();
    guest->mmio = bus_create("mmio", 0, &guest->log);
    guest->ports = bus_create("port", 0x10000, &guest->log);
    guest->clock = clock_create_manual();
    guest->model = x86_model_create(cpu_model, 1, clock_tsc_hz(guest->clock), &err);
    if (!guest->model || !ram_add(guest->ram, "RAM", 0, GUEST_RAM, false, &err)) {
        fprintf(stderr, "cannot start the guest: %s\n", err.text);
        exit(1);
    }
    struct vcpu *vcpu = guest->vcpu = aligned_alloc(64, align_up(sizeof(*vcpu), 64));
    memset(vcpu, 0, sizeof(*vcpu));
    vcpu_thread_init(vcpu);
    guest->all[0] = vcpu;
    vcpu->model = guest->model;
    vcpu->ram = guest->ram;
    vcpu->mmio = guest->mmio;
    vcpu->ports = guest->ports;
    vcpu->clock = guest->clock;
    vcpu->log = &guest->log;
    vcpu->all = guest->all;
    vcpu->all_count = 1;
    vcpu->system_event = ignore_event;
    vcpu->mmu = mmu_create();
    vcpu->engine = engine_find(engine);
    if (!vcpu->engine) {
        fprintf(stderr, "there is no engine '%s'\n", engine);
        exit(1);
    }
    x86_reset(vcpu, false);
    vcpu->engine->attach(vcpu);
    if (vcpu->engine == &engine_dbt)
        dbt_set_hot(vcpu, 0);
    vcpu->gdtr.limit = vcpu->idtr.limit = 0;
    vcpu->ldtr = (struct segment){ .attr = SEG_UNUSABLE };
    guest->ram->watcher = (struct ram_watcher){ code_written, guest };
    map_data(guest);
    return guest;
}

void guest_set_hot(struct guest *guest, unsigned runs)
{
    if (guest->vcpu->engine == &engine_dbt)
        dbt_set_hot(guest->vcpu, runs);
}

void guest_set_beside(struct guest *guest, unsigned runs, bool at_once)
{
    guest->beside = beside_create();
    if (!guest->beside || !dbt_set_beside(guest->vcpu, runs, guest->beside, at_once))
        exit(1);
}

void guest_await_beside(struct guest *guest)
{
    enum { NAPS = 20, NAP_MICROSECONDS = 50 };
    for (unsigned i = 0; i < NAPS && dbt_beside_is_busy(guest->vcpu); i++)
        usleep(NAP_MICROSECONDS);
}

static void set_mode(struct vcpu *vcpu, enum code_mode mode)
{
    uint32_t data = 0xC0F3, code = mode == CODE_64 ? 0xA0FB : 0xC0FB;       /* DPL 3, present, accessed, G, D or L */
    vcpu->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    vcpu->cr3 = TABLES_GPA;
    vcpu->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_UMIP;
    vcpu->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    vcpu->xcr0 = x86_xcr0_supported(vcpu) & ~(uint64_t)XCR0_PKRU;
    vcpu->seg[CS] = user_segment(mode == CODE_64 ? 0x33 : 0x23, code);
    vcpu->seg[SS] = user_segment(0x2B, data);
    vcpu->seg[DS] = vcpu->seg[ES] = vcpu->seg[SS];
    vcpu->seg[FS] = vcpu->seg[GS] = (struct segment){ .attr = SEG_UNUSABLE };
    vcpu->tr = (struct segment){ .selector = 0x40, .attr = 0x8B };     /* no I/O bitmap: every port is forbidden */
    vcpu->cpl = 3;
    vcpu->shadow = 0;
    vcpu->activity = ACTIVITY_ACTIVE;
    vcpu->pending = (struct event){ 0 };
    vcpu->pending_debug = 0;
}

static void load_image(struct vcpu *vcpu, const struct cpu_image *image)
{
    memcpy(vcpu->gpr, image->gpr, sizeof(vcpu->gpr));
    vcpu->rip = image->rip;
    vcpu->rflags = image->rflags;
    memcpy(vcpu->fpu.fxsave, image->fxsave, sizeof(vcpu->fpu.fxsave));
    memcpy(vcpu->fpu.zmm, image->zmm, sizeof(vcpu->fpu.zmm));
    memcpy(vcpu->fpu.k, image->k, sizeof(vcpu->fpu.k));
}

static void save_general(const struct vcpu *vcpu, struct cpu_image *image)
{
    memcpy(image->gpr, vcpu->gpr, sizeof(vcpu->gpr));
    image->rip = vcpu->rip;
    image->rflags = vcpu->rflags;
}

static void save_image(const struct vcpu *vcpu, struct cpu_image *image)
{
    save_general(vcpu, image);
    memcpy(image->fxsave, vcpu->fpu.fxsave, sizeof(vcpu->fpu.fxsave));
    memcpy(image->zmm, vcpu->fpu.zmm, sizeof(vcpu->fpu.zmm));
    memcpy(image->k, vcpu->fpu.k, sizeof(vcpu->fpu.k));
}

static bool is_fill(const uint8_t *bytes, size_t size)
{
    return !size || (bytes[0] == CODE_FILL && !memcmp(bytes, bytes + 1, size - 1));
}

/* Are the pages of code as they were at the start? */
static bool code_kept(struct guest *guest, const struct run *run)
{
    uint8_t all[CODE_SIZE], *start = all + (run->start.rip - CODE_BASE), *end = start + run->code_length;
    memcpy(all, ram_host(guest->ram, code_gpa(guest, CODE_BASE)), PAGE_SIZE);
    memcpy(all + PAGE_SIZE, ram_host(guest->ram, code_gpa(guest, CODE_BASE + PAGE_SIZE)), PAGE_SIZE);
    return is_fill(all, (size_t)(start - all)) && is_fill(end, (size_t)(all + CODE_SIZE - end)) &&
           !memcmp(start, run->code, run->code_length);
}

/* More than any case needs unless it loops for ever; one that the host brought to its end may have looped for long. */
enum { GUEST_INSNS_MAX = 10000000, GUEST_INSNS_ENDING = 2000000000, PIECE_MAX = 60 };

/* What is left to run; with `chop` a piece of it, now and then with an empty TLB. */
static uint64_t next_budget(struct vcpu *vcpu, struct guest_how *how, uint64_t left)
{
    if (how->until || how->one_by_one)
        return 1;
    if (!how->chop)
        return left;
    uint64_t random = next_random(&how->chop), piece = random & 1 ? 1 : 1 + (random >> 8) % PIECE_MAX;
    if ((random >> 32) % 4 == 0)
        mmu_flush_all(vcpu);
    return piece < left ? piece : left;
}

/* A fault of the program: true if it goes on. */
static bool take_fault(struct vcpu *vcpu, const struct run *run, struct outcome *outcome)
{
    struct event event = vcpu->pending;
    vcpu->pending.kind = EVENT_NONE;
    save_general(vcpu, &outcome->end);
    add_fault(outcome, event.vector, event.has_error ? event.error : 0, event.payload);
    uint64_t resume = resume_at(run, outcome, vcpu->rip);
    if (resume)
        vcpu->rip = resume;
    return resume;
}

/*
 * A piece of one instruction may end in the midst of a repeated CMPS or SCAS. Its fault then restores the flags with which it was
 * entered last, as after an interrupt; in one go it is those from before its first element (SDM2 REP, "the EFLAGS value is restored"). AMD's
 * processors leave those of the last comparison, which an element at a time has entered it with.
 */
static void restore_flags(struct vcpu *vcpu, uint64_t flags)
{
    if (vcpu->pending.kind == EVENT_FAULT)
        vcpu->rflags = (vcpu->rflags & ~(uint64_t)RFLAGS_STATUS) | (flags & RFLAGS_STATUS);
}

static bool is_before(struct guest *guest, bool (*wanted)(const struct insn_bytes *insn))
{
    struct insn_bytes insn = { 0 };
    for (uint64_t gla = guest->vcpu->rip; insn.length < sizeof(insn.bytes) && gla - CODE_BASE < CODE_SIZE; gla++)
        insn.bytes[insn.length++] = *ram_host(guest->ram, code_gpa(guest, gla));
    return wanted(&insn);
}

static void run_to_end(struct guest *guest, const struct run *run, struct guest_how how, struct outcome *outcome)
{
    struct vcpu *vcpu = guest->vcpu;
    uint64_t first = counter_get(&vcpu->counters, COUNTER_instructions), done = 0, flags = vcpu->rflags;
    uint64_t most = run->engines_only || how.until ? GUEST_INSNS_MAX : GUEST_INSNS_ENDING;
    bool midst = false;         /* no instruction was completed since `flags` */
    while (done < most) {
        if (atomic_load(&vcpu->request) & REQUEST_WORK)
            vcpu_serve_work(vcpu);
        if (!midst)
            flags = vcpu->rflags;
        if (how.until && is_before(guest, how.until)) {
            outcome->stopped = true;
            return;
        }
        bool event = vcpu->engine->run(vcpu, next_budget(vcpu, &how, most - done)) == RUN_EVENT;
        uint64_t now = counter_get(&vcpu->counters, COUNTER_instructions) - first;
        if (event && midst && now == done && !how.flags_as_amd)
            restore_flags(vcpu, flags);
        if (event && !take_fault(vcpu, run, outcome)) {
            outcome->timed_out = false;
            return;
        }
        midst = !event && now == done;
        done = now;
    }
}

/* Far more than any cost that the policy of windows may set against it. */
static const uint64_t enough_for_windows = 1ull << 40;

void guest_prepare(struct guest *guest, const struct run *run, struct guest_how how)
{
    struct vcpu *vcpu = guest->vcpu;
    if (!how.same_code) {
        map_code(guest);
        copy_code(guest, run, (uint8_t *)run->code, true);
    }
    if (how.flush)
        mmu_flush_all(vcpu);
    fill_run_data(run, ram_host(guest->ram, DATA_GPA));
    bool mode_changed = vcpu->cpl != 3 || vcpu->seg[CS].selector != (run->mode == CODE_64 ? 0x33 : 0x23);
    set_mode(vcpu, run->mode);
    load_image(vcpu, &run->start);
    if (mode_changed) {
        x86_update_mode(vcpu);
        mmu_mode_changed(vcpu);
    }
    mmu_privilege_changed(vcpu);
    if (how.windows)
        window_account(vcpu, enough_for_windows);
}

void guest_run(struct guest *guest, const struct run *run, struct guest_how how, struct outcome *outcome)
{
    struct vcpu *vcpu = guest->vcpu;
    guest_prepare(guest, run, how);
    outcome->timed_out = true;
    outcome->stopped = false;
    outcome->fault_count = 0;
    uint64_t first = counter_get(&vcpu->counters, COUNTER_instructions);
    run_to_end(guest, run, how, outcome);
    outcome->instructions = counter_get(&vcpu->counters, COUNTER_instructions) - first;
    save_image(vcpu, &outcome->end);
    memcpy(outcome->data, ram_host(guest->ram, DATA_GPA), DATA_SIZE);
    copy_code(guest, run, outcome->code, false);
    outcome->code_kept = code_kept(guest, run);
}

void guest_run_until_kicked(struct guest *guest)
{
    struct vcpu *vcpu = guest->vcpu;
    while (!(atomic_load(&vcpu->request) & REQUEST_INTERRUPT))
        if (vcpu->engine->run(vcpu, UINT64_MAX) == RUN_EVENT) {
            fprintf(stderr, "vector %u at %#lx in code that should not fault\n", vcpu->pending.vector, vcpu->rip);
            exit(1);
        }
    atomic_fetch_and(&vcpu->request, ~(uint32_t)REQUEST_INTERRUPT);
}

void guest_kick(struct guest *guest) { vcpu_kick(guest->vcpu, REQUEST_INTERRUPT); }

void guest_stop(struct guest *guest)
{
    guest->vcpu->engine->detach(guest->vcpu);
    beside_destroy(guest->beside);
    mmu_destroy(guest->vcpu->mmu);
    vcpu_thread_fini(guest->vcpu);
    free(guest->vcpu);
    x86_model_destroy(guest->model);
    clock_destroy(guest->clock);
    bus_destroy(guest->ports);
    bus_destroy(guest->mmio);
    ram_destroy(guest->ram);
    free(guest);
}
