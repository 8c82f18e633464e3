/*
 * Random VMCS states: a valid VMCS of a guest in 64-bit or in real-address mode, with some fields spoilt and random code and data, is
 * entered on two processors, one on each engine, and its guest runs for a while. Both must come to the same verdict and
 * leave the same VMCS and registers; whatever happens, the processor is afterwards in a state that VMX operation allows.
 *
 * Usage: fuzz-vmx [states [seed]]
 */
#include <stdio.h>

#include "engine/dbt/hot.h"
#include "engine/engine.h"
#include "mutate.h"
#include "unit/x86_fixture.h"
#include "vcpu/loop.h"
#include "vmx/internal.h"

enum {
    STATES = 20000, STATES_OF_ONE = 250, INSTRUCTIONS = 300, VMXON_REGION = 0x20000, VMCS_REGION = 0x21000, BITMAPS = 0x22000, VAPIC = 0x24000, EPT_ROOT = 0x25000,
    EPT_PDPT = 0x26000, CODE_AT = 0x40000, HOST_CODE = 0x50000,
};

struct processor {
    struct x86_fixture *f;
    const struct engine *engine;
};

static unsigned long entered, failed_entries, exited, differences;

/* A page whose code was overwritten often: all that was decoded from it goes (mem/code_map.h). */
static void code_written(void *owner, uint64_t gpa, uint64_t size)
{
    struct processor *p = owner;
    p->engine->code_written(&p->f->vcpu, gpa, size);
}

static void open_processor(struct processor *p, const struct engine *engine)
{
    p->f = x86_fixture_create("x86-64-v3,vmx=on");
    p->engine = engine;
    p->f->vcpu.ram->watcher = (struct ram_watcher){ code_written, p };
    if (!vcpu_set_engine(&p->f->vcpu, engine))
        exit(77);
    if (engine == &engine_dbt)
        dbt_set_hot(&p->f->vcpu, 0);
}

static void open_both(struct processor p[2])
{
    open_processor(&p[0], &engine_interp);
    open_processor(&p[1], &engine_dbt);
}

/* As at the end of a machine. */
static void close_both(struct processor p[2])
{
    for (unsigned i = 0; i < 2; i++) {
        p[i].engine->detach(&p[i].f->vcpu);
        vmx_fini(&p[i].f->vcpu);
        x86_fixture_destroy(p[i].f);
    }
}

/* --- a VMCS that is fine --- */

static void set(struct vcpu *vcpu, enum vmcs_field field, uint64_t value) { vcpu->vmx.field[field] = value; }

static void set_segment(struct vcpu *vcpu, unsigned i, uint16_t selector, uint32_t limit, uint32_t rights)
{
    set(vcpu, VMCS_GUEST_ES_SELECTOR + i, selector);
    set(vcpu, VMCS_GUEST_ES_LIMIT + i, limit);
    set(vcpu, VMCS_GUEST_ES_ACCESS_RIGHTS + i, rights);
}

static void set_host(struct vcpu *vcpu)
{
    set(vcpu, VMCS_HOST_CR0, CR0_PE | CR0_NE | CR0_ET | CR0_PG);
    set(vcpu, VMCS_HOST_CR3, PAGE_TABLES);
    set(vcpu, VMCS_HOST_CR4, CR4_PAE | CR4_VMXE);
    set(vcpu, VMCS_HOST_EFER, EFER_LME | EFER_LMA);
    set(vcpu, VMCS_HOST_CS_SELECTOR, SEL_CODE64);
    set(vcpu, VMCS_HOST_SS_SELECTOR, SEL_DATA0);
    set(vcpu, VMCS_HOST_TR_SELECTOR, SEL_TSS);
    set(vcpu, VMCS_HOST_TR_BASE, TSS);
    set(vcpu, VMCS_HOST_GDTR_BASE, GDT);
    set(vcpu, VMCS_HOST_IDTR_BASE, IDT);
    set(vcpu, VMCS_HOST_RSP, STACK0);
    set(vcpu, VMCS_HOST_RIP, HOST_CODE);
}

