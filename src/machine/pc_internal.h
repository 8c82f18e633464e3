/*
 * What the files of the board share. pc.c puts it together; pc_chips.c has the parts with fixed addresses, pc_pci.c those on the PCI bus,
 * pc_backends.c what they stand for on the host, pc_hotplug.c what comes and goes while the machine runs.
 */
#ifndef DOPPEL_MACHINE_PC_INTERNAL_H
#define DOPPEL_MACHINE_PC_INTERNAL_H

#include "backend/shared_memory.h"
#include "base/loop.h"
#include "dev/gsi.h"
#include "dev/device.h"
#include "dev/system_signal.h"
#include "machine/dma.h"
#include "machine/machine.h"
#include "machine/shadow.h"

/* What connects the parts; not devices themselves. */
struct pc {
    struct apic_bus *apic_bus;
    struct gsi gsi;
    struct dma_space dma_space;
    struct system_signal signal;
    struct shadow shadow;
    /* Slots whose devices the guest has let go, and the loop's work that ends them; those that have ended (hotplug.c says why). */
    uint32_t ejected;
    struct loop_work eject_work;
    struct device *removed;
    struct shared_memory shared_memory;
};

/* What a part's configure callback gets. */
struct pc_wiring {
    struct machine *machine;
    const void *argument;
};

/* Makes a device, connects it with `configure` (its argument is a pc_wiring) and enters it into the machine's list. NULL: error says why. */
struct device *pc_make(struct machine *machine, const struct device_type *type, const char *name,
                       void (*configure)(struct device *device, void *opaque), const void *argument, struct error *err);
/* The same for the i-th of its kind, which is its name's ending and the wiring's argument. */
struct device *pc_make_numbered(struct machine *machine, const struct device_type *type, const char *prefix, unsigned i,
                                void (*configure)(struct device *device, void *opaque), struct error *err);
bool pc_has_display(const struct machine *machine);

/* Each makes its part of the board, in this order, before the machine runs. On false pc_destroy undoes what was made. */
bool pc_open_backends(struct machine *machine, struct error *err);
bool pc_make_interrupt_controllers(struct machine *machine, struct error *err);
bool pc_make_chips(struct machine *machine, struct error *err);
bool pc_make_pci(struct machine *machine, struct error *err);
bool pc_make_extra(struct machine *machine, struct error *err);
void pc_close_backends(struct machine *machine);

/* Disk or card i of the configuration: its backend, and its virtio or e1000 device. Board lock held, or before the machine runs. */
bool pc_open_disk(struct machine *machine, unsigned i, struct error *err);
bool pc_open_net(struct machine *machine, unsigned i, struct error *err);
bool pc_make_disk(struct machine *machine, unsigned i, struct error *err);
bool pc_make_net(struct machine *machine, unsigned i, struct error *err);
const char *pc_net_prefix(const struct machine *machine, unsigned i);
/* The port of disk i, in the order of the command line. */
unsigned pc_ahci_port(const struct machine_config *config, unsigned disk);
/* The lowest free PCI device number from 1 on for which `promised` (NULL: nothing is) is false. If there is none: one that is taken. */
uint8_t pc_free_slot(const struct machine *machine, bool (*promised)(const struct machine_config *config, unsigned slot));

/* The guest lets go what is in a slot: called by the device `pci_hotplug`, board lock held. The loop's work pc_end_ejected then ends it. */
void pc_on_eject(void *owner, unsigned slot);
void pc_end_ejected(void *owner);

#endif
