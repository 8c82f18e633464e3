/* kvmclock: time by TSC, scale and base in a page of the guest (Linux Documentation/virt/kvm/x86/msr.rst). */
#ifndef DOPPEL_X86_PVCLOCK_H
#define DOPPEL_X86_PVCLOCK_H

#include "vcpu/vcpu.h"

/* vCPU thread. Each does nothing where the guest has not given an address. */
void pvclock_write_system_time(struct vcpu *vcpu);
void pvclock_write_wall_clock(struct vcpu *vcpu);
/* The host has stopped the guest for a while: its watchdogs must not take that for their own processors' hanging. */
void pvclock_tell_stopped(struct vcpu *vcpu);

/* ns = ((ticks << shift) * mul) >> 32, with a negative shift to the right. */
void pvclock_scale(uint64_t tsc_hz, uint32_t *mul, int8_t *shift);

#endif
