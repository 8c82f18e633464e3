/*
 * What the guest has written, for the common dirty tracking (mem/ram.h): by a ring for each vCPU where the host offers them (KVM §8.29), so
 * that it costs what was written; else by a bitmap for each part, which is read as a whole.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "engine/kvm/kvm.h"
#include "mem/ram.h"

/* --- rings --- */

enum { RING_ENTRIES = 4096, RING_BYTES = RING_ENTRIES * sizeof(struct kvm_dirty_gfn) };

void kvm_ask_for_rings(struct kvm_vm *vm)
{
    struct kvm_enable_cap cap = { .cap = KVM_CAP_DIRTY_LOG_RING, .args = { RING_BYTES } };
    vm->rings = ioctl(vm->fd, KVM_CHECK_EXTENSION, cap.cap) >= RING_BYTES && !ioctl(vm->fd, KVM_ENABLE_CAP, &cap);
}

bool kvm_open_ring(struct kvm_cpu *cpu)
{
    if (!cpu->vm->rings)
        return true;
    void *ring = mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE);
    cpu->ring = ring == MAP_FAILED ? NULL : ring;
    return cpu->ring;
}

void kvm_close_ring(struct kvm_cpu *cpu)
{
    if (cpu->ring)
        munmap(cpu->ring, RING_BYTES);
}

/* An entry may be older than the part that now has its number; then all of the old one was marked (kvm_map_memory). */
static void mark_entry(struct ram *ram, const struct kvm_vm *vm, const struct kvm_dirty_gfn *entry)
{
    unsigned number = entry->slot & 0xFFFF;
    uint64_t offset = entry->offset * PAGE_SIZE;
    if (number < vm->part_count && offset < vm->part[number].size)
        ram_written(ram, vm->part[number].gpa + offset, PAGE_SIZE);
}

/* The flags pass an entry between KVM and us: what is read and written in between is ordered by them. */
static void collect_ring(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    unsigned taken = 0;
    for (; taken < RING_ENTRIES; taken++) {
        struct kvm_dirty_gfn *entry = &cpu->ring[cpu->ring_next];
        if (!(__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
            break;
        mark_entry(vcpu->ram, cpu->vm, entry);
        __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        cpu->ring_next = (cpu->ring_next + 1) % RING_ENTRIES;
    }
    if (taken)
        ioctl(cpu->vm->fd, KVM_RESET_DIRTY_RINGS, 0);
}

/* --- bitmaps --- */

static void mark(struct ram *ram, const struct kvm_part *part, const uint64_t *bitmap)
{
    for (uint64_t word = 0; word < (part->size / PAGE_SIZE + 63) / 64; word++)
        for (uint64_t bits = bitmap[word]; bits; bits &= bits - 1)
            ram_written(ram, part->gpa + (word * 64 + (uint64_t)__builtin_ctzll(bits)) * PAGE_SIZE, PAGE_SIZE);
}

/* Everything is marked where the host cannot tell. */
static void collect_part(struct ram *ram, const struct kvm_vm *vm, unsigned number)
{
    const struct kvm_part *part = &vm->part[number];
    uint64_t *bitmap = calloc((part->size / PAGE_SIZE + 63) / 64, sizeof(*bitmap));
    struct kvm_dirty_log log = { .slot = number, .dirty_bitmap = bitmap };
    if (bitmap && !ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log))
        mark(ram, part, bitmap);
    else
        ram_written(ram, part->gpa, part->size);
    free(bitmap);
}

static void collect_bitmaps(struct ram *ram, const struct kvm_vm *vm)
{
    for (unsigned i = 0; vm->logging && i < vm->part_count; i++)
        if (!(vm->part[i].flags & KVM_MEM_READONLY))
            collect_part(ram, vm, i);
}

void kvm_collect_dirty(struct vcpu *vcpu, struct kvm_cpu *cpu)
{
    struct kvm_vm *vm = cpu->vm;
    pthread_mutex_lock(&vm->mutex);
    if (cpu->ring)
        collect_ring(vcpu, cpu);
    else
        collect_bitmaps(vcpu->ram, vm);
    pthread_mutex_unlock(&vm->mutex);
}
