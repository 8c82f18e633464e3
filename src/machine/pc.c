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
#include <string.h>

#include "backend/block.h"
#include "backend/chardev.h"
#include "backend/net.h"
#include "backend/shared_memory.h"
#include "dev/acpi_pm.h"
#include "dev/apic_bus.h"
#include "dev/debug_exit.h"
#include "dev/debugcon.h"
#include "dev/display/vga.h"
#include "dev/fw_cfg.h"
#include "dev/gsi.h"
#include "dev/hpet.h"
#include "dev/i8042.h"
#include "dev/ioapic.h"
#include "dev/lapic.h"
#include "dev/net/e1000.h"
#include "dev/pci/host_bridge.h"
#include "dev/pci/lpc.h"
#include "dev/pci/watchdog.h"
#include "dev/pci_hotplug.h"
#include "dev/pic.h"
#include "dev/pit.h"
#include "dev/pvpanic.h"
#include "dev/rtc.h"
#include "dev/storage/ahci.h"
#include "dev/storage/flash.h"
#include "dev/storage/nvme.h"
#include "dev/testdev.h"
#include "dev/uart.h"
#include "dev/usb/xhci.h"
#include "dev/virtio/devices.h"
#include "dev/vmgenid.h"
#include "machine/dma.h"
#include "machine/firmware.h"
#include "machine/layout.h"
#include "machine/screen_vnc.h"
#include "machine/shadow.h"
#include "mem/ram.h"
#include "vcpu/thread.h"
#include "x86/model.h"
#include "x86/x86.h"

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

static void on_reset_line(void *sink, unsigned n, bool level)
{
    if (level)
        machine_reset(sink);
}

static void on_msi(void *sink, uint64_t address, uint32_t data, uint16_t requester)
{
    struct machine *machine = sink;
    apic_bus_msi(machine->pc->apic_bus, address, data);
}

static void on_eject(void *owner, unsigned slot);
static void end_ejected(void *owner);

/* --- making a part --- */

/* What a configure callback gets. */
struct wiring {
    struct machine *machine;
    const void *argument;
};

static struct device *add(struct machine *machine, const struct device_type *type, const char *name,
                          void (*configure)(struct device *device, void *opaque), const void *argument, struct error *err)
{
    struct device_world world = {
        .mmio = machine->mmio, .ports = machine->ports, .clock = machine->clock, .loop = machine->loop,
        .lock = &machine->lock, .log = &machine->log, .counters = &machine->counters,
    };
    struct wiring wiring = { machine, argument };
    struct device *device = device_create(type, name, &world, &machine->dma, configure, &wiring, err);
    if (!device)
        return NULL;
    struct device **last = &machine->devices;
    while (*last)
        last = &(*last)->next;
    *last = device;
    return device;
}

static struct gsi *gsi_of(struct wiring *wiring) { return &wiring->machine->pc->gsi; }

static void wire_lapic(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct lapic *lapic = (struct lapic *)device;
    struct vcpu *vcpu = (struct vcpu *)wiring->argument;
    lapic->apic_id = vcpu->apic_id;
    lapic->bsp = vcpu->index == 0;
    lapic->timer_hz = (uint64_t)x86_crystal(vcpu->model->tsc_hz).khz * 1000;
    lapic->physical_bits = (uint8_t)x86_physical_bits(vcpu);
    lapic->no_x2apic = !x86_has(vcpu, FEATURE_X2APIC);
    lapic->no_tsc_deadline = !x86_has(vcpu, FEATURE_TSC_DEADLINE);
    lapic->bus = wiring->machine->pc->apic_bus;
    lapic->signal = vcpu_signal(vcpu);
    if (lapic->bsp)
        lapic->extint = (struct extint_source){ pic_acknowledge, wiring->machine->pic };
}

static void wire_ioapic(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    ((struct ioapic *)device)->bus = wiring->machine->pc->apic_bus;
}

static void wire_pit(struct device *device, void *opaque)
{
    ((struct pit *)device)->irq = gsi_replaceable_line(gsi_of(opaque), GSI_PIT);
}

