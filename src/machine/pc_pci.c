/* What is on the board's PCI bus, and what people ask for besides. */
#include <stdio.h>
#include <string.h>

#include "dev/display/vga.h"
#include "dev/net/e1000.h"
#include "dev/pci/host_bridge.h"
#include "dev/pci/lpc.h"
#include "dev/pci/watchdog.h"
#include "dev/storage/ahci.h"
#include "dev/storage/nvme.h"
#include "dev/testdev.h"
#include "dev/usb/xhci.h"
#include "dev/virtio/devices.h"
#include "machine/firmware.h"
#include "machine/layout.h"
#include "machine/pc_internal.h"

/* --- slots --- */

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

uint8_t pc_free_slot(const struct machine *machine, bool (*promised)(const struct machine_config *config, unsigned slot))
{
    uint8_t slot = 1;
    while (slot < PCI_SLOT_LAST && (pci_bus_find(machine->pci, (uint8_t)(slot << 3)) || (promised && promised(&machine->config, slot))))
        slot++;
    return slot;
}

static void wire_pci_at(struct pc_wiring *wiring, struct device *device, uint8_t slot)
{
    struct pci_function *function = (struct pci_function *)device;
    function->bus = wiring->machine->pci;
    function->devfn = (uint8_t)(slot << 3);
}

/* In the order of their making. */
static void wire_pci(struct pc_wiring *wiring, struct device *device)
{
    wire_pci_at(wiring, device, pc_free_slot(wiring->machine, slot_is_promised));
}

static void wire_plain_pci(struct device *device, void *opaque) { wire_pci(opaque, device); }

/* A disk's or card's slot: that of the configuration, or one that is noted there. */
static void wire_pci_noted(struct pc_wiring *wiring, struct device *device, uint8_t *slot)
{
    if (!*slot)
        *slot = pc_free_slot(wiring->machine, slot_is_promised);
    wire_pci_at(wiring, device, *slot);
}

/* --- wiring --- */

static void on_reset_line(void *sink, unsigned n, bool level)
{
    if (level)
        machine_reset(sink);
}

static void wire_host_bridge(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    struct host_bridge *bridge = (struct host_bridge *)device;
    bridge->ecam_base = ECAM_BASE;
    bridge->ecam_size = ECAM_SIZE;
    bridge->config_port = PORT_PCI_CONFIG_BASE;
    bridge->reset = (struct irq_line){ on_reset_line, wiring->machine, 0 };
    bridge->pam = (struct pam_sink){ shadow_set, &wiring->machine->pc->shadow };
}

static void wire_lpc(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    struct lpc *lpc = (struct lpc *)device;
    lpc->pci.bus = wiring->machine->pci;
    lpc->pci.devfn = LPC_DEVFN;
    for (unsigned i = 0; i < PCI_INTX_LINES; i++)
        lpc->apic[i] = gsi_line(&wiring->machine->pc->gsi, IRQ_PCI_FIRST + i);
    for (unsigned i = 0; i < LPC_ISA_IRQS; i++)
        lpc->irq[i] = gsi_shared_line(&wiring->machine->pc->gsi, GSI_PIRQ, i);
}

static void wire_watchdog(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    wire_pci(wiring, device);
    ((struct watchdog *)device)->signal = wiring->machine->pc->signal;
}

static void wire_vga(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
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
unsigned pc_ahci_port(const struct machine_config *config, unsigned disk)
{
    unsigned port = 0;
    for (unsigned i = 0; i < disk; i++)
        port += is_on_ahci(&config->disk[i]);
    return port;
}

static void wire_ahci(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    struct machine *machine = wiring->machine;
    struct ahci *ahci = (struct ahci *)device;
    ahci->pci.bus = machine->pci;
    ahci->pci.devfn = AHCI_DEVFN;
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        const struct disk_config *disk = &machine->config.disk[i];
        if (!is_on_ahci(disk))
            continue;
        machine->disk_device[i] = device;
        ahci->port[pc_ahci_port(&machine->config, i)].drive = (struct ata_drive){
            .block = machine->block[i], .serial = disk->serial, .present = true, .cdrom = disk->bus == DISK_CDROM };
    }
}

/* Namespaces in the order of the command line. */
static void wire_nvme(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
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
    struct pc_wiring *wiring = opaque;
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
    struct pc_wiring *wiring = opaque;
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
    struct pc_wiring *wiring = opaque;
    struct virtio_net *net = (struct virtio_net *)device;
    unsigned i = (unsigned)(uintptr_t)wiring->argument;
    wire_pci_noted(wiring, device, &wiring->machine->config.net[i].slot);
    net->net = wiring->machine->net[i];
    choose_mac(wiring->machine, i, net->mac);
}

static void wire_e1000(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    struct e1000 *e1000 = (struct e1000 *)device;
    unsigned i = (unsigned)(uintptr_t)wiring->argument;
    wire_pci_noted(wiring, device, &wiring->machine->config.net[i].slot);
    e1000->net = wiring->machine->net[i];
    choose_mac(wiring->machine, i, e1000->mac);
}

static void wire_virtio_console(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    wire_pci(wiring, device);
    ((struct virtio_console *)device)->chardev = wiring->machine->virtio_console;
}

