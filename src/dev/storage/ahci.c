/*
 * AHCI host bus adapter (Serial ATA AHCI 1.3.1; Serial ATA 3.0 for the frames) in the likeness of the ICH9's (316972 §15), with
 * a disk or CD-ROM drive at each port that has one.
 *
 * A command goes through three hands: this file fetches it from the guest's list and keeps the registers, the drive
 * (ata.c, atapi.c) says what it means, and ahci_transfer.c moves the data. Commands that are not queued run one after
 * the other; queued ones all at once.
 *
 * Not modelled: port multipliers, staggered spin-up, power states of the link, command completion coalescing, the index
 * and data ports.
 */
#include <string.h>

#include "dev/storage/ahci_internal.h"

/* --- registers --- */

struct ahci_row {
    uint16_t offset;
    uint32_t reset, rw, w1c, w1s;
};

static const struct ahci_row hba_row[HBA_REGISTERS] = {
#define HBA(name, offset, reset, rw, w1c, section) [HBA_##name] = { offset, reset, rw, w1c, 0 },
#include "dev/storage/ahci_registers.def"
};
static const struct ahci_row port_row[PORT_REGISTERS] = {
#define PORT(name, offset, reset, rw, w1c, w1s, section) [PORT_##name] = { offset, reset, rw, w1c, w1s },
#include "dev/storage/ahci_registers.def"
};

enum {
    AHCI_VENDOR = 0x8086,
    AHCI_DEVICE = 0x2922,
    AHCI_CLASS = 0x010601,
    AHCI_BAR = 5,
    AHCI_BAR_SIZE = 0x1000,
    AHCI_PORT_BASE = 0x100,
    AHCI_PORT_SIZE = 0x80,
    GHC_HR = 1 << 0,
    GHC_IE = 1 << 1,
};
enum { SCTL_DET = 0xF, SCTL_DET_COMRESET = 1, SSTS_PRESENT = 0x123, SERR_X = 1 << 26, SERR_N = 1 << 16 };
enum { FIS_H2D = 0x27, FIS_H2D_COMMAND = 1 << 7, CONTROL_SRST = 1 << 2 };

/* Command header, §4.2.2; little-endian. */
enum { HEADER_SIZE = 32, HEADER_CFL = 0x1F, TABLE_ACMD = 0x40, FIS_LENGTH = 5 };

/* --- interrupts --- */

static void update_interrupt(struct ahci *ahci, bool event)
{
    for (unsigned i = 0; i < AHCI_PORTS; i++)
        if (ahci->port[i].reg[PORT_PIS] & ahci->port[i].reg[PORT_PIE])
            ahci->reg[HBA_IS] |= 1u << i;
    bool level = ahci->reg[HBA_GHC] & GHC_IE && ahci->reg[HBA_IS];
    if (pci_msi_enabled(&ahci->pci)) {
        if (level && (event || !ahci->level))
            pci_msi_send(&ahci->pci, 0);
        pci_intx(&ahci->pci, false);
    } else {
        pci_intx(&ahci->pci, level);
    }
    ahci->level = level;
}

void ahci_raise(struct ahci_port *port, uint32_t status)
{
    port->reg[PORT_PIS] |= status;
    update_interrupt(port->ahci, port->reg[PORT_PIE] & status);
}

/* --- frames to the guest --- */

static uint64_t wide(const struct ahci_port *port, enum ahci_port_register low)
{
    return port->reg[low] | (uint64_t)port->reg[low + 1] << 32;
}

/* Into the received FIS area (§4.2.1), if the guest has switched that on. */
static void post_fis(struct ahci_port *port, unsigned at, const void *fis, size_t size)
{
    if (!(port->reg[PORT_CMD] & CMD_FRE))
        return;
    if (!dma_write(&port->ahci->pci.device.dma, wide(port, PORT_FB) + at, fis, size))
        guest_error(port->ahci->pci.device.world.log, "%s: port %u: no memory for received frames at %#lx",
                    port->ahci->pci.device.name, port->index, (unsigned long)wide(port, PORT_FB));
}

static void set_task_file(struct ahci_port *port, const struct ata_plan *plan)
{
    port->reg[PORT_TFD] = (uint32_t)plan->error << 8 | plan->status;
}

void ahci_post_d2h(struct ahci_port *port, const struct ata_plan *plan)
{
    const uint64_t lba = plan->lba;
    const uint8_t fis[20] = { 0x34, 1 << 6, plan->status, plan->error, (uint8_t)lba, (uint8_t)(lba >> 8), (uint8_t)(lba >> 16), 0,
                              (uint8_t)(lba >> 24), (uint8_t)(lba >> 32), (uint8_t)(lba >> 40), 0, (uint8_t)plan->count,
                              (uint8_t)(plan->count >> 8) };
    set_task_file(port, plan);
    post_fis(port, 0x40, fis, sizeof(fis));
    ahci_raise(port, PIS_DHRS | (plan->status & ATA_ERR ? PIS_TFES : 0));
}

