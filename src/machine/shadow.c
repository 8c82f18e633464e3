#include "machine/shadow.h"

#include <string.h>

#include "machine/layout.h"
#include "machine/machine.h"
#include "mem/ram.h"
#include "mmu/mmu.h"
#include "vcpu/thread.h"
#include "vcpu/work.h"

enum { ROM_BELOW_1M = 0x20000 };        /* the last 128 KiB of the firmware image are seen here, too */

static void flush(struct vcpu *vcpu, void *argument) { mmu_flush_all(vcpu); }

/* The vCPU that wrote the register must not use an old translation; others follow at their next block border. */
static void flush_everybody(struct machine *machine)
{
    for (unsigned i = 0; i < machine->config.cpus; i++) {
        struct vcpu *vcpu = machine->vcpu[i];
        if (vcpu_thread_is_own(vcpu))
            mmu_flush_all(vcpu);
        else
            vcpu_post(vcpu, flush, NULL);
    }
}

void shadow_set(void *owner, unsigned segment, bool read, bool write)
{
    struct shadow *shadow = owner;
    struct ram *ram = shadow->machine->ram;
    const struct pam_segment place = pam_segment(segment);
    const uint32_t bits = !read ? PAGE_HIDDEN : write ? 0 : PAGE_ROM;
    shadow->writable[segment] = write;
    if (ram_set_pages(ram, place.base, place.size, bits))
        flush_everybody(shadow->machine);
}

/* --- where RAM is not asked --- */

static uint8_t read_byte(const struct shadow *shadow, uint64_t gpa)
{
    const uint8_t *rom = NULL;
    if (gpa >= 1 * MiB - ROM_BELOW_1M)
        rom = ram_host(shadow->machine->ram, gpa - 1 * MiB + 4 * GiB);
    return rom ? *rom : 0xFF;
}

static unsigned segment_of(uint64_t gpa)
{
    return gpa >= 0xF0000 ? 0 : 1 + (unsigned)(gpa - BIOS_AREA_BASE) / 0x4000;
}

static enum access_result shadow_access(void *owner, struct access *access)
{
    struct shadow *shadow = owner;
    uint64_t gpa = BIOS_AREA_BASE + access->address;
    if (access->write) {
        if (shadow->writable[segment_of(gpa)])
            ram_load(shadow->machine->ram, gpa, &access->value, access->size);
        return ACCESS_OK;
    }
    access->value = 0;
    for (unsigned i = 0; i < access->size; i++)
        access->value |= (uint64_t)read_byte(shadow, gpa + i) << (8 * i);
    return ACCESS_OK;
}

void shadow_init(struct shadow *shadow, struct machine *machine)
{
    enum { BELOW_BARS = -2 };
    shadow->machine = machine;
    shadow->region = (struct region){ .name = "bios-area", .base = BIOS_AREA_BASE, .size = BIOS_AREA_SIZE,
                                      .priority = BELOW_BARS, .access = shadow_access, .owner = shadow,
                                      .lock = &machine->lock };
    bus_map(machine->mmio, &shadow->region);
    ram_set_pages(machine->ram, BIOS_AREA_BASE, BIOS_AREA_SIZE, PAGE_HIDDEN);
}

void shadow_fini(struct shadow *shadow)
{
    if (shadow->region.mapped)
        bus_unmap(shadow->machine->mmio, &shadow->region);
}
