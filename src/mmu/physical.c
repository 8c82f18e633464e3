#include "mmu/physical.h"

#include "bus/bus.h"
#include "mem/ram.h"
#include "mmu/copy.h"
#include "mmu/mmu.h"

static unsigned aligned_piece(uint64_t gpa, unsigned size)
{
    unsigned piece = 8;
    while (piece > size || (gpa & (piece - 1)))
        piece /= 2;
    return piece;
}

/* The processor's own APIC page comes before the bus. */
static void dispatch(struct vcpu *vcpu, struct access *access)
{
    if (vcpu->intc_ops && vcpu->intc_ops->mmio && vcpu->intc_ops->mmio(vcpu->intc, access))
        return;
    if (!vcpu->mmio || bus_access(vcpu->mmio, access) == ACCESS_FAULT)
        access->value = ~0ull;
}

void mmio_read(struct vcpu *vcpu, uint64_t gpa, void *out, unsigned size)
{
    counter_add(&vcpu->counters, COUNTER_mmio_reads, 1);
    for (unsigned done = 0, piece; done < size; done += piece) {
        piece = aligned_piece(gpa + done, size - done);
        struct access access = { .address = gpa + done, .size = piece, .requester = REQUESTER_CPU };
        dispatch(vcpu, &access);
        memcpy((uint8_t *)out + done, &access.value, piece);
    }
}

void mmio_write(struct vcpu *vcpu, uint64_t gpa, const void *in, unsigned size)
{
    counter_add(&vcpu->counters, COUNTER_mmio_writes, 1);
    for (unsigned done = 0, piece; done < size; done += piece) {
        piece = aligned_piece(gpa + done, size - done);
        struct access access = { .address = gpa + done, .size = piece, .requester = REQUESTER_CPU, .write = true };
        memcpy(&access.value, (const uint8_t *)in + done, piece);
        dispatch(vcpu, &access);
    }
}

/* Bytes from gpa that lie in one page. */
static unsigned in_page(uint64_t gpa, unsigned size)
{
    return min_u64(size, PAGE_SIZE - (gpa & PAGE_MASK));
}

void mmu_phys_read(struct vcpu *vcpu, uint64_t gpa, void *out, unsigned size)
{
    for (unsigned part; size; gpa += part, out = (uint8_t *)out + part, size -= part) {
        part = in_page(gpa, size);
        const uint8_t *host = ram_host(vcpu->ram, gpa);
        if (host)
            copy_operand(out, host, part);
        else
            mmio_read(vcpu, gpa, out, part);
    }
}

void *mmu_phys_host(struct vcpu *vcpu, uint64_t gpa, unsigned size)
{
    struct ram_slot *slot = ram_find(vcpu->ram, gpa);
    if (!slot || ram_is_rom(slot, gpa) || in_page(gpa, size) < size)
        return NULL;
    ram_written(vcpu->ram, gpa, size);
    return slot->host + (gpa - slot->gpa);
}

void mmu_phys_write(struct vcpu *vcpu, uint64_t gpa, const void *in, unsigned size)
{
    for (unsigned part; size; gpa += part, in = (const uint8_t *)in + part, size -= part) {
        part = in_page(gpa, size);
        struct ram_slot *slot = ram_find(vcpu->ram, gpa);
        if (!slot || ram_is_rom(slot, gpa)) {
            mmio_write(vcpu, gpa, in, part);
        } else {
            copy_operand(slot->host + (gpa - slot->gpa), in, part);
            ram_written(vcpu->ram, gpa, part);
        }
    }
}