/* Serial ATA 3.0 §10.3.10: before the data of a PIO command; E_STATUS is what the registers show after them. */
void ahci_post_pio_setup(struct ahci_port *port, const struct ata_plan *plan, bool to_guest, uint64_t size)
{
    const uint8_t fis[20] = { [0] = 0x5F, [1] = (uint8_t)(1 << 6 | (to_guest ? 1 << 5 : 0)), [2] = ATA_DRDY | ATA_DRQ,
                              [15] = plan->status, [16] = (uint8_t)size, [17] = (uint8_t)(size >> 8) };
    set_task_file(port, plan);
    post_fis(port, 0x20, fis, sizeof(fis));
    ahci_raise(port, PIS_PSS);
}

/* Serial ATA 3.0 §10.3.6: a queued command has ended; on an error the task file says so. */
void ahci_post_set_bits(struct ahci_port *port, const struct ata_plan *plan)
{
    uint32_t bit = plan->status & ATA_ERR ? 0 : 1u << plan->tag;
    const uint8_t fis[8] = { 0xA1, 1 << 6, plan->status & 0x77, plan->error, (uint8_t)bit, (uint8_t)(bit >> 8),
                             (uint8_t)(bit >> 16), (uint8_t)(bit >> 24) };
    port->reg[PORT_SACT] &= ~bit;
    port->reg[PORT_TFD] = (port->reg[PORT_TFD] & ~0xFF77u) | (uint32_t)plan->error << 8 | (plan->status & 0x77);
    post_fis(port, 0x58, fis, sizeof(fis));
    ahci_raise(port, PIS_SDBS | (plan->status & ATA_ERR ? PIS_TFES : 0));
}

/* --- resets --- */

static void post_signature(struct ahci_port *port)
{
    struct ata_plan plan = { 0 };
    ata_signature(&port->drive, &plan);
    port->reg[PORT_SIG] = (uint32_t)(plan.lba << 8) | plan.count;
    ahci_post_d2h(port, &plan);
}

/* The link comes up and the drive sends its signature (§10.4.2 "Port Reset"). */
static void port_link(struct ahci_port *port)
{
    if (!port->drive.present)
        return;
    ata_reset(&port->drive);
    port->soft_reset = false;
    port->reg[PORT_SSTS] = SSTS_PRESENT;
    post_signature(port);
}

static void stop_commands(struct ahci_port *port)
{
    port->reg[PORT_CI] = 0;         /* what has not begun does not begin any more */
    ahci_drain(port);
    port->reg[PORT_SACT] = 0;
    port->reg[PORT_CMD] &= ~(uint32_t)(CMD_CR | CMD_CCS);
    port->busy = false;
}

static void port_reset(struct ahci_port *port)
{
    stop_commands(port);
    for (unsigned i = 0; i < PORT_REGISTERS; i++)
        port->reg[i] = port_row[i].reset;
    port_link(port);
    port->reg[PORT_PIS] = 0;
}

static void hba_reset(struct ahci *ahci)
{
    for (unsigned i = 0; i < HBA_REGISTERS; i++)
        ahci->reg[i] = hba_row[i].reset;
    for (unsigned i = 0; i < AHCI_PORTS; i++)
        port_reset(&ahci->port[i]);
    ahci->reg[HBA_IS] = 0;
    update_interrupt(ahci, false);
}

/* DET went to 1: the interface is silent until it goes back to 0. */
static void comreset(struct ahci_port *port, uint32_t old)
{
    bool was = (old & SCTL_DET) == SCTL_DET_COMRESET, is = (port->reg[PORT_SCTL] & SCTL_DET) == SCTL_DET_COMRESET;
    if (is && !was) {
        stop_commands(port);
        port->reg[PORT_SSTS] = 0;
        port->reg[PORT_TFD] = port_row[PORT_TFD].reset;
        port->reg[PORT_SIG] = port_row[PORT_SIG].reset;
    } else if (was && !is && port->drive.present) {
        port->reg[PORT_SERR] |= SERR_X | SERR_N;
        port_link(port);
    }
}

/* --- commands --- */

static void decode(const uint8_t fis[64], const uint8_t *packet, struct ata_command *command)
{
    *command = (struct ata_command){ .command = fis[2], .device = fis[7], .control = fis[15],
                                     .features = (uint16_t)(fis[3] | fis[11] << 8), .count = (uint16_t)(fis[12] | fis[13] << 8) };
    for (unsigned i = 0; i < 3; i++)
        command->lba |= (uint64_t)fis[4 + i] << (8 * i) | (uint64_t)fis[8 + i] << (24 + 8 * i);
    memcpy(command->packet, packet, ATA_PACKET_SIZE);
}