static void wire_rtc(struct device *device, void *opaque)
{
    ((struct rtc *)device)->irq = gsi_replaceable_line(gsi_of(opaque), GSI_RTC);
}

static void wire_hpet(struct device *device, void *opaque)
{
    struct hpet *hpet = (struct hpet *)device;
    for (unsigned i = 0; i < HPET_LINES; i++)
        hpet->irq[i] = gsi_shared_line(gsi_of(opaque), GSI_HPET, i);
    hpet->legacy = gsi_hpet_legacy_line(gsi_of(opaque));
}

static void wire_acpi_pm(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct acpi_pm *pm = (struct acpi_pm *)device;
    pm->sci = gsi_line(gsi_of(wiring), IRQ_SCI);
    pm->signal = wiring->machine->pc->signal;
}

static void wire_vmgenid(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct vmgenid *vmgenid = (struct vmgenid *)device;
    vmgenid->base = VMGENID_BASE;
    vmgenid->changed = (struct irq_line){ acpi_pm_gpe_line, wiring->machine->acpi_pm, GPE_VMGENID };
}

static bool has_display(const struct machine *machine)
{
    return (machine->firmware || machine->config.display) && !machine->config.no_display;
}

static void wire_pci_hotplug(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct pci_hotplug *hotplug = (struct pci_hotplug *)device;
    hotplug->base = PORT_PCI_HOTPLUG_BASE;
    hotplug->changed = (struct irq_line){ acpi_pm_gpe_line, wiring->machine->acpi_pm, GPE_PCI_HOTPLUG };
    hotplug->eject = on_eject;
    hotplug->owner = wiring->machine;
}

static void wire_i8042(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct i8042 *i8042 = (struct i8042 *)device;
    i8042->irq = gsi_line(gsi_of(wiring), IRQ_KEYBOARD);
    i8042->irq_aux = gsi_line(gsi_of(wiring), IRQ_MOUSE);
    i8042->signal = wiring->machine->pc->signal;
    i8042->plugged = has_display(wiring->machine);
}

static void wire_uart(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct uart *uart = (struct uart *)device;
    uart->irq = gsi_line(gsi_of(wiring), IRQ_UART0);
    uart->chardev = wiring->machine->console;
}

static void wire_debugcon(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    ((struct debugcon *)device)->chardev = wiring->machine->debug_console;
}

static void wire_debug_exit(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    ((struct debug_exit *)device)->signal = wiring->machine->pc->signal;
}

static void wire_pvpanic(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    ((struct pvpanic *)device)->signal = wiring->machine->pc->signal;
}

static void wire_testdev(struct device *device, void *opaque)
{
    for (unsigned i = 0; i < GSI_COUNT; i++)
        ((struct testdev *)device)->irq[i] = gsi_shared_line(gsi_of(opaque), GSI_TESTDEV, i);
}

static void wire_host_bridge(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct host_bridge *bridge = (struct host_bridge *)device;
    bridge->ecam_base = ECAM_BASE;
    bridge->ecam_size = ECAM_SIZE;
    bridge->config_port = PORT_PCI_CONFIG_BASE;
    bridge->reset = (struct irq_line){ on_reset_line, wiring->machine, 0 };
    bridge->pam = (struct pam_sink){ shadow_set, &wiring->machine->pc->shadow };
}

static void wire_lpc(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct lpc *lpc = (struct lpc *)device;
    lpc->pci.bus = wiring->machine->pci;
    lpc->pci.devfn = LPC_DEVFN;
    for (unsigned i = 0; i < PCI_INTX_LINES; i++)
        lpc->apic[i] = gsi_line(gsi_of(wiring), IRQ_PCI_FIRST + i);
    for (unsigned i = 0; i < LPC_ISA_IRQS; i++)
        lpc->irq[i] = gsi_shared_line(gsi_of(wiring), GSI_PIRQ, i);
}

/* Slots that the configuration gives to a disk or card, removed ones among them: a device that is made later must not get one of these. */
static bool slot_is_promised(const struct machine_config *config, unsigned slot)
{
    for (unsigned i = 0; i < config->disk_count; i++)
        if (config->disk[i].slot == slot)
            return true;
    for (unsigned i = 0; i < config->net_count; i++)
        if (config->net[i].slot == slot)
            return true;
    return false;
}