static void set_guest(struct vcpu *vcpu, bool real)
{
    set(vcpu, VMCS_GUEST_CR0, CR0_NE | CR0_ET | (real ? 0 : CR0_PE | CR0_PG));
    set(vcpu, VMCS_GUEST_CR3, PAGE_TABLES);
    set(vcpu, VMCS_GUEST_CR4, CR4_VMXE | (real ? 0 : CR4_PAE));
    set(vcpu, VMCS_GUEST_EFER, real ? 0 : EFER_LME | EFER_LMA);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        set_segment(vcpu, i, real ? 0 : i == CS ? SEL_CODE64 : SEL_DATA0, real ? 0xFFFF : 0xFFFFFFFF,
                    (i == CS ? CODE : DATA) | (real ? 0 : i == CS ? FLAT64 : FLAT32));
    set_segment(vcpu, SEG_COUNT, 0, 0, SEG_UNUSABLE);
    set_segment(vcpu, SEG_COUNT + 1, SEL_TSS, 0x67, 0x8B);
    set(vcpu, VMCS_GUEST_TR_BASE, TSS);
    set(vcpu, VMCS_GUEST_GDTR_BASE, GDT);
    set(vcpu, VMCS_GUEST_GDTR_LIMIT, SEL_END - 1);
    set(vcpu, VMCS_GUEST_IDTR_BASE, IDT);
    set(vcpu, VMCS_GUEST_IDTR_LIMIT, 0x7FF);
    set(vcpu, VMCS_GUEST_DR7, DR7_FIXED);
    set(vcpu, VMCS_GUEST_RSP, STACK1);
    set(vcpu, VMCS_GUEST_RIP, real ? 0x4000 : CODE_AT);
    set(vcpu, VMCS_GUEST_RFLAGS, RFLAGS_FIXED);
    set(vcpu, VMCS_VMCS_LINK_POINTER, ~0ull);
    if (real)
        set(vcpu, VMCS_GUEST_CS_BASE, 0);
}

static void set_controls(struct vcpu *vcpu, bool real, uint64_t *seed)
{
    static const uint32_t secondary[] = {
        0, PROC2_ENABLE_VPID, PROC2_ENABLE_XSAVES | PROC2_ENABLE_RDTSCP, PROC2_DESCRIPTOR_TABLE_EXITING, PROC2_MODE_BASED_EXECUTE,
        PROC2_VIRTUALIZE_X2APIC_MODE, PROC2_VIRTUALIZE_APIC_ACCESSES | PROC2_APIC_REGISTER_VIRTUALIZATION, PROC2_EPT_VIOLATION_VE,
    };
    uint32_t proc = vmx_required(VMX_PROC) | PROC_ACTIVATE_SECONDARY_CONTROLS | PROC_USE_TPR_SHADOW;
    proc |= fuzz_random(seed) & fuzz_random(seed) & vmx_allowed1(vcpu, VMX_PROC) & ~(uint32_t)PROC_NMI_WINDOW_EXITING;
    set(vcpu, VMCS_PIN_BASED_CONTROLS, vmx_required(VMX_PIN) | PIN_EXTERNAL_INTERRUPT_EXITING);
    set(vcpu, VMCS_PROCESSOR_BASED_CONTROLS, proc);
    set(vcpu, VMCS_SECONDARY_CONTROLS, PROC2_ENABLE_EPT | PROC2_UNRESTRICTED_GUEST | secondary[fuzz_below(seed, ARRAY_SIZE(secondary))]);
    set(vcpu, VMCS_EXIT_CONTROLS, vmx_required(VMX_EXIT) | EXIT_HOST_ADDRESS_SPACE_SIZE | EXIT_LOAD_EFER);
    set(vcpu, VMCS_ENTRY_CONTROLS, vmx_required(VMX_ENTRY) | (real ? 0 : ENTRY_IA32E_MODE_GUEST) | ENTRY_LOAD_EFER);
    set(vcpu, VMCS_EPTP, EPT_ROOT | 6 | 3 << 3 | (fuzz_below(seed, 2) ? 1 << 6 : 0));
    set(vcpu, VMCS_VPID, 1);
    set(vcpu, VMCS_VIRTUAL_APIC_ADDRESS, VAPIC);
    set(vcpu, VMCS_APIC_ACCESS_ADDRESS, CODE_AT + 0x2000);
    set(vcpu, VMCS_MSR_BITMAP, BITMAPS);
    set(vcpu, VMCS_IO_BITMAP_A, BITMAPS);
    set(vcpu, VMCS_IO_BITMAP_B, BITMAPS + 0x1000);
    set(vcpu, VMCS_VE_INFORMATION_ADDRESS, VAPIC);
    set(vcpu, VMCS_EXCEPTION_BITMAP, fuzz_random(seed));
    if (!fuzz_below(seed, 4))
        set(vcpu, VMCS_ENTRY_INTERRUPTION_INFORMATION, BIT(31) | (fuzz_random(seed) & 0xF1F));
}

