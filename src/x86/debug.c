/* Debug registers and breakpoints (SDM3 §18.2 "Debug Registers", §18.3 "Debug Exceptions"). */
#include "mmu/mmu.h"
#include "x86/x86.h"

/* DR7: R/W and LEN fields of breakpoint n. */
enum breakpoint_kind { BREAK_EXECUTE, BREAK_WRITE, BREAK_IO, BREAK_ACCESS };

static bool breakpoint_enabled(const struct vcpu *vcpu, unsigned n)
{
    return vcpu->dr7 >> (n * 2) & 3;
}

static enum breakpoint_kind breakpoint_kind(const struct vcpu *vcpu, unsigned n)
{
    return vcpu->dr7 >> (16 + n * 4) & 3;
}

/* LEN: 1, 2, 8 or 4 bytes; the address is aligned to it. */
static unsigned breakpoint_size(const struct vcpu *vcpu, unsigned n)
{
    static const uint8_t sizes[] = { 1, 2, 8, 4 };
    return sizes[vcpu->dr7 >> (18 + n * 4) & 3];
}

static bool overlaps(const struct vcpu *vcpu, unsigned n, uint64_t address, uint64_t size)
{
    uint64_t length = breakpoint_size(vcpu, n), start = vcpu->dr[n] & ~(length - 1);
    return address < start + length && start < address + size;
}

/*
 * B0-B3 for a match. SDM3 §18.2.3: the bits are set for matching breakpoints that are not enabled too, but only an
 * enabled one raises.
 */
static uint64_t matches(const struct vcpu *vcpu, uint64_t address, uint64_t size, unsigned kinds)
{
    uint64_t hit = 0;
    bool raise = false;

    for (unsigned n = 0; n < 4; n++)
        if ((kinds >> breakpoint_kind(vcpu, n) & 1) && overlaps(vcpu, n, address, size)) {
            hit |= BIT(n);
            raise |= breakpoint_enabled(vcpu, n);
        }
    return raise ? hit : 0;
}

bool x86_debug_fetch(struct vcpu *vcpu, uint64_t gla)
{
    uint64_t hit = 0;
    bool raise = false;

    if (!x86_debug_armed(vcpu) || (vcpu->rflags & RFLAGS_RF))
        return true;
    for (unsigned n = 0; n < 4; n++)
        if (breakpoint_kind(vcpu, n) == BREAK_EXECUTE && vcpu->dr[n] == gla) {
            hit |= BIT(n);
            raise |= breakpoint_enabled(vcpu, n);
        }
    if (!raise)
        return true;
    x86_raise(vcpu, VEC_DB);
    vcpu->pending.payload = hit;
    return false;
}

void x86_debug_data(struct vcpu *vcpu, uint64_t gla, unsigned size, bool write)
{
    if (x86_debug_armed(vcpu))
        vcpu->pending_debug |= matches(vcpu, gla, size, 1 << BREAK_ACCESS | (write ? 1 << BREAK_WRITE : 0));
}

void x86_debug_io(struct vcpu *vcpu, uint16_t port, unsigned size)
{
    if (x86_debug_armed(vcpu) && (vcpu->cr4 & CR4_DE))
        vcpu->pending_debug |= matches(vcpu, port, size, 1 << BREAK_IO);
}

bool x86_debug_watches(const struct vcpu *vcpu, uint64_t gla, uint64_t size)
{
    return x86_debug_armed(vcpu) && matches(vcpu, gla, size, 1 << BREAK_ACCESS | 1 << BREAK_WRITE);
}

/* Common to both directions of MOV DR: DR4 and DR5 are DR6 and DR7 unless CR4.DE; DR7.GD traps every access. */
static bool check_access(struct vcpu *vcpu, unsigned *dr)
{
    if (*dr > 7 || ((*dr == 4 || *dr == 5) && (vcpu->cr4 & CR4_DE)))
        return x86_raise(vcpu, VEC_UD);
    if (*dr == 4 || *dr == 5)
        *dr += 2;
    if (!x86_require_cpl0(vcpu))
        return false;
    if (vcpu->dr7 & DR7_GD) {
        x86_raise(vcpu, VEC_DB);
        vcpu->pending.payload = DR6_BD;
        return false;
    }
    return true;
}

bool x86_read_dr(struct vcpu *vcpu, unsigned dr, uint64_t *value)
{
    if (!check_access(vcpu, &dr))
        return false;
    *value = dr == 6 ? vcpu->dr6 : dr == 7 ? vcpu->dr7 : vcpu->dr[dr];
    return true;
}

bool x86_write_dr(struct vcpu *vcpu, unsigned dr, uint64_t value)
{
    enum { DR6_WRITABLE = 0xF | DR6_BD | DR6_BS | DR6_BT, DR7_RESERVED_ZERO = 0xDC00 };
    uint64_t before = vcpu->dr7;

    if (!check_access(vcpu, &dr))
        return false;
    if (dr >= 6 && value >> 32)
        return x86_raise_error(vcpu, VEC_GP, 0);
    if (dr == 6)
        vcpu->dr6 = (value & DR6_WRITABLE) | DR6_FIXED;
    else if (dr == 7)
        vcpu->dr7 = (value & 0xFFFFFFFF & ~(uint64_t)DR7_RESERVED_ZERO) | DR7_FIXED;
    else
        vcpu->dr[dr] = value;
    if (dr != 6 && ((before | vcpu->dr7) & 0xFF))
        mmu_mode_changed(vcpu);
    return true;
}