/* The lowest from 1 on. If all are taken the device finds its slot taken, too. */
static uint8_t free_slot(const struct machine *machine, bool (*promised)(const struct machine_config *config, unsigned slot))
{
    uint8_t slot = 1;
    while (slot < PCI_SLOT_LAST && (pci_bus_find(machine->pci, (uint8_t)(slot << 3)) || (promised && promised(&machine->config, slot))))
        slot++;
    return slot;
}

static void wire_pci_at(struct wiring *wiring, struct device *device, uint8_t slot)
{
    struct pci_function *function = (struct pci_function *)device;
    function->bus = wiring->machine->pci;
    function->devfn = (uint8_t)(slot << 3);
}

/* In the order of their making. */
static void wire_pci(struct wiring *wiring, struct device *device)
{
    wire_pci_at(wiring, device, free_slot(wiring->machine, slot_is_promised));
}

static void wire_plain_pci(struct device *device, void *opaque) { wire_pci(opaque, device); }

/* A disk's or card's slot: that of the configuration, or one that is noted there. */
static void wire_pci_noted(struct wiring *wiring, struct device *device, uint8_t *slot)
{
    if (!*slot)
        *slot = free_slot(wiring->machine, slot_is_promised);
    wire_pci_at(wiring, device, *slot);
}

static void wire_flash(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    firmware_wire_flash(wiring->machine->firmware, (struct flash *)device);
}

static void wire_watchdog(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    wire_pci(wiring, device);
    ((struct watchdog *)device)->signal = wiring->machine->pc->signal;
}

static void wire_vga(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct vga *vga = (struct vga *)device;
    wire_pci(wiring, device);
    if (!wiring->machine->firmware)
        return;
    const struct blob *rom = firmware_vga_bios(wiring->machine->firmware);
    vga->rom = rom->data;
    vga->rom_size = (uint32_t)rom->size;
}

static bool is_on_ahci(const struct disk_config *disk) { return disk->bus == DISK_AHCI || disk->bus == DISK_CDROM; }

/* Ports in the order of the command line. */
static unsigned ahci_port_of(const struct machine_config *config, unsigned disk)
{
    unsigned port = 0;
    for (unsigned i = 0; i < disk; i++)
        port += is_on_ahci(&config->disk[i]);
    return port;
}

static void wire_ahci(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct machine *machine = wiring->machine;
    struct ahci *ahci = (struct ahci *)device;
    ahci->pci.bus = machine->pci;
    ahci->pci.devfn = AHCI_DEVFN;
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        const struct disk_config *disk = &machine->config.disk[i];
        if (!is_on_ahci(disk))
            continue;
        machine->disk_device[i] = device;
        ahci->port[ahci_port_of(&machine->config, i)].drive = (struct ata_drive){
            .block = machine->block[i], .serial = disk->serial, .present = true, .cdrom = disk->bus == DISK_CDROM };
    }
}

/* Namespaces in the order of the command line. */
static void wire_nvme(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct machine *machine = wiring->machine;
    struct nvme *nvme = (struct nvme *)device;
    unsigned count = 0;
    wire_pci(wiring, device);
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        if (machine->config.disk[i].bus != DISK_NVME)
            continue;
        if (!count)
            nvme->serial = machine->config.disk[i].serial;
        nvme->namespace[count++] = machine->block[i];
        machine->disk_device[i] = device;
    }
}

/* Ports in the order of the command line. */
static void wire_xhci(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct machine *machine = wiring->machine;
    struct xhci *xhci = (struct xhci *)device;
    unsigned count = 0;
    wire_pci(wiring, device);
    xhci->inputs = machine->config.usb;
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        if (machine->config.disk[i].bus != DISK_USB)
            continue;
        machine->disk_device[i] = device;
        xhci->storage[count].serial = machine->config.disk[i].serial;
        xhci->storage[count++].block = machine->block[i];
    }
}

