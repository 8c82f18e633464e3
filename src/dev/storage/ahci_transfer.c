/*
 * The data of AHCI commands: from the physical region descriptor table (AHCI 1.3.1 §4.2.3.3) to pinned guest memory, to the
 * block backend and back. The table is read once, and its length is limited to several times what drivers use.
 */
#include <stdlib.h>
#include <string.h>

#include "dev/storage/ahci_internal.h"

enum { ENTRY_SIZE = 16, ENTRIES_MAX = DISK_IOV_MAX, TABLE_PRDT = 0x80, BYTE_COUNT_MASK = 0x3FFFFF, HEADER_PRDBC = 4 };

struct ahci_range {
    uint64_t address, size;
};

struct ahci_transfer {
    struct ahci_port *port;
    uint8_t slot;
    struct ata_plan plan;
    struct ahci_command_memory memory;
    struct block_request request;
    unsigned ranges, iov_count;
    struct ahci_range *range;           /* what is pinned: ended by the same addresses, whatever the table says by then */
    unsigned iov_max;
    struct iovec iov[];
};

/* --- ends --- */

static void unpin(struct ahci_transfer *transfer)
{
    for (unsigned i = 0; i < transfer->ranges; i++)
        dma_unmap(&transfer->port->ahci->pci.device.dma, transfer->range[i].address, transfer->range[i].size,
                  transfer->plan.op == BLOCK_READ);
    transfer->ranges = 0;
}

static void write_byte_count(struct ahci_port *port, const struct ahci_command_memory *memory, uint64_t size)
{
    const uint32_t count = (uint32_t)size;
    dma_write(&port->ahci->pci.device.dma, memory->header + HEADER_PRDBC, &count, sizeof(count));
}

/* The registers, the frames and the interrupt, in that order; then what waited. */
static void finish(struct ahci_port *port, unsigned slot, const struct ata_plan *plan, const struct ahci_command_memory *memory,
                   uint64_t moved, bool to_guest)
{
    bool failed = plan->status & ATA_ERR;
    if (plan->queued) {
        ahci_post_set_bits(port, plan);
        return;
    }
    write_byte_count(port, memory, moved);
    if (!failed)
        port->reg[PORT_CI] &= ~(1u << slot);
    if (plan->pio && moved)
        ahci_post_pio_setup(port, plan, to_guest, moved);
    /* Serial ATA 3.0 §11.5: a PIO command that gives data ends with them; packets and everything else end with a register frame. */
    if (!plan->pio || !moved || !to_guest || plan->packet || failed)
        ahci_post_d2h(port, plan);
}

static void transfer_done(struct block_request *request, int status)
{
    struct ahci_transfer *transfer = request->owner;
    struct ahci_port *port = transfer->port;
    unpin(transfer);
    port->transfer[transfer->slot] = NULL;
    if (!transfer->plan.queued)
        port->busy = false;
    if (status)
        ata_failed(&port->drive, &transfer->plan);
    finish(port, transfer->slot, &transfer->plan, &transfer->memory, status ? 0 : transfer->plan.size,
           transfer->plan.op == BLOCK_READ);
    free(transfer->range);
    free(transfer);
    ahci_run(port);
}

static bool under_way(const struct ahci_port *port)
{
    for (unsigned slot = 0; slot < AHCI_SLOTS; slot++)
        if (port->transfer[slot])
            return true;
    return false;
}

void ahci_drain(struct ahci_port *port)
{
    while (under_way(port))
        block_drain(port->drive.block);
}

/* --- the table --- */

/* Reads as much of the table as `size` bytes need. NULL: it is too short, too long, or not there. */
static struct ahci_range *read_table(struct ahci_port *port, const struct ahci_command_memory *memory, uint64_t size,
                                     unsigned *count)
{
    unsigned entries = memory->entries;
    if (!entries || entries > ENTRIES_MAX)
        return NULL;
    uint8_t *raw = malloc(entries * (size_t)ENTRY_SIZE);
    struct ahci_range *range = calloc(entries, sizeof(*range));
    bool ok = raw && range && dma_read(&port->ahci->pci.device.dma, memory->table + TABLE_PRDT, raw, entries * (size_t)ENTRY_SIZE);
    *count = 0;
    for (unsigned i = 0; ok && i < entries && size; i++) {
        uint32_t length;
        memcpy(&range[i].address, raw + i * ENTRY_SIZE, 8);
        memcpy(&length, raw + i * ENTRY_SIZE + 12, 4);
        range[i].address &= ~1ull;
        range[i].size = min_u64((length & BYTE_COUNT_MASK) + 1, size);
        size -= range[i].size;
        *count = i + 1;
    }
    free(raw);
    if (ok && !size)
        return range;
    free(range);
    return NULL;
}

