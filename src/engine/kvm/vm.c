/* The machine in KVM: made by its first vCPU, gone with its last. Its memory is the RAM's slots, in parts that are alike. */
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/error.h"
#include "engine/kvm/kvm.h"
#include "mem/ram.h"

/* Four pages that KVM wants on Intel processors without unrestricted guests (KVM §4.35, §4.41), in a gap of the board's map. */
enum { IDENTITY_MAP = 0xFEFFC000, TSS_PAGES = 0xFEFFD000 };

/* --- life --- */

static struct kvm_vm *find(const struct vcpu *vcpu)
{
    for (unsigned i = 0; i < vcpu->all_count; i++) {
        const struct vcpu *other = vcpu->all[i];
        if (other && other != vcpu && other->engine == vcpu->engine && other->engine_state)
            return kvm_cpu_of(other)->vm;
    }
    return NULL;
}

bool kvm_let_mwait(int vm_fd)
{
    struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_DISABLE_EXITS, .args = { KVM_X86_DISABLE_EXITS_MWAIT } };
    int offered = ioctl(vm_fd, KVM_CHECK_EXTENSION, cap.cap);
    return offered > 0 && (offered & KVM_X86_DISABLE_EXITS_MWAIT) && !ioctl(vm_fd, KVM_ENABLE_CAP, &cap);
}

/* Else KVM raises #UD for what its emulator does not know, at CPL 3 without a word to us. */
static bool leave_failed_emulation(int vm_fd)
{
    struct kvm_enable_cap cap = { .cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE, .args = { 1 } };
    return !ioctl(vm_fd, KVM_ENABLE_CAP, &cap);
}

/* Hosts with components beyond 4 KiB say how much they need, and copy that much. */
static void size_xsave(struct kvm_vm *vm)
{
    int size = ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
    vm->get_xsave = size > 0 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE;
    vm->xsave_size = size > (int)sizeof(struct kvm_xsave) ? (size_t)size : sizeof(struct kvm_xsave);
}

/* A machine whose APIC has no deadline timer must see #GP, which KVM knows nothing of. */
static bool keeps_deadline(const struct kvm_vm *vm, const struct vcpu *vcpu) { return vm->apics && x86_has(vcpu, FEATURE_TSC_DEADLINE); }

static bool set_up(struct kvm_vm *vm, const struct vcpu *vcpu)
{
    uint64_t identity = IDENTITY_MAP;
    int most = ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS);
    size_xsave(vm);
    vm->parts_most = most > 0 && most < KVM_PARTS_MAX ? (unsigned)most : KVM_PARTS_MAX;
    kvm_ask_for_rings(vm);
    kvm_open_apics(vm, vcpu);
    return !ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) && !ioctl(vm->fd, KVM_SET_TSS_ADDR, (unsigned long)TSS_PAGES) &&
           kvm_leave_msrs(vm->fd, keeps_deadline(vm, vcpu)) && leave_failed_emulation(vm->fd) &&
           (vm->deadline != KVM_DEADLINE_WITH_MWAIT || kvm_let_mwait(vm->fd));
}

static struct kvm_vm *create(struct vcpu *vcpu)
{
    struct error err;
    struct kvm_vm *vm = calloc(1, sizeof(*vm));
    int kvm = vm ? kvm_open(&err) : -1;
    if (kvm < 0) {
        free(vm);
        return NULL;
    }
    vm->fd = ioctl(kvm, KVM_CREATE_VM, 0);
    vm->run_size = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    vm->apics = vm->fd >= 0 && !vcpu->board_apic && kvm_ask_for_apics(vm->fd);
    vm->deadline = vm->apics ? KVM_DEADLINE_COMES : kvm_probe_deadline(kvm);
    close(kvm);
    pthread_mutex_init(&vm->mutex, NULL);
    pthread_mutex_init(&vm->apic_mutex, NULL);
    if (vm->fd >= 0 && set_up(vm, vcpu))
        return vm;
    if (vm->fd >= 0)
        close(vm->fd);
    free(vm);
    return NULL;
}