static void wire_virtio_blk(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct virtio_blk *blk = (struct virtio_blk *)device;
    unsigned i = (unsigned)(uintptr_t)wiring->argument;
    wire_pci_noted(wiring, device, &wiring->machine->config.disk[i].slot);
    blk->block = wiring->machine->block[i];
    blk->serial = wiring->machine->config.disk[i].serial;
    wiring->machine->disk_device[i] = device;
}

/* What the configuration says, or else an address by the card's number. */
static void choose_mac(const struct machine *machine, unsigned i, uint8_t mac[6])
{
    static const uint8_t none[6];
    const uint8_t derived[6] = { 0x52, 0x54, 0x00, 0xD0, 0x77, (uint8_t)(0x10 + i) };
    const uint8_t *configured = machine->config.net[i].mac;
    memcpy(mac, memcmp(configured, none, 6) ? configured : derived, 6);
}

static void wire_virtio_net(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct virtio_net *net = (struct virtio_net *)device;
    unsigned i = (unsigned)(uintptr_t)wiring->argument;
    wire_pci_noted(wiring, device, &wiring->machine->config.net[i].slot);
    net->net = wiring->machine->net[i];
    choose_mac(wiring->machine, i, net->mac);
}

static void wire_e1000(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    struct e1000 *e1000 = (struct e1000 *)device;
    unsigned i = (unsigned)(uintptr_t)wiring->argument;
    wire_pci_noted(wiring, device, &wiring->machine->config.net[i].slot);
    e1000->net = wiring->machine->net[i];
    choose_mac(wiring->machine, i, e1000->mac);
}

static void wire_virtio_console(struct device *device, void *opaque)
{
    struct wiring *wiring = opaque;
    wire_pci(wiring, device);
    ((struct virtio_console *)device)->chardev = wiring->machine->virtio_console;
}

/* --- backends --- */

/* What other processes may be given: the large pieces of RAM, whose pages are where they are for good. */
static const struct shared_memory *shared_memory(struct machine *machine)
{
    struct shared_memory *shared = &machine->pc->shared_memory;
    shared->count = 0;
    for (unsigned i = 0; i < machine->ram->slot_count && shared->count < SHARED_REGIONS_MAX && !machine->restored; i++) {
        const struct ram_slot *slot = &machine->ram->slot[i];
        if (!slot->rom && slot->size >= MiB)
            shared->region[shared->count++] = (struct shared_region){ slot->host, slot->size, slot->fd };
    }
    return shared;
}

static bool open_chardev(struct machine *machine, const char *text, struct chardev **chardev, struct error *err)
{
    if (!text || !strcmp(text, "none"))
        return true;
    *chardev = chardev_open(text, machine->loop, &machine->lock, &machine->log, err);
    return *chardev;
}

static bool open_disk(struct machine *machine, unsigned i, struct error *err)
{
    struct disk_config *disk = &machine->config.disk[i];
    struct block_options options = { .path = disk->path, .image = disk->image, .engine = disk->engine };
    options.image.memory = shared_memory(machine);
    if (i == 0) {
        options.opened = machine->first_image;
        machine->first_image = NULL;
    }
    machine->block[i] = block_open(&options, machine->loop, &machine->lock, &machine->log, err);
    /* Settled once, as the image may be found under another name later: a snapshot's copy. */
    if (disk->image.format == DISK_FORMAT_BY_NAME)
        disk->image.format = disk_format_of_name(disk->path);
    return machine->block[i];
}

static bool open_net(struct machine *machine, unsigned i, struct error *err)
{
    machine->net[i] = net_open(machine->config.net[i].backend, machine->loop, machine->clock, &machine->lock, &machine->log, err);
    return machine->net[i];
}

static bool open_backends(struct machine *machine, struct error *err)
{
    struct machine_config *config = &machine->config;
    for (unsigned i = 0; i < config->disk_count; i++)
        if (!config->disk[i].absent && config->disk[i].path && !open_disk(machine, i, err))
            return false;
    for (unsigned i = 0; i < config->net_count; i++)
        if (!config->net[i].absent && !open_net(machine, i, err))
            return false;
    /* The terminal last: nothing that fails after it was made raw. */
    return open_chardev(machine, config->debug_console, &machine->debug_console, err) &&
           open_chardev(machine, config->virtio_console, &machine->virtio_console, err) &&
           open_chardev(machine, config->console, &machine->console, err);
}