/* A frame that updates the control register alone: SRST (§10.4.1 "Software Reset"). */
static void control_frame(struct ahci_port *port, unsigned slot, uint8_t control)
{
    bool was = port->soft_reset;
    port->soft_reset = control & CONTROL_SRST;
    port->reg[PORT_CI] &= ~(1u << slot);
    if (was && !port->soft_reset) {
        ata_reset(&port->drive);
        post_signature(port);
    }
}

/* The list or the table cannot be read: §6.2.1 host bus fatal error. */
static void bus_error(struct ahci_port *port, unsigned slot)
{
    guest_error(port->ahci->pci.device.world.log, "%s: port %u: the command in slot %u cannot be read",
                port->ahci->pci.device.name, port->index, slot);
    port->reg[PORT_CI] &= ~(1u << slot);
    ahci_raise(port, PIS_HBFS);
}

static void start_slot(struct ahci_port *port, unsigned slot)
{
    const struct dma *dma = &port->ahci->pci.device.dma;
    uint8_t header[HEADER_SIZE], table[TABLE_ACMD + ATA_PACKET_SIZE];
    uint64_t header_at = wide(port, PORT_CLB) + slot * HEADER_SIZE, table_at;
    struct ata_command command;
    if (!dma_read(dma, header_at, header, sizeof(header))) {
        bus_error(port, slot);
        return;
    }
    memcpy(&table_at, header + 8, sizeof(table_at));
    table_at &= ~0x7Full;
    if ((header[0] & HEADER_CFL) < FIS_LENGTH || !dma_read(dma, table_at, table, sizeof(table)) || table[0] != FIS_H2D) {
        bus_error(port, slot);
        return;
    }
    if (!(table[1] & FIS_H2D_COMMAND)) {
        control_frame(port, slot, table[15]);
        return;
    }
    decode(table, table + TABLE_ACMD, &command);
    const struct ahci_command_memory memory = { .header = header_at, .table = table_at,
                                                .entries = (uint16_t)(header[2] | header[3] << 8) };
    port->reg[PORT_CMD] = (port->reg[PORT_CMD] & ~(uint32_t)CMD_CCS) | slot << CMD_CCS_SHIFT;
    trace(port->ahci->pci.device.world.log, block, "%s: port %u slot %u: command %#x, lba %#lx, count %u, packet %#x",
          port->ahci->pci.device.name, port->index, slot, command.command, (unsigned long)command.lba, command.count,
          command.packet[0]);
    ahci_begin(port, slot, &command, &memory);
}

void ahci_run(struct ahci_port *port)
{
    /* Nothing new is started before the guest has looked at a failed task file (§6.2.2 "Software Error Recovery"). */
    for (unsigned slot = 0; slot < AHCI_SLOTS; slot++) {
        if (port->busy || port->reg[PORT_TFD] & ATA_ERR || !(port->reg[PORT_CMD] & CMD_ST) || !port->drive.present)
            return;
        if (port->reg[PORT_CI] & 1u << slot && !port->transfer[slot])
            start_slot(port, slot);
    }
}

/* --- access --- */

static void command_written(struct ahci_port *port, uint32_t old, uint32_t value)
{
    uint32_t *cmd = &port->reg[PORT_CMD];
    if (value & CMD_CLO)
        port->reg[PORT_TFD] &= ~(uint32_t)(ATA_BSY | ATA_DRQ);
    *cmd = (*cmd & ~(uint32_t)(CMD_FR | CMD_CR)) | (*cmd & CMD_FRE ? CMD_FR : 0) | (*cmd & CMD_ST ? CMD_CR : 0);
    if (old & CMD_ST && !(*cmd & CMD_ST)) {
        stop_commands(port);
        port->reg[PORT_TFD] &= ~(uint32_t)(0xFF00 | ATA_ERR);
    }
    ahci_run(port);
}

static void write_row(uint32_t *reg, const struct ahci_row *row, uint32_t value)
{
    *reg = ((*reg & ~row->rw) | (value & row->rw)) & ~(value & row->w1c);
    *reg |= value & row->w1s;
}

static void write_port(struct ahci_port *port, enum ahci_port_register n, uint32_t value)
{
    uint32_t old = port->reg[n];
    /* §3.3.13 and §3.3.14: commands are only issued while ST is set. */
    if ((n == PORT_CI || n == PORT_SACT) && !(port->reg[PORT_CMD] & CMD_ST))
        return;
    write_row(&port->reg[n], &port_row[n], value);
    switch (n) {
    case PORT_CMD: command_written(port, old, value); break;
    case PORT_CI: ahci_run(port); break;
    case PORT_SCTL: comreset(port, old); break;
    default: break;
    }
    update_interrupt(port->ahci, false);
}