struct kvm_vm *kvm_vm_get(struct vcpu *vcpu)
{
    struct kvm_vm *vm = find(vcpu);
    if (!vm)
        vm = create(vcpu);
    if (vm)
        vm->users++;
    return vm;
}

void kvm_vm_put(struct kvm_vm *vm)
{
    if (--vm->users)
        return;
    close(vm->fd);
    pthread_mutex_destroy(&vm->apic_mutex);
    pthread_mutex_destroy(&vm->mutex);
    free(vm);
}

/* --- memory --- */

static uint32_t page_flags(const struct ram_slot *slot, uint64_t gpa) { return ram_is_rom(slot, gpa) ? KVM_MEM_READONLY : 0; }

/* The slot's runs of pages that are alike; hidden ones are left out. Returns how many parts there are now. */
static unsigned cut_slot(const struct ram_slot *slot, uint32_t flags, struct kvm_part *part, unsigned count, unsigned most)
{
    uint64_t end = slot->gpa + slot->size;
    for (uint64_t gpa = slot->gpa, next; gpa < end && count < most; gpa = next) {
        bool hidden = ram_page_has(slot, gpa, PAGE_HIDDEN);
        uint32_t alike = page_flags(slot, gpa);
        next = slot->mixed ? gpa + PAGE_SIZE : end;
        while (next < end && ram_page_has(slot, next, PAGE_HIDDEN) == hidden && page_flags(slot, next) == alike)
            next += PAGE_SIZE;
        if (!hidden)
            part[count++] = (struct kvm_part){ gpa, next - gpa, slot->host + (gpa - slot->gpa), alike | flags };
    }
    return count;
}

static bool set_part(const struct kvm_vm *vm, unsigned number, const struct kvm_part *part)
{
    struct kvm_userspace_memory_region region = {
        .slot = number, .flags = part->flags, .guest_phys_addr = part->gpa, .memory_size = part->size,
        .userspace_addr = (uintptr_t)part->host,
    };
    return !ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static bool same(const struct kvm_part *a, const struct kvm_part *b)
{
    return a->gpa == b->gpa && a->size == b->size && a->host == b->host && a->flags == b->flags;
}

/* What KVM has noted of its pages goes with it, and another vCPU may be writing there right now: all of it counts as written. */
static bool remove_part(struct ram *ram, struct kvm_vm *vm, unsigned number)
{
    struct kvm_part *part = &vm->part[number];
    if (vm->logging && part->flags & KVM_MEM_LOG_DIRTY_PAGES && !(part->flags & KVM_MEM_READONLY))
        ram_written(ram, part->gpa, part->size);
    part->size = 0;
    return set_part(vm, number, part);
}

/* What changes goes first, for parts must not overlap (KVM §4.35). */
static bool replace_parts(struct ram *ram, struct kvm_vm *vm, const struct kvm_part *part, unsigned count)
{
    bool done = true;
    for (unsigned i = 0; i < vm->part_count; i++)
        if (i >= count || !same(&vm->part[i], &part[i]))
            done &= remove_part(ram, vm, i);
    for (unsigned i = 0; i < count; i++)
        if (i >= vm->part_count || !same(&vm->part[i], &part[i]))
            done &= set_part(vm, i, &part[i]);
    memcpy(vm->part, part, count * sizeof(*part));
    vm->part_count = count;
    return done;
}

bool kvm_map_memory(struct vcpu *vcpu, struct kvm_vm *vm)
{
    struct kvm_part part[KVM_PARTS_MAX];
    unsigned count = 0;
    pthread_mutex_lock(&vm->mutex);
    vm->logging = atomic_load(&vcpu->ram->dirty_clients);
    for (unsigned i = 0; i < vcpu->ram->slot_count; i++)
        count = cut_slot(&vcpu->ram->slot[i], vm->logging ? KVM_MEM_LOG_DIRTY_PAGES : 0, part, count, vm->parts_most);
    bool done = replace_parts(vcpu->ram, vm, part, count);
    pthread_mutex_unlock(&vm->mutex);
    return done;
}