static bool pin(struct ahci_transfer *transfer, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        const struct ahci_range *range = &transfer->range[i];
        int used = dma_map(&transfer->port->ahci->pci.device.dma, range->address, range->size, transfer->plan.op == BLOCK_READ,
                           transfer->iov + transfer->iov_count, (int)(transfer->iov_max - transfer->iov_count));
        if (used < 0)
            return false;
        transfer->iov_count += (unsigned)used;
        transfer->ranges++;
    }
    return true;
}

/* --- begin --- */

/* Too little memory for the data, or none: the command fails as one with a bad descriptor. */
static void overflow(struct ahci_port *port, unsigned slot, struct ata_plan *plan, const struct ahci_command_memory *memory)
{
    guest_error(port->ahci->pci.device.world.log, "%s: port %u: slot %u describes no memory for %lu bytes",
                port->ahci->pci.device.name, port->index, slot, (unsigned long)plan->size);
    ata_refuse(plan, ATA_ABRT);
    ahci_raise(port, PIS_OFS);
    finish(port, slot, plan, memory, 0, false);
}

static void give_answer(struct ahci_port *port, unsigned slot, struct ata_plan *plan, const struct ahci_command_memory *memory)
{
    unsigned count;
    struct ahci_range *range = read_table(port, memory, plan->size, &count);
    const uint8_t *at = plan->answer;
    bool ok = range;
    for (unsigned i = 0; ok && i < count; i++) {
        ok = dma_write(&port->ahci->pci.device.dma, range[i].address, at, range[i].size);
        at += range[i].size;
    }
    free(range);
    if (ok)
        finish(port, slot, plan, memory, plan->size, true);
    else
        overflow(port, slot, plan, memory);
}

static void submit(struct ahci_port *port, unsigned slot, struct ata_plan *plan, const struct ahci_command_memory *memory)
{
    /* A range is more than one piece only where it crosses a border between kinds of memory. */
    unsigned count = 0, iov_max = (unsigned)min_u64(2 * memory->entries + 64, DISK_IOV_MAX);
    struct ahci_transfer *transfer = calloc(1, sizeof(*transfer) + iov_max * sizeof(struct iovec));
    if (transfer) {
        *transfer = (struct ahci_transfer){ .port = port, .slot = (uint8_t)slot, .plan = *plan, .memory = *memory,
                                            .iov_max = iov_max };
        if (plan->size)
            transfer->range = read_table(port, memory, plan->size, &count);
    }
    if (!transfer || (plan->size && (!transfer->range || !pin(transfer, count)))) {
        if (transfer) {
            unpin(transfer);
            free(transfer->range);
        }
        free(transfer);
        overflow(port, slot, plan, memory);
        return;
    }
    transfer->request = (struct block_request){ .op = plan->op, .offset = plan->offset, .size = plan->size, .iov = transfer->iov,
                                                .iov_count = (int)transfer->iov_count, .done = transfer_done,
                                                .owner = transfer };
    port->transfer[slot] = transfer;
    if (!plan->queued) {
        port->busy = true;
        port->reg[PORT_TFD] = ATA_BSY | ATA_DRDY;
    }
    block_submit(port->drive.block, &transfer->request);
}

void ahci_begin(struct ahci_port *port, unsigned slot, const struct ata_command *command,
                const struct ahci_command_memory *memory)
{
    struct ata_plan plan;
    ata_execute(&port->drive, command, &plan);
    /* §5.6.4: the drive has taken a queued command when CI is cleared; the tag must be the slot's number. */
    if (plan.queued) {
        port->reg[PORT_CI] &= ~(1u << slot);
        if (plan.tag != slot)
            ata_refuse(&plan, ATA_ABRT);
    }
    if (plan.kind == ATA_PLAN_BLOCK && port->drive.block)
        submit(port, slot, &plan, memory);
    else if (plan.kind == ATA_PLAN_ANSWER)
        give_answer(port, slot, &plan, memory);
    else
        finish(port, slot, &plan, memory, 0, false);
}
