/* Instructions that change or exit in VMX non-root operation by the controls (SDM3 §26.1, §26.3). */
#include "vmx/internal.h"

/* --- control registers: SDM3 §26.1.3, §26.3; qualification: table 28-3 --- */

enum cr_access { MOV_TO_CR, MOV_FROM_CR, CLTS, LMSW };

static bool exit_cr(struct vcpu *vcpu, enum cr_access access, unsigned cr, unsigned gpr)
{
    return vmx_exit_now(vcpu, REASON_CR_ACCESS, cr | access << 4 | (uint64_t)gpr << 8);
}

static uint64_t mixed(uint64_t guest, uint64_t host, uint64_t mask) { return (guest & ~mask) | (host & mask); }

uint64_t vmx_visible_cr0(const struct vcpu *vcpu)
{
    return vcpu->vmx.guest ? mixed(vcpu->cr0, FIELD(CR0_READ_SHADOW), FIELD(CR0_GUEST_HOST_MASK)) : vcpu->cr0;
}

bool vmx_read_cr(struct vcpu *vcpu, unsigned cr, unsigned gpr, uint64_t *value)
{
    if (!x86_cr_allowed(vcpu, cr))
        return false;
    if ((cr == 3 && vmx_proc(vcpu, PROC_CR3_STORE_EXITING)) || (cr == 8 && vmx_proc(vcpu, PROC_CR8_STORE_EXITING)))
        return exit_cr(vcpu, MOV_FROM_CR, cr, gpr);
    if (cr == 0)
        *value = vmx_visible_cr0(vcpu);
    else if (cr == 4)
        *value = mixed(vcpu->cr4, FIELD(CR4_READ_SHADOW), FIELD(CR4_GUEST_HOST_MASK));
    else if (cr == 8 && vmx_proc(vcpu, PROC_USE_TPR_SHADOW))
        *value = vmx_vapic_read(vcpu, VAPIC_TPR) >> 4 & 15;
    else
        return x86_read_cr(vcpu, cr, value);
    return true;
}

static bool is_cr3_target(const struct vcpu *vcpu, uint64_t value)
{
    for (unsigned i = 0; i < FIELD(CR3_TARGET_COUNT) && i < 4; i++)
        if ((&FIELD(CR3_TARGET_VALUE0))[i] == value)
            return true;
    return false;
}

static bool write_cr8(struct vcpu *vcpu, uint64_t value)
{
    if (!vmx_proc(vcpu, PROC_USE_TPR_SHADOW))
        return x86_write_cr(vcpu, 8, value);
    if (value >> 4)
        return x86_raise_error(vcpu, VEC_GP, 0);
    vmx_vapic_write(vcpu, VAPIC_TPR, (uint32_t)value << 4);
    vmx_tpr_virtualization(vcpu);
    return true;
}

bool vmx_write_cr(struct vcpu *vcpu, unsigned cr, unsigned gpr, uint64_t value)
{
    bool exits = false;
    if (!x86_cr_allowed(vcpu, cr))
        return false;
    if (cr == 0)
        exits = (value ^ FIELD(CR0_READ_SHADOW)) & FIELD(CR0_GUEST_HOST_MASK);
    else if (cr == 3)
        exits = vmx_proc(vcpu, PROC_CR3_LOAD_EXITING) && !is_cr3_target(vcpu, value);
    else if (cr == 4)
        exits = (value ^ FIELD(CR4_READ_SHADOW)) & FIELD(CR4_GUEST_HOST_MASK);
    else if (cr == 8)
        exits = vmx_proc(vcpu, PROC_CR8_LOAD_EXITING);
    if (exits)
        return exit_cr(vcpu, MOV_TO_CR, cr, gpr);
    if (cr == 0)
        value = mixed(value, vcpu->cr0, FIELD(CR0_GUEST_HOST_MASK));
    else if (cr == 4)
        value = mixed(value, vcpu->cr4, FIELD(CR4_GUEST_HOST_MASK));
    return cr == 8 ? write_cr8(vcpu, value) : x86_write_cr(vcpu, cr, value);
}

bool vmx_clts(struct vcpu *vcpu)
{
    bool masked = FIELD(CR0_GUEST_HOST_MASK) & CR0_TS;
    if (masked)
        return !(FIELD(CR0_READ_SHADOW) & CR0_TS) || exit_cr(vcpu, CLTS, 0, 0);
    return x86_write_cr(vcpu, 0, vcpu->cr0 & ~(uint64_t)CR0_TS);
}