/* --- making --- */

bool pc_make_disk(struct machine *machine, unsigned i, struct error *err)
{
    return pc_make_numbered(machine, &device_virtio_blk, "virtio-blk", i, wire_virtio_blk, err);
}

static bool is_e1000(const struct machine *machine, unsigned i) { return machine->config.net[i].model == NET_MODEL_E1000; }

const char *pc_net_prefix(const struct machine *machine, unsigned i) { return is_e1000(machine, i) ? "e1000-" : "virtio-net"; }

static void add_net_rom(struct pci_function *function, const struct blob *rom) { pci_rom_init(function, rom->data, (uint32_t)rom->size); }

bool pc_make_net(struct machine *machine, unsigned i, struct error *err)
{
    bool e1000 = is_e1000(machine, i);
    machine->net_device[i] = e1000 ? pc_make_numbered(machine, &device_e1000, pc_net_prefix(machine, i), i, wire_e1000, err)
                                   : pc_make_numbered(machine, &device_virtio_net, pc_net_prefix(machine, i), i, wire_virtio_net, err);
    if (machine->net_device[i] && machine->firmware && machine->config.net[i].boot)
        add_net_rom((struct pci_function *)machine->net_device[i], firmware_net_rom(machine->firmware, !e1000));
    return machine->net_device[i];
}

static bool add_nets(struct machine *machine, struct error *err)
{
    for (unsigned i = 0; i < machine->config.net_count; i++)
        if (!machine->config.net[i].absent && !pc_make_net(machine, i, err))
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
    return !count || pc_make(machine, &device_nvme, "nvme", wire_nvme, NULL, err);
}

static bool add_disks(struct machine *machine, struct error *err)
{
    unsigned on_ahci = disks_on(machine, DISK_AHCI) + disks_on(machine, DISK_CDROM);
    if (on_ahci > AHCI_PORTS)
        return error_set(err, "a machine has at most %d AHCI disks and CD-ROM drives together, not %u", AHCI_PORTS, on_ahci);
    if (on_ahci && !(machine->ahci = pc_make(machine, &device_ahci, "ahci", wire_ahci, NULL, err)))
        return false;
    if (!add_nvme(machine, err))
        return false;
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        const struct disk_config *disk = &machine->config.disk[i];
        if (disk->bus == DISK_VIRTIO && !disk->absent && !pc_make_disk(machine, i, err))
            return false;
    }
    return true;
}

static bool add_usb(struct machine *machine, struct error *err)
{
    unsigned disks = disks_on(machine, DISK_USB);
    if (disks > XHCI_DISKS)
        return error_set(err, "a machine has at most %d USB disks, not %u", XHCI_DISKS, disks);
    return (!machine->config.usb && !disks) || (machine->xhci = pc_make(machine, &device_xhci, "xhci", wire_xhci, NULL, err));
}

bool pc_make_pci(struct machine *machine, struct error *err)
{
    const struct machine_config *config = &machine->config;
    machine->host_bridge = pc_make(machine, &device_host_bridge, "host-bridge", wire_host_bridge, NULL, err);
    if (!machine->host_bridge)
        return false;
    machine->pci = pci_bus_of(machine->host_bridge);
    machine->lpc = pc_make(machine, &device_lpc, "lpc", wire_lpc, NULL, err);
    if (!machine->lpc)
        return false;
    for (unsigned i = 0; i < PCI_INTX_LINES; i++)
        ((struct host_bridge *)machine->host_bridge)->bus.intx[i] = (struct irq_line){ lpc_set_pirq, machine->lpc, i };
    if (pc_has_display(machine) && !(machine->vga = pc_make(machine, &device_vga, "vga", wire_vga, NULL, err)))
        return false;
    return add_disks(machine, err) && add_nets(machine, err) &&
           (!machine->virtio_console || pc_make_numbered(machine, &device_virtio_console, "virtio-console", 0, wire_virtio_console, err)) &&
           (!config->rng || pc_make_numbered(machine, &device_virtio_rng, "virtio-rng", 0, wire_plain_pci, err)) &&
           add_usb(machine, err) &&
           (!config->watchdog || pc_make_numbered(machine, &device_watchdog, "watchdog", 0, wire_watchdog, err));
}

static void wire_testdev(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    for (unsigned i = 0; i < GSI_COUNT; i++)
        ((struct testdev *)device)->irq[i] = gsi_shared_line(&wiring->machine->pc->gsi, GSI_TESTDEV, i);
}

/* --device: what people who test kernels and hypervisors ask for. */
bool pc_make_extra(struct machine *machine, struct error *err)
{
    for (unsigned i = 0; i < machine->config.extra_count; i++) {
        const char *name = machine->config.extra[i];
        bool ok;
        if (!strcmp(name, "testdev") || !strcmp(name, "pc-testdev"))
            ok = pc_make(machine, &device_testdev, "testdev", wire_testdev, NULL, err);
        else if (!strcmp(name, "edu"))
            ok = pc_make(machine, &device_edu, "edu", wire_plain_pci, NULL, err);
        else
            return error_set(err, "there is no device '%s' to add: it can be testdev or edu", name);
        if (!ok)
            return false;
    }
    return true;
}