/* --- the parts --- */

static bool add_interrupt_controllers(struct machine *machine, struct error *err)
{
    struct pc *pc = machine->pc;
    machine->pic = add(machine, &device_pic, "pic", NULL, NULL, err);
    machine->ioapic = add(machine, &device_ioapic, "ioapic", wire_ioapic, NULL, err);
    if (!machine->pic || !machine->ioapic)
        return false;
    for (unsigned i = 0; i < machine->config.cpus; i++) {
        struct vcpu *vcpu = machine->vcpu[i];
        char name[16];
        snprintf(name, sizeof(name), "lapic%u", i);
        machine->lapic[i] = add(machine, &device_lapic, name, wire_lapic, vcpu, err);
        if (!machine->lapic[i])
            return false;
        vcpu->intc_ops = &lapic_intc_ops;
        vcpu->intc = machine->lapic[i];
    }
    /* The local APIC asks the 8259 for vectors and is asked by its line: the one made first is connected last. */
    ((struct pic *)machine->pic)->intr = (struct irq_line){ lapic_lint_line, machine->lapic[0], 0 };
    pc->gsi.pic = (struct irq_line){ pic_set_irq, machine->pic, 0 };
    pc->gsi.ioapic = (struct irq_line){ ioapic_set_irq, machine->ioapic, 0 };
    pc->gsi.counters = &machine->counters;
    return true;
}

static bool add_chips(struct machine *machine, struct error *err)
{
    const struct machine_config *config = &machine->config;
    machine->acpi_pm = add(machine, &device_acpi_pm, "acpi-pm", wire_acpi_pm, NULL, err);
    machine->uart = machine->acpi_pm ? add(machine, &device_uart, "uart0", wire_uart, NULL, err) : NULL;
    machine->rtc = machine->uart ? add(machine, &device_rtc, "rtc", wire_rtc, NULL, err) : NULL;
    if (machine->firmware && firmware_has_flash(machine->firmware) && !add(machine, &device_flash, "flash", wire_flash, NULL, err))
        return false;
    if (machine->rtc && machine->firmware && !(machine->fw_cfg = add(machine, &device_fw_cfg, "fw-cfg", NULL, NULL, err)))
        return false;
    return machine->rtc && add(machine, &device_pit, "pit", wire_pit, NULL, err) &&
           add(machine, &device_hpet, "hpet", wire_hpet, NULL, err) &&
           (machine->i8042 = add(machine, &device_i8042, "i8042", wire_i8042, NULL, err)) &&
           (machine->vmgenid = add(machine, &device_vmgenid, "vmgenid", wire_vmgenid, NULL, err)) &&
           add(machine, &device_pvpanic, "pvpanic", wire_pvpanic, NULL, err) &&
           (machine->pci_hotplug = add(machine, &device_pci_hotplug, "pci-hotplug", wire_pci_hotplug, NULL, err)) &&
           (!config->debug_console || add(machine, &device_debugcon, "debugcon", wire_debugcon, NULL, err)) &&
           (!config->debug_exit || add(machine, &device_debug_exit, "debug-exit", wire_debug_exit, NULL, err));
}

static struct device *add_numbered(struct machine *machine, const struct device_type *type, const char *prefix, unsigned i,
                                   void (*wire)(struct device *device, void *opaque), struct error *err)
{
    char name[32];
    snprintf(name, sizeof(name), "%s%u", prefix, i);
    return add(machine, type, name, wire, (const void *)(uintptr_t)i, err);
}

static bool add_disk(struct machine *machine, unsigned i, struct error *err)
{
    return add_numbered(machine, &device_virtio_blk, "virtio-blk", i, wire_virtio_blk, err);
}

static bool is_e1000(const struct machine *machine, unsigned i) { return machine->config.net[i].model == NET_MODEL_E1000; }

static const char *net_prefix(const struct machine *machine, unsigned i) { return is_e1000(machine, i) ? "e1000-" : "virtio-net"; }

static void add_net_rom(struct pci_function *function, const struct blob *rom) { pci_rom_init(function, rom->data, (uint32_t)rom->size); }