static void write_hba(struct ahci *ahci, enum ahci_hba_register n, uint32_t value)
{
    write_row(&ahci->reg[n], &hba_row[n], value);
    if (n == HBA_GHC && value & GHC_HR)
        hba_reset(ahci);
    update_interrupt(ahci, false);
}

static int find_row(const struct ahci_row *row, unsigned count, unsigned offset)
{
    for (unsigned i = 0; i < count; i++)
        if (row[i].offset == offset)
            return (int)i;
    return -1;
}

/* The bus hands over aligned accesses of four bytes only. */
static enum access_result ahci_access(void *owner, struct access *access)
{
    struct ahci *ahci = owner;
    unsigned offset = (unsigned)access->address, index = (offset - AHCI_PORT_BASE) / AHCI_PORT_SIZE;
    struct ahci_port *port = offset >= AHCI_PORT_BASE && index < AHCI_PORTS ? &ahci->port[index] : NULL;
    int n = port ? find_row(port_row, PORT_REGISTERS, offset % AHCI_PORT_SIZE) : find_row(hba_row, HBA_REGISTERS, offset);
    if (!access->write)
        access->value = n < 0 ? 0 : port ? port->reg[n] : ahci->reg[n];
    else if (n >= 0 && port)
        write_port(port, (enum ahci_port_register)n, (uint32_t)access->value);
    else if (n >= 0)
        write_hba(ahci, (enum ahci_hba_register)n, (uint32_t)access->value);
    return ACCESS_OK;
}

static void config_written(struct pci_function *function, unsigned offset, unsigned size)
{
    update_interrupt((struct ahci *)function, false);
}

/* --- media --- */

void ahci_change_medium(struct ahci *ahci, unsigned port, struct block *block)
{
    ahci_drain(&ahci->port[port]);
    atapi_change_medium(&ahci->port[port].drive, block);
}

/* --- reset, init --- */

static void ahci_reset(struct device *device)
{
    struct ahci *ahci = (struct ahci *)device;
    pci_function_reset(&ahci->pci);
    hba_reset(ahci);
}

static bool ahci_init(struct device *device, struct error *err)
{
    struct ahci *ahci = (struct ahci *)device;
    static const struct pci_identity identity = { AHCI_VENDOR, AHCI_DEVICE, 0x1AF4, 0x1100, AHCI_CLASS, 2 };
    ahci->pci.conventional = true;
    for (unsigned i = 0; i < AHCI_PORTS; i++) {
        ahci->port[i].ahci = ahci;
        ahci->port[i].index = (uint8_t)i;
    }
    if (!pci_function_init(&ahci->pci, &identity, err))
        return false;
    pci_add_msi(&ahci->pci);
    pci_bar_init(&ahci->pci, AHCI_BAR, "ahci", AHCI_BAR_SIZE, false, false, ahci_access, ahci);
    ahci->pci.bar[AHCI_BAR].region.access_min = ahci->pci.bar[AHCI_BAR].region.access_max = 4;
    ahci->pci.config_written = config_written;
    return true;
}

static void ahci_quiesce(struct device *device)
{
    struct ahci *ahci = (struct ahci *)device;
    for (unsigned i = 0; i < AHCI_PORTS; i++)
        ahci_drain(&ahci->port[i]);
}

/* Commands that were issued and not begun go on. */
static void ahci_resume(struct device *device)
{
    struct ahci *ahci = (struct ahci *)device;
    pci_function_resume(&ahci->pci);
    for (unsigned i = 0; i < AHCI_PORTS; i++)
        ahci_run(&ahci->port[i]);
    update_interrupt(ahci, false);
}

static void ahci_fini(struct device *device)
{
    ahci_quiesce(device);
    pci_function_fini((struct pci_function *)device);
}

/* --- state list, type --- */

static const struct state_field port_fields[] = {
    STATE_ARRAY(struct ahci_port, reg),
    STATE_NESTED(struct ahci_port, drive, ata_drive_state),
    STATE_SCALAR(struct ahci_port, soft_reset),
};
static const struct state_list port_state = STATE_LIST("ahci-port", 1, port_fields);

static const struct state_field fields[] = {
    STATE_NESTED(struct ahci, pci, pci_function_state),
    STATE_ARRAY(struct ahci, reg),
    STATE_NESTED_ARRAY(struct ahci, port, port_state),
};
static const struct state_list ahci_state = STATE_LIST("ahci", 1, fields);

const struct device_type device_ahci = {
    .name = "ahci",
    .text = "AHCI controller with SATA disks and CD-ROM drives (ICH9)",
    .size = sizeof(struct ahci),
    .state = &ahci_state,
    .init = ahci_init,
    .reset = ahci_reset,
    .quiesce = ahci_quiesce,
    .resume = ahci_resume,
    .fini = ahci_fini,
};