/* --- one state --- */

static void fill_memory(struct x86_fixture *f, uint64_t seed)
{
    memset(ram_host(f->vcpu.ram, 0), 0, RAM_BYTES);
    fill_gdt(f);
    for (unsigned i = 0; i < 512 * 8; i++)
        poke(f, CODE_AT + i, (uint8_t)fuzz_random(&seed), 1);
    memcpy(ram_host(f->vcpu.ram, 0x4000), ram_host(f->vcpu.ram, CODE_AT), 2048);
    for (unsigned i = 0; i < 1024; i++)
        poke(f, BITMAPS + i * 8, fuzz_random(&seed) & fuzz_random(&seed), 8);
    poke(f, PAGE_TABLES, (PAGE_TABLES + 0x1000) | PTE_P | PTE_W | PTE_U, 8);
    poke(f, PAGE_TABLES + 0x1000, PTE_P | PTE_W | PTE_U | PTE_PS, 8);
    poke(f, EPT_ROOT, EPT_PDPT | EPTE_RIGHTS, 8);
    poke(f, EPT_PDPT, EPTE_RIGHTS | 6 << 3 | PTE_PS, 8);
    poke(f, VMXON_REGION, VMCS_REVISION, 4);
    poke(f, VMCS_REGION, VMCS_REVISION, 4);
}

static void prepare(struct processor *p, uint64_t seed)
{
    struct vcpu *vcpu = &p->f->vcpu;
    bool real = fuzz_below(&seed, 3) == 0;
    x86_reset(vcpu, false);
    atomic_store(&vcpu->request, 0);
    fill_memory(p->f, fuzz_random(&seed));
    code_written(p, 0, RAM_BYTES);
    vcpu->activity = ACTIVITY_ACTIVE;
    vcpu->vmx.on = vcpu->vmx.tertiary = true;
    vcpu->vmx.vmxon_pointer = VMXON_REGION;
    vcpu->vmx.current = VMCS_REGION;
    set_host(vcpu);
    set_guest(vcpu, real);
    set_controls(vcpu, real, &seed);
    for (uint64_t n = fuzz_below(&seed, 4); n; n--) {
        uint64_t *field = &vcpu->vmx.field[fuzz_below(&seed, VMCS_FIELD_COUNT)], value = fuzz_number(&seed);
        *field = fuzz_below(&seed, 2) ? *field ^ BIT(fuzz_below(&seed, 64)) : value;
    }
    for (unsigned i = 0; i < 16; i++)
        vcpu->gpr[i] = fuzz_below(&seed, 2) ? fuzz_number(&seed) : CODE_AT + fuzz_below(&seed, 0x4000);
    /* The monitor is in 64-bit mode, as its VMCS says. */
    vcpu->cr0 = vcpu->vmx.field[VMCS_HOST_CR0] = CR0_PE | CR0_NE | CR0_ET | CR0_PG;
    vcpu->cr3 = PAGE_TABLES;
    vcpu->cr4 = CR4_PAE | CR4_VMXE;
    vcpu->efer = EFER_LME | EFER_LMA;
    vcpu->seg[CS].attr = CODE | FLAT64;
    x86_update_mode(vcpu);
    mmu_mode_changed(vcpu);
}

