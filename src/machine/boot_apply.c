/* The boot processor's first state, after reset: by entry mode. */
#include "machine/boot.h"
#include "machine/layout.h"
#include "mmu/mmu.h"
#include "x86/x86.h"

enum { TYPE_DATA = SEG_P | SEG_S | SEG_ACCESSED | SEG_WRITABLE, TYPE_CODE = TYPE_DATA | SEG_CODE,
       TYPE_TSS_BUSY = SEG_P | 0xB, TSS_LIMIT = 0x67 };

static void set_real(const struct boot_entry *entry, struct vcpu *vcpu)
{
    vcpu->seg[CS] = (struct segment){ (uint64_t)entry->cs << 4, 0xFFFF, TYPE_CODE, entry->cs };
    for (enum seg seg = ES; seg < SEG_COUNT; seg++)
        if (seg != CS)
            vcpu->seg[seg] = (struct segment){ (uint64_t)entry->ds << 4, 0xFFFF, TYPE_DATA, entry->ds };
}

/* Hidden parts as if the selectors had been loaded from the loader's table (boot_place.c). */
static void set_flat(const struct boot_entry *entry, struct vcpu *vcpu)
{
    bool code64 = entry->mode == BOOT_ENTRY_LONG;
    vcpu->seg[CS] = (struct segment){ 0, UINT32_MAX, TYPE_CODE | SEG_G | (code64 ? SEG_L : SEG_DB), entry->cs };
    for (enum seg seg = ES; seg < SEG_COUNT; seg++)
        if (seg != CS)
            vcpu->seg[seg] = (struct segment){ 0, UINT32_MAX, TYPE_DATA | SEG_G | SEG_DB, entry->ds };
    vcpu->tr = (struct segment){ 0, TSS_LIMIT, TYPE_TSS_BUSY, 0 };
    vcpu->gdtr = (struct table_register){ entry->gdt_base, entry->gdt_limit };
    vcpu->cr0 = CR0_PE | CR0_ET | (code64 ? CR0_PG : 0);
    if (code64) {
        vcpu->cr3 = entry->cr3;
        vcpu->cr4 = CR4_PAE;
        vcpu->efer = EFER_LME | EFER_LMA;
    }
}

/*
 * The memory types that firmware leaves behind (SDM3 §12.11 "Memory Type Range Registers"): write-back, but the video
 * area and the devices below 4 GiB uncached and the BIOS area write-protected. Without them Linux gives up PAT, too.
 */
static void set_memory_types(struct vcpu *vcpu)
{
    enum { ENABLE = 1 << 11, FIXED_ENABLE = 1 << 10, TYPE_WB = 6, VALID = 1 << 11 };
    const uint64_t all_wb = 0x0606060606060606, all_wp = 0x0505050505050505, hole = 4 * GiB - LOW_RAM_MAX_BASE;

    vcpu->mtrr_def_type = ENABLE | FIXED_ENABLE | TYPE_WB;
    vcpu->mtrr_fixed[0] = vcpu->mtrr_fixed[1] = all_wb;
    vcpu->mtrr_fixed[2] = 0;
    for (unsigned i = 3; i < ARRAY_SIZE(vcpu->mtrr_fixed); i++)
        vcpu->mtrr_fixed[i] = all_wp;
    vcpu->mtrr_var_base[0] = LOW_RAM_MAX_BASE;
    vcpu->mtrr_var_mask[0] = ((BIT(x86_physical_bits(vcpu)) - 1) & ~(hole - 1)) | VALID;
}

void boot_apply(const struct boot_entry *entry, struct vcpu *vcpu)
{
    for (unsigned i = 0; i < 16; i++)
        vcpu->gpr[i] = 0;
    vcpu->gpr[RAX] = entry->rax;
    vcpu->gpr[RBX] = entry->rbx;
    vcpu->gpr[RSI] = entry->rsi;
    vcpu->gpr[RSP] = entry->rsp;
    vcpu->rip = entry->rip;
    vcpu->rflags = RFLAGS_FIXED;
    vcpu->cpl = 0;
    if (entry->mode == BOOT_ENTRY_REAL)
        set_real(entry, vcpu);
    else
        set_flat(entry, vcpu);
    set_memory_types(vcpu);
    for (unsigned i = 0; i < vcpu->all_count; i++)      /* firmware sets every processor's alike; INIT keeps them */
        set_memory_types(vcpu->all[i]);
    x86_update_mode(vcpu);
    if (vcpu->mmu)
        mmu_mode_changed(vcpu);
}