static bool add_net(struct machine *machine, unsigned i, struct error *err)
{
    bool e1000 = is_e1000(machine, i);
    machine->net_device[i] = e1000 ? add_numbered(machine, &device_e1000, net_prefix(machine, i), i, wire_e1000, err)
                                   : add_numbered(machine, &device_virtio_net, net_prefix(machine, i), i, wire_virtio_net, err);
    if (machine->net_device[i] && machine->firmware && machine->config.net[i].boot)
        add_net_rom((struct pci_function *)machine->net_device[i], firmware_net_rom(machine->firmware, !e1000));
    return machine->net_device[i];
}

static bool add_nets(struct machine *machine, struct error *err)
{
    for (unsigned i = 0; i < machine->config.net_count; i++)
        if (!machine->config.net[i].absent && !add_net(machine, i, err))
            return false;
    return true;
}

static unsigned disks_on(const struct machine *machine, enum disk_bus bus)
{
    unsigned count = 0;
    for (unsigned i = 0; i < machine->config.disk_count; i++)
        count += machine->config.disk[i].bus == bus && !machine->config.disk[i].absent;
    return count;
}

/* They are the namespaces of one controller, whose serial number is the first one's. */
static bool add_nvme(struct machine *machine, struct error *err)
{
    unsigned count = 0;
    for (unsigned i = 0; i < machine->config.disk_count; i++)
        if (machine->config.disk[i].bus == DISK_NVME && count++ && machine->config.disk[i].serial)
            return error_set(err, "NVMe disks share one controller: only the first of them can have a serial number");
    return !count || add(machine, &device_nvme, "nvme", wire_nvme, NULL, err);
}

static bool add_disks(struct machine *machine, struct error *err)
{
    unsigned on_ahci = disks_on(machine, DISK_AHCI) + disks_on(machine, DISK_CDROM);
    if (on_ahci > AHCI_PORTS)
        return error_set(err, "a machine has at most %d AHCI disks and CD-ROM drives together, not %u", AHCI_PORTS, on_ahci);
    if (on_ahci && !(machine->ahci = add(machine, &device_ahci, "ahci", wire_ahci, NULL, err)))
        return false;
    if (!add_nvme(machine, err))
        return false;
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        const struct disk_config *disk = &machine->config.disk[i];
        if (disk->bus == DISK_VIRTIO && !disk->absent && !add_disk(machine, i, err))
            return false;
    }
    return true;
}

static bool add_usb(struct machine *machine, struct error *err)
{
    unsigned disks = disks_on(machine, DISK_USB);
    if (disks > XHCI_DISKS)
        return error_set(err, "a machine has at most %d USB disks, not %u", XHCI_DISKS, disks);
    return (!machine->config.usb && !disks) || (machine->xhci = add(machine, &device_xhci, "xhci", wire_xhci, NULL, err));
}

static bool add_pci(struct machine *machine, struct error *err)
{
    const struct machine_config *config = &machine->config;
    machine->host_bridge = add(machine, &device_host_bridge, "host-bridge", wire_host_bridge, NULL, err);
    if (!machine->host_bridge)
        return false;
    machine->pci = pci_bus_of(machine->host_bridge);
    machine->lpc = add(machine, &device_lpc, "lpc", wire_lpc, NULL, err);
    if (!machine->lpc)
        return false;
    for (unsigned i = 0; i < PCI_INTX_LINES; i++)
        ((struct host_bridge *)machine->host_bridge)->bus.intx[i] = (struct irq_line){ lpc_set_pirq, machine->lpc, i };
    if (has_display(machine) && !(machine->vga = add(machine, &device_vga, "vga", wire_vga, NULL, err)))
        return false;
    return add_disks(machine, err) && add_nets(machine, err) &&
           (!machine->virtio_console || add_numbered(machine, &device_virtio_console, "virtio-console", 0, wire_virtio_console, err)) &&
           (!config->rng || add_numbered(machine, &device_virtio_rng, "virtio-rng", 0, wire_plain_pci, err)) &&
           add_usb(machine, err) &&
           (!config->watchdog || add_numbered(machine, &device_watchdog, "watchdog", 0, wire_watchdog, err));
}

