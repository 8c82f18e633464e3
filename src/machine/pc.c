/*
 * The board: a Q35-like PC, as a parts list. Each part is a device type, a name, and a function that connects it. What a part
 * does is its own file's affair (dev/); where it sits is in layout.def.
 *
 *   8259 pair ---- INTR ----> LINT0 of the boot processor's local APIC
 *   gsi lines ---> 8259 inputs 0-15 and I/O APIC inputs 0-23 (IRQ 0 on input 2)
 *   I/O APIC, MSIs, IPIs ---> apic_bus ---> local APICs ---> vCPUs
 *   PCI INTA..D ---> PIRQA-H of the LPC bridge ---> I/O APIC inputs 16-23, and the 8259 inputs they are routed to
 */
#include "machine/pc.h"

#include <stdio.h>
#include <stdlib.h>

#include "dev/acpi_pm.h"
#include "dev/apic_bus.h"
#include "dev/pci/host_bridge.h"
#include "dev/pci/lpc.h"
#include "machine/layout.h"
#include "machine/pc_internal.h"
#include "machine/screen_vnc.h"

/* --- what the board tells the machine --- */

static void act(struct machine *machine, enum machine_action action, enum machine_end end)
{
    switch (action) {
    case MACHINE_ACTION_END: machine_end(machine, end, 0); break;
    case MACHINE_ACTION_RESET: machine_reset(machine); break;
    case MACHINE_ACTION_NONE: break;
    }
}

static void on_system_request(void *owner, enum system_request request, uint32_t code)
{
    struct machine *machine = owner;
    switch (request) {
    case SYSTEM_REQUEST_POWER_OFF:
        machine_end(machine, END_POWER_OFF, 0);
        break;
    case SYSTEM_REQUEST_RESET:
        machine_reset(machine);
        break;
    case SYSTEM_REQUEST_DEBUG_EXIT:
        machine_end(machine, END_DEBUG_EXIT, code);
        break;
    case SYSTEM_REQUEST_PANICKED:
        counter_add_shared(&machine->counters, COUNTER_guest_panics, 1);
        log_message(&machine->log, LOG_WARNING, "the guest's kernel panicked");
        act(machine, machine->config.on_panic, END_PANIC);
        break;
    case SYSTEM_REQUEST_CRASH_KERNEL:
        counter_add_shared(&machine->counters, COUNTER_guest_panics, 1);
        log_message(&machine->log, LOG_WARNING, "the guest's kernel panicked; its crash kernel takes over");
        break;
    case SYSTEM_REQUEST_WATCHDOG:
        counter_add_shared(&machine->counters, COUNTER_watchdog_expiries, 1);
        log_message(&machine->log, LOG_WARNING, "the guest's watchdog ran out");
        act(machine, machine->config.on_watchdog, END_WATCHDOG);
        break;
    }
}

static void on_msi(void *sink, uint64_t address, uint32_t data, uint16_t requester)
{
    struct machine *machine = sink;
    apic_bus_msi(machine->pc->apic_bus, address, data);
}

/* --- making a part --- */

struct device *pc_make(struct machine *machine, const struct device_type *type, const char *name,
                       void (*configure)(struct device *device, void *opaque), const void *argument, struct error *err)
{
    struct device_world world = {
        .mmio = machine->mmio, .ports = machine->ports, .clock = machine->clock, .loop = machine->loop,
        .lock = &machine->lock, .log = &machine->log, .counters = &machine->counters,
    };
    struct pc_wiring wiring = { machine, argument };
    struct device *device = device_create(type, name, &world, &machine->dma, configure, &wiring, err);
    if (!device)
        return NULL;
    struct device **last = &machine->devices;
    while (*last)
        last = &(*last)->next;
    *last = device;
    return device;
}

struct device *pc_make_numbered(struct machine *machine, const struct device_type *type, const char *prefix, unsigned i,
                                void (*configure)(struct device *device, void *opaque), struct error *err)
{
    char name[32];
    snprintf(name, sizeof(name), "%s%u", prefix, i);
    return pc_make(machine, type, name, configure, (const void *)(uintptr_t)i, err);
}

bool pc_has_display(const struct machine *machine)
{
    return (machine->firmware || machine->config.display) && !machine->config.no_display;
}

/* --- the board --- */

bool pc_build(struct machine *machine, struct error *err)
{
    struct pc *pc = machine->pc = calloc(1, sizeof(*pc));
    if (!pc || !(pc->apic_bus = apic_bus_create(&machine->log, &machine->counters)))
        return error_set(err, "no memory for a machine");
    pc->signal = (struct system_signal){ on_system_request, machine };
    pc->dma_space = (struct dma_space){ .ram = machine->ram, .mmio = machine->mmio, .msi = on_msi, .msi_sink = machine,
                                        .counters = &machine->counters, .lock = &machine->lock };
    machine->dma = dma_direct(&pc->dma_space, REQUESTER_CPU);
    pc->eject_work = (struct loop_work){ .run = pc_end_ejected, .owner = machine };
    shadow_init(&pc->shadow, machine);
    return pc_open_backends(machine, err) && pc_make_interrupt_controllers(machine, err) && pc_make_chips(machine, err) &&
           pc_make_pci(machine, err) && pc_make_extra(machine, err) &&
           (!machine->config.vnc || (machine->vnc = screen_vnc_open(machine, err)));
}

static void write_port(struct machine *machine, uint64_t port, uint8_t value)
{
    struct access access = { .address = port, .size = 1, .write = true, .value = value, .requester = REQUESTER_CPU };
    bus_access(machine->ports, &access);
}

/* The lines of PCI to IRQ 10 and 11 of the 8259s, level-triggered (ELCR: ICH9 §13.4.11). */
void pc_prepare(struct machine *machine)
{
    const struct pci_windows windows = { PORT_PCI_BARS_BASE, PORT_PCI_BARS_SIZE, PCI_MMIO_BASE, PCI_MMIO_SIZE, PCI_MMIO64_BASE,
                                         PCI_MMIO64_SIZE, { 10, 10, 11, 11, 10, 10, 11, 11 } };
    const uint8_t level_10_and_11 = 0x0C;
    pthread_mutex_lock(&machine->lock);
    host_bridge_open_shadow((struct host_bridge *)machine->host_bridge);
    for (unsigned i = 0; i < PCI_INTX_LINES; i++)
        lpc_route((struct lpc *)machine->lpc, i, windows.irq[i]);
    write_port(machine, PORT_ELCR_BASE + 1, level_10_and_11);
    pci_bus_assign(machine->pci, &windows);
    pthread_mutex_unlock(&machine->lock);
}

static void destroy_devices(struct machine *machine)
{
    /* Last made, first gone. */
    while (machine->devices) {
        struct device **last = &machine->devices;
        while ((*last)->next)
            last = &(*last)->next;
        struct device *device = *last;
        *last = NULL;
        device_destroy(device);
    }
}

void pc_destroy(struct machine *machine)
{
    screen_vnc_close(machine->vnc);
    destroy_devices(machine);
    if (machine->pc) {
        pc_free_removed(machine);
        shadow_fini(&machine->pc->shadow);
    }
    pc_close_backends(machine);
    if (machine->pc && machine->pc->apic_bus)
        apic_bus_destroy(machine->pc->apic_bus);
    free(machine->pc);
}

void pc_power_button(struct machine *machine)
{
    acpi_pm_power_button((struct acpi_pm *)machine->acpi_pm);
}