/* The guest's own loads and stores may be anywhere, so what runs is compared only up to an exit within the budget. */
static void run(struct processor *p)
{
    struct vcpu *vcpu = &p->f->vcpu;
    vmx_enter(vcpu, true, 0);
    for (unsigned i = 0; i < INSTRUCTIONS && vcpu->vmx.guest && vcpu->activity == ACTIVITY_ACTIVE; i++) {
        struct event event = vcpu->pending;
        if (event.kind != EVENT_NONE) {
            vcpu->pending.kind = EVENT_NONE;
            x86_deliver_event(vcpu, &event);
        } else {
            vcpu_step(vcpu, 50);
        }
    }
}

static void complain(const char *what, uint64_t seed, uint64_t a, uint64_t b)
{
    if (differences++ < 10)
        printf("seed %#llx: %s: %#llx and %#llx\n", (unsigned long long)seed, what, (unsigned long long)a, (unsigned long long)b);
}

static void check_allowed(const struct vcpu *vcpu, uint64_t seed)
{
    if (vcpu->vmx.on && vcpu->activity != ACTIVITY_SHUTDOWN && (!vmx_cr0_allowed(vcpu, vcpu->cr0) || !vmx_cr4_allowed(vcpu, vcpu->cr4)))
        complain("control registers that VMX operation does not allow", seed, vcpu->cr0, vcpu->cr4);
    if (vcpu->cpl > 3)
        complain("privilege level", seed, vcpu->cpl, 0);
}

static void compare(const struct vcpu *a, const struct vcpu *b, uint64_t seed)
{
    if (a->vmx.guest != b->vmx.guest || a->vmx.launched != b->vmx.launched || a->activity != b->activity)
        complain("what became of it", seed, a->vmx.guest, b->vmx.guest);
    else if (a->vmx.guest)
        return;
    for (unsigned i = 0; i < VMCS_FIELD_COUNT; i++)
        if (a->vmx.field[i] != b->vmx.field[i] && i != VMCS_PREEMPTION_TIMER_VALUE)
            complain(vmcs_name(i), seed, a->vmx.field[i], b->vmx.field[i]);
    for (unsigned i = 0; i < 16; i++)
        if (a->gpr[i] != b->gpr[i])
            complain("a register", seed, a->gpr[i], b->gpr[i]);
}

static void one(struct processor *p, uint64_t seed)
{
    for (unsigned i = 0; i < 2; i++) {
        prepare(&p[i], seed);
        run(&p[i]);
        check_allowed(&p[i].f->vcpu, seed);
    }
    const struct vmx *vmx = &p[0].f->vcpu.vmx;
    entered += vmx->launched;
    failed_entries += !vmx->launched;
    exited += vmx->launched && !vmx->guest;
    compare(&p[0].f->vcpu, &p[1].f->vcpu, seed);
}

int main(int argc, char **argv)
{
    struct processor p[2];
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 0x9E3779B97F4A7C15ull;
    unsigned long states = fuzz_rounds(argc, argv, STATES);
    open_both(p);
    for (unsigned long i = 1; i <= states; i++) {
        one(p, argc > 2 && states == 1 ? seed : fuzz_random(&seed));
        if (i % STATES_OF_ONE)          /* what code of earlier states leaves behind makes it slow */
            continue;
        close_both(p);
        open_both(p);
    }
    close_both(p);
    printf("%lu entered, %lu of them exited; %lu entries failed; %lu differences\n", entered, exited, failed_entries, differences);
    return differences || entered < states / 10 || failed_entries < states / 10;
}