/* --device: what people who test kernels and hypervisors ask for. */
static bool add_extra(struct machine *machine, struct error *err)
{
    for (unsigned i = 0; i < machine->config.extra_count; i++) {
        const char *name = machine->config.extra[i];
        bool ok;
        if (!strcmp(name, "testdev") || !strcmp(name, "pc-testdev"))
            ok = add(machine, &device_testdev, "testdev", wire_testdev, NULL, err);
        else if (!strcmp(name, "edu"))
            ok = add(machine, &device_edu, "edu", wire_plain_pci, NULL, err);
        else
            return error_set(err, "there is no device '%s' to add: it can be testdev or edu", name);
        if (!ok)
            return false;
    }
    return true;
}

bool pc_build(struct machine *machine, struct error *err)
{
    struct pc *pc = machine->pc = calloc(1, sizeof(*pc));
    if (!pc || !(pc->apic_bus = apic_bus_create(&machine->log, &machine->counters)))
        return error_set(err, "no memory for a machine");
    pc->signal = (struct system_signal){ on_system_request, machine };
    pc->dma_space = (struct dma_space){ .ram = machine->ram, .mmio = machine->mmio, .msi = on_msi, .msi_sink = machine,
                                        .counters = &machine->counters, .lock = &machine->lock };
    machine->dma = dma_direct(&pc->dma_space, REQUESTER_CPU);
    pc->eject_work = (struct loop_work){ .run = end_ejected, .owner = machine };
    shadow_init(&pc->shadow, machine);
    return open_backends(machine, err) && add_interrupt_controllers(machine, err) && add_chips(machine, err) &&
           add_pci(machine, err) && add_extra(machine, err) &&
           (!machine->config.vnc || (machine->vnc = screen_vnc_open(machine, err)));
}

/* --- disks and cards that come and go --- */

/* A slot that was promised to one that is gone is free for another. */
static void take_slot(struct machine *machine, uint8_t *slot)
{
    struct machine_config *config = &machine->config;
    uint8_t found = free_slot(machine, NULL);
    for (unsigned i = 0; i < config->disk_count; i++)
        config->disk[i].slot = config->disk[i].slot == found ? 0 : config->disk[i].slot;
    for (unsigned i = 0; i < config->net_count; i++)
        config->net[i].slot = config->net[i].slot == found ? 0 : config->net[i].slot;
    *slot = found;
}

bool pc_add_disk(struct machine *machine, unsigned i, struct error *err)
{
    if (!open_disk(machine, i, err))
        return false;
    take_slot(machine, &machine->config.disk[i].slot);
    if (add_disk(machine, i, err))
        return true;
    block_close(machine->block[i]);
    machine->block[i] = NULL;
    return false;
}

bool pc_add_net(struct machine *machine, unsigned i, struct error *err)
{
    if (!open_net(machine, i, err))
        return false;
    take_slot(machine, &machine->config.net[i].slot);
    if (add_net(machine, i, err))
        return true;
    net_close(machine->net[i]);
    machine->net[i] = NULL;
    return false;
}

/* --- media --- */

/* The configuration names it. */
static bool open_medium(struct machine *machine, unsigned i, bool force, struct error *err)
{
    struct ata_drive *drive = &((struct ahci *)machine->ahci)->port[ahci_port_of(&machine->config, i)].drive;
    machine->block[i] = NULL;
    if (machine->config.disk[i].path && !open_disk(machine, i, err))
        return false;
    if (force || !atapi_medium_is_locked(drive))
        return true;
    atapi_press_eject(drive);
    if (machine->block[i])
        block_close(machine->block[i]);
    return error_set(err, "the guest has locked the medium in, perhaps as it is mounted. It has been asked for it: unmount or eject it there and try "
                     "again, or take it by force");
}

bool pc_change_medium(struct machine *machine, unsigned i, const struct disk_config *medium, bool force, struct error *err)
{
    struct machine_config *config = &machine->config;
    const struct disk_config before = config->disk[i];
    struct block *old = machine->block[i];
    config->disk[i] = *medium;
    if (!open_medium(machine, i, force, err)) {
        config->disk[i] = before;
        machine->block[i] = old;
        return false;
    }
    ahci_change_medium((struct ahci *)machine->ahci, ahci_port_of(config, i), machine->block[i]);
    if (old)
        block_close(old);
    return true;
}

