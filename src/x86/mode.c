/* Operating modes, what hangs on RFLAGS, and the state after power-on and INIT. */
#include <string.h>

#include "mmu/mmu.h"
#include "vmx/vmx.h"
#include "x86/descriptor.h"
#include "x86/x86.h"

void x86_update_mode(struct vcpu *vcpu)
{
    bool is32 = vcpu->seg[CS].attr & SEG_DB;

    if (!(vcpu->cr0 & CR0_PE))
        vcpu->mode = MODE_REAL;
    else if (vcpu->rflags & RFLAGS_VM)
        vcpu->mode = MODE_V86;
    else if (!(vcpu->efer & EFER_LMA))
        vcpu->mode = is32 ? MODE_PROTECTED32 : MODE_PROTECTED16;
    else if (vcpu->seg[CS].attr & SEG_L)
        vcpu->mode = MODE_LONG64;
    else
        vcpu->mode = is32 ? MODE_COMPAT32 : MODE_COMPAT16;
}

void commit_privilege(struct vcpu *vcpu, unsigned cpl)
{
    vcpu->cpl = cpl;
    x86_update_mode(vcpu);
    mmu_privilege_changed(vcpu);
    x86_interrupts_unblocked(vcpu);
}

void x86_set_rflags(struct vcpu *vcpu, uint64_t rflags)
{
    uint64_t changed = vcpu->rflags ^ rflags;

    vcpu->rflags = rflags | RFLAGS_FIXED;
    if (changed & RFLAGS_VM)
        x86_update_mode(vcpu);
    if (changed & RFLAGS_AC)
        mmu_privilege_changed(vcpu);
    if (changed & rflags & RFLAGS_IF)
        x86_interrupts_unblocked(vcpu);
}

bool x86_canonical(const struct vcpu *vcpu, uint64_t gla)
{
    return sign_extend(gla, vcpu->cr4 & CR4_LA57 ? 57 : 48) == gla;
}

static void reset_segments(struct vcpu *vcpu)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        vcpu->seg[i] = (struct segment){ .limit = 0xFFFF, .attr = SEG_P | SEG_S | SEG_WRITABLE | SEG_ACCESSED };
    vcpu->seg[CS] = (struct segment){ .selector = 0xF000, .base = 0xFFFF0000, .limit = 0xFFFF,
                                      .attr = SEG_P | SEG_S | SEG_CODE | SEG_READABLE | SEG_ACCESSED };
    vcpu->ldtr = (struct segment){ .limit = 0xFFFF, .attr = SEG_P | SYS_LDT };
    vcpu->tr = (struct segment){ .limit = 0xFFFF, .attr = SEG_P | SYS_TSS32_BUSY };
    vcpu->gdtr = vcpu->idtr = (struct table_register){ .limit = 0xFFFF };
}

/* Registers that power-on clears and INIT leaves alone: time, memory types and machine check (SDM3 table 9-1). */
static void reset_power_on(struct vcpu *vcpu)
{
    vmx_reset(vcpu);
    vcpu->tsc_offset = vcpu->tsc_adjust = 0;
    vcpu->pat = 0x0007040600070406;                     /* SDM3 §12.12.4 "Programming the PAT" */
    vcpu->misc_enable = BIT(0) | BIT(11) | BIT(12);     /* fast strings; no BTS, no PEBS */
    vcpu->mtrr_def_type = 0;
    memset(vcpu->mtrr_fixed, 0, sizeof(vcpu->mtrr_fixed));
    memset(vcpu->mtrr_var_base, 0, sizeof(vcpu->mtrr_var_base));
    memset(vcpu->mtrr_var_mask, 0, sizeof(vcpu->mtrr_var_mask));
    vcpu->mcg_status = 0;
    memset(vcpu->mce_bank, 0, sizeof(vcpu->mce_bank));
    vcpu->mperf_offset = 0;
    vcpu->star = vcpu->lstar = vcpu->cstar = vcpu->sfmask = vcpu->kernel_gs_base = vcpu->tsc_aux = 0;
    vcpu->sysenter_cs = vcpu->sysenter_esp = vcpu->sysenter_eip = 0;
    vcpu->spec_ctrl = vcpu->umwait_control = vcpu->xss = 0;
    vcpu->kvm_system_time = vcpu->kvm_wall_clock = vcpu->kvm_eoi = 0;
    vcpu->kvm_async_pf = vcpu->kvm_steal_time = vcpu->kvm_poll_control = 0;
}

/* SDM3 §10.1.1 "Processor State After Reset", table 10-1; §9.4.2: after INIT the processors but the first wait for a SIPI. */
void x86_reset(struct vcpu *vcpu, bool init)
{
    uint64_t kept_cache_bits = init ? vcpu->cr0 & (CR0_CD | CR0_NW) : CR0_CD | CR0_NW;
    uint32_t out[4];

    memset(vcpu->gpr, 0, sizeof(vcpu->gpr));
    x86_cpuid(vcpu, 1, 0, out);
    vcpu->gpr[RDX] = out[0];
    vcpu->rip = 0xFFF0;
    vcpu->rflags = RFLAGS_FIXED;
    vcpu->cpl = 0;
    vcpu->shadow = 0;
    reset_segments(vcpu);
    vcpu->cr0 = CR0_ET | kept_cache_bits;
    vcpu->cr2 = vcpu->cr3 = vcpu->cr4 = vcpu->efer = 0;
    if (!init)
        vcpu->xcr0 = XCR0_X87;
    memset(vcpu->dr, 0, sizeof(vcpu->dr));
    vcpu->dr6 = DR6_FIXED;
    vcpu->dr7 = DR7_FIXED;
    vcpu->debugctl = 0;
    vcpu->pending = (struct event){ .kind = EVENT_NONE };
    vcpu->pending_debug = 0;
    vcpu->nmi_held = vcpu->interrupt_held = false;
    vcpu->monitor_gpa = ~0ull;
    vcpu->activity = vcpu->index == 0 ? ACTIVITY_ACTIVE : ACTIVITY_WAIT_SIPI;
    if (!init)
        reset_power_on(vcpu);
    x86_fpu_reset(vcpu, init);
    x86_update_mode(vcpu);
    if (vcpu->mmu) {
        mmu_flush_all(vcpu);
        mmu_enter_space(vcpu, &(struct mmu_space){ 0 });
    }
}
