/*
 * The base is the machine's start (clock 0, system time 0) on every vCPU, so the pages of all vCPUs agree to the
 * nanosecond and the stable bit is true. They only change when the guest writes its TSC.
 */
#include "x86/pvclock.h"

#include "base/clock.h"
#include "mmu/mmu.h"

enum { SYSTEM_TIME_ENABLE = 1, FLAG_TSC_STABLE = 1, FLAG_GUEST_STOPPED = 2 };

struct pvclock_time_info {
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad[2];
};
_Static_assert(sizeof(struct pvclock_time_info) == 32, "the guest's layout");

struct pvclock_wall_clock {
    uint32_t version, sec, nsec;
};

/* Brings the frequency into (1 GHz / 2, 1 GHz * 2 ^ 31] by shifts, then divides once: 32 bits of precision. */
void pvclock_scale(uint64_t tsc_hz, uint32_t *mul, int8_t *shift)
{
    uint64_t hz = tsc_hz;

    *shift = 0;
    while (hz > 2 * NS_PER_SECOND) {
        hz >>= 1;
        --*shift;
    }
    while (hz <= NS_PER_SECOND) {
        hz <<= 1;
        ++*shift;
    }
    /* The unshifted frequency keeps the bits that the shift above lost. */
    __uint128_t scaled = (__uint128_t)NS_PER_SECOND << 32;
    *mul = *shift < 0 ? (uint32_t)((scaled << -*shift) / tsc_hz) : (uint32_t)(scaled / (tsc_hz << *shift));
}

/* Odd version: being written. The vCPU's own thread writes, so the reader on it never sees that; others may. */
static void write_versioned(struct vcpu *vcpu, uint64_t gpa, void *info, unsigned size)
{
    uint32_t *version = info, before = 0;

    mmu_phys_read(vcpu, gpa, &before, sizeof(before));
    *version = (before + 1) | 1;
    mmu_phys_write(vcpu, gpa, version, sizeof(*version));
    __atomic_thread_fence(__ATOMIC_RELEASE);
    mmu_phys_write(vcpu, gpa, info, size);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    ++*version;
    mmu_phys_write(vcpu, gpa, version, sizeof(*version));
}

static void write_system_time(struct vcpu *vcpu, uint8_t flags)
{
    struct pvclock_time_info info = { .tsc_timestamp = vcpu->tsc_offset, .flags = flags };

    if (!(vcpu->kvm_system_time & SYSTEM_TIME_ENABLE))
        return;
    pvclock_scale(clock_tsc_hz(vcpu->clock), &info.tsc_to_system_mul, &info.tsc_shift);
    write_versioned(vcpu, vcpu->kvm_system_time & ~1ull, &info, sizeof(info));
}

void pvclock_write_system_time(struct vcpu *vcpu) { write_system_time(vcpu, FLAG_TSC_STABLE); }

void pvclock_tell_stopped(struct vcpu *vcpu) { write_system_time(vcpu, FLAG_TSC_STABLE | FLAG_GUEST_STOPPED); }

/* The wall-clock time at system time 0. */
void pvclock_write_wall_clock(struct vcpu *vcpu)
{
    uint64_t start = clock_wall_ns(vcpu->clock) - clock_ns(vcpu->clock);
    struct pvclock_wall_clock wall = { .sec = start / NS_PER_SECOND, .nsec = start % NS_PER_SECOND };

    if (vcpu->kvm_wall_clock)
        write_versioned(vcpu, vcpu->kvm_wall_clock, &wall, sizeof(wall));
}