/* --- going --- */

static void end_device(struct machine *machine, struct device *device)
{
    struct device **at = &machine->devices;
    while (*at != device)
        at = &(*at)->next;
    *at = device->next;
    device->type->fini(device);
    device->next = machine->pc->removed;
    machine->pc->removed = device;
}

static struct device *find_device(const struct machine *machine, const char *prefix, unsigned i)
{
    char name[32];
    snprintf(name, sizeof(name), "%s%u", prefix, i);
    struct device *device = machine->devices;
    while (device && strcmp(device->name, name))
        device = device->next;
    return device;
}

static void end_disk(struct machine *machine, unsigned i)
{
    end_device(machine, find_device(machine, "virtio-blk", i));
    block_close(machine->block[i]);
    machine->block[i] = NULL;
    machine->disk_device[i] = NULL;
    machine->config.disk[i].absent = true;
}

static void end_net(struct machine *machine, unsigned i)
{
    end_device(machine, find_device(machine, net_prefix(machine, i), i));
    net_close(machine->net[i]);
    machine->net[i] = NULL;
    machine->net_device[i] = NULL;
    machine->config.net[i].absent = true;
}

/* On the loop's thread. */
static void end_ejected(void *owner)
{
    struct machine *machine = owner;
    const struct machine_config *config = &machine->config;
    pthread_mutex_lock(&machine->lock);
    uint32_t ejected = machine->pc->ejected;
    machine->pc->ejected = 0;
    for (unsigned i = 0; i < config->disk_count; i++)
        if (!config->disk[i].absent && ejected >> config->disk[i].slot & 1)
            end_disk(machine, i);
    for (unsigned i = 0; i < config->net_count; i++)
        if (!config->net[i].absent && ejected >> config->net[i].slot & 1)
            end_net(machine, i);
    pthread_mutex_unlock(&machine->lock);
}

/* Only disks and cards go; what the guest lets go besides stays. */
static void on_eject(void *owner, unsigned slot)
{
    struct machine *machine = owner;
    struct pci_function *function = pci_bus_find(machine->pci, (uint8_t)(slot << 3));
    const struct device_type *type = slot && function ? function->device.type : NULL;
    if (type != &device_virtio_blk && type != &device_virtio_net && type != &device_e1000)
        return;
    pci_intx(function, false);
    pci_bus_detach(machine->pci, function);
    machine->pc->ejected |= 1u << slot;
    loop_post(machine->loop, &machine->pc->eject_work);
}

void pc_free_removed(struct machine *machine)
{
    pthread_mutex_lock(&machine->lock);
    while (machine->pc->removed) {
        struct device *device = machine->pc->removed;
        machine->pc->removed = device->next;
        free(device);
    }
    pthread_mutex_unlock(&machine->lock);
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

static void close_backends(struct machine *machine)
{
    struct chardev *const chardevs[] = { machine->console, machine->virtio_console, machine->debug_console };
    for (unsigned i = 0; i < ARRAY_SIZE(chardevs); i++)
        if (chardevs[i])
            chardev_close(chardevs[i]);
    for (unsigned i = 0; i < machine->config.net_count; i++)
        if (machine->net[i])
            net_close(machine->net[i]);
    for (unsigned i = 0; i < machine->config.disk_count; i++)
        if (machine->block[i])
            block_close(machine->block[i]);
}

void pc_destroy(struct machine *machine)
{
    screen_vnc_close(machine->vnc);
    destroy_devices(machine);
    if (machine->pc) {
        pc_free_removed(machine);
        shadow_fini(&machine->pc->shadow);
    }
    close_backends(machine);
    if (machine->pc && machine->pc->apic_bus)
        apic_bus_destroy(machine->pc->apic_bus);
    free(machine->pc);
}

void pc_power_button(struct machine *machine)
{
    acpi_pm_power_button((struct acpi_pm *)machine->acpi_pm);
}
