/* Within mmu/: accesses to what is not RAM. */
#ifndef DOPPEL_MMU_PHYSICAL_H
#define DOPPEL_MMU_PHYSICAL_H

#include "vcpu/vcpu.h"

/* Split into naturally aligned pieces of at most 8 bytes. Unclaimed reads give ones. */
void mmio_read(struct vcpu *vcpu, uint64_t gpa, void *out, unsigned size);
void mmio_write(struct vcpu *vcpu, uint64_t gpa, const void *in, unsigned size);

#endif