bool vmx_lmsw(struct vcpu *vcpu, uint16_t value, bool memory, uint64_t gla)
{
    uint64_t mask = FIELD(CR0_GUEST_HOST_MASK) & 0xF, differs = (value ^ FIELD(CR0_READ_SHADOW)) & mask;
    if ((differs & ~(uint64_t)CR0_PE) || (differs & value & CR0_PE)) {
        vmx_exit_now(vcpu, REASON_CR_ACCESS, LMSW << 4 | (memory ? 1 << 6 : 0) | (uint64_t)value << 16);
        vcpu->vmx.exit.guest_linear = memory ? gla : 0;
        return false;
    }
    return x86_lmsw(vcpu, mixed(value, vcpu->cr0, mask));
}

/* --- MSRs: SDM3 §25.6.9 "MSR-Bitmap Address" --- */

bool vmx_msr_exits(struct vcpu *vcpu, uint32_t msr, bool write)
{
    enum { HIGH_MSRS = 1024, WRITES = 2048, RANGE = 0x2000 };
    const uint32_t high_base = 0xC0000000;
    uint8_t byte;
    if (!vmx_proc(vcpu, PROC_USE_MSR_BITMAPS))
        return true;
    bool high = msr - high_base < RANGE;
    if (!high && msr >= RANGE)
        return true;
    uint32_t bit = high ? msr - high_base : msr;
    mmu_phys_read(vcpu, FIELD(MSR_BITMAP) + (write ? WRITES : 0) + (high ? HIGH_MSRS : 0) + bit / 8, &byte, 1);
    return byte >> (bit & 7) & 1;
}

/* --- I/O: SDM3 §26.1.3, §25.6.4 "I/O-Bitmap Addresses"; qualification: table 28-5 --- */

static bool io_bitmaps_have(struct vcpu *vcpu, const struct vmx_io *io)
{
    if (io->port + io->size > 0x10000)
        return true;
    for (unsigned i = 0; i < io->size; i++) {
        uint16_t port = io->port + i;
        uint8_t byte;
        mmu_phys_read(vcpu, (port & 0x8000 ? FIELD(IO_BITMAP_B) : FIELD(IO_BITMAP_A)) + (port & 0x7FFF) / 8, &byte, 1);
        if (byte >> (port & 7) & 1)
            return true;
    }
    return false;
}

bool vmx_io_exits(struct vcpu *vcpu, const struct vmx_io *io)
{
    bool exits = vmx_proc(vcpu, PROC_USE_IO_BITMAPS) ? io_bitmaps_have(vcpu, io) : vmx_proc(vcpu, PROC_UNCONDITIONAL_IO_EXITING);
    if (!exits)
        return false;
    uint32_t information = io->string ? (uint32_t)(io->address_size / 4) << 7 | (uint32_t)io->seg << 15 : 0;
    vmx_exit_instruction(vcpu, REASON_IO_INSTRUCTION, (io->size - 1u) | io->in << 3 | io->string << 4 | io->repeated << 5 |
                         io->immediate << 6 | (uint64_t)io->port << 16, information);
    vcpu->vmx.exit.guest_linear = io->string ? io->gla : 0;
    return true;
}

/* --- PAUSE: SDM3 §26.1.3 --- */

uint64_t vmx_host_tsc(const struct vcpu *vcpu) { return vcpu->clock ? clock_tsc(vcpu->clock) : 0; }

bool vmx_pause_exits(struct vcpu *vcpu)
{
    struct vmx *vmx = &vcpu->vmx;
    if (vmx_proc(vcpu, PROC_PAUSE_EXITING))
        return true;
    if (!vmx_proc2(vcpu, PROC2_PAUSE_LOOP_EXITING) || vcpu->cpl != 0)
        return false;
    uint64_t now = vmx_host_tsc(vcpu);
    if (!vmx->pause_last || now - vmx->pause_last > FIELD(PLE_GAP))
        vmx->pause_first = now;
    vmx->pause_last = now;
    return now - vmx->pause_first > FIELD(PLE_WINDOW);
}

/* --- time: SDM3 §25.6.5 "Time-Stamp Counter Offset and Multiplier" --- */

uint64_t vmx_tsc(const struct vcpu *vcpu, uint64_t tsc)
{
    if (!vmx_proc(vcpu, PROC_USE_TSC_OFFSETTING))
        return tsc;
    if (vmx_proc2(vcpu, PROC2_USE_TSC_SCALING))
        tsc = (uint64_t)((unsigned __int128)tsc * FIELD(TSC_MULTIPLIER) >> 48);
    return tsc + FIELD(TSC_OFFSET);
}
