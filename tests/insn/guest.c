/* The guest side: one vCPU at CPL 3 under 4-level paging, with the same addresses mapped as the host's child has. */
#include "case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "bus/bus.h"
#include "engine/dbt/hot.h"
#include "engine/engine.h"
#include "mem/ram.h"
#include "mmu/mmu.h"
#include "vcpu/thread.h"
#include "vcpu/work.h"
#include "x86/x86.h"

enum {
    GUEST_RAM = 4 * MiB,
    TABLES_GPA = 0x10000, CODE_GPA = 0x100000, DATA_GPA = 0x200000,
    PTE_USER_RW = 7,
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
    put_entry(guest, pt, (unsigned)bits(gla, 20, 12), entry | PTE_USER_RW);
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
    guest->ram->watcher = (struct ram_watcher){ code_written, guest };
    for (unsigned i = 0; i < DATA_SIZE / PAGE_SIZE; i++)
        map_page(guest, DATA_BASE + i * PAGE_SIZE, (DATA_GPA + i * PAGE_SIZE) | PTE_NX);
    map_page(guest, CODE_BASE, CODE_GPA);
    return guest;
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

static void save_image(const struct vcpu *vcpu, struct cpu_image *image)
{
    memcpy(image->gpr, vcpu->gpr, sizeof(vcpu->gpr));
    image->rip = vcpu->rip;
    image->rflags = vcpu->rflags;
    memcpy(image->fxsave, vcpu->fpu.fxsave, sizeof(vcpu->fpu.fxsave));
    memcpy(image->zmm, vcpu->fpu.zmm, sizeof(vcpu->fpu.zmm));
    memcpy(image->k, vcpu->fpu.k, sizeof(vcpu->fpu.k));
}

enum { GUEST_RUNS_MAX = 100000, GUEST_BUDGET = 1000 };

void guest_run(struct guest *guest, const struct test_case *test, struct outcome *outcome)
{
    struct vcpu *vcpu = guest->vcpu;
    uint8_t code[CODE_BYTES_MAX];
    unsigned length = join_code(test, code);
    ram_write(guest->ram, CODE_GPA + (test->start.rip - CODE_BASE), code, length);
    fill_data(test->data_seed, ram_host(guest->ram, DATA_GPA));
    bool mode_changed = vcpu->cpl != 3 || vcpu->seg[CS].selector != (test->mode == CODE_64 ? 0x33 : 0x23);
    set_mode(vcpu, test->mode);
    load_image(vcpu, &test->start);
    if (mode_changed) {
        x86_update_mode(vcpu);
        mmu_mode_changed(vcpu);
    }
    mmu_privilege_changed(vcpu);
    *outcome = (struct outcome){ .timed_out = true };
    for (unsigned runs = 0; runs < GUEST_RUNS_MAX; runs++) {
        if (atomic_load(&vcpu->request) & REQUEST_WORK)
            vcpu_serve_work(vcpu);
        if (vcpu->engine->run(vcpu, GUEST_BUDGET) == RUN_EVENT) {
            outcome->timed_out = false;
            break;
        }
    }
    outcome->vector = vcpu->pending.vector;
    outcome->error = vcpu->pending.has_error ? vcpu->pending.error : 0;
    outcome->cr2 = vcpu->pending.payload;
    save_image(vcpu, &outcome->end);
    memcpy(outcome->data, ram_host(guest->ram, DATA_GPA), DATA_SIZE);
}

void guest_stop(struct guest *guest)
{
    guest->vcpu->engine->detach(guest->vcpu);
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
