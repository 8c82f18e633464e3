/*
 * The educational PCI device 1234:11e8 that QEMU documents ("EDU device", docs/specs/edu): a liveness check, a factorial
 * computed in the background, a DMA engine with a 4 KiB buffer, and interrupts by MSI or INTx. People who teach drivers
 * and who test IOMMUs use it. Addresses for DMA have 28 bits, as there.
 */
#include "dev/pci/pci.h"

#include <string.h>

/* --- registers --- */

enum {
    EDU_ID = 0x00,              /* read-only: version 1.0, 0xED */
    EDU_LIVENESS = 0x04,        /* reads back inverted */
    EDU_FACTORIAL = 0x08,
    EDU_STATUS = 0x20,
    EDU_IRQ_STATUS = 0x24,
    EDU_IRQ_RAISE = 0x60,
    EDU_IRQ_ACK = 0x64,
    EDU_DMA_SOURCE = 0x80,
    EDU_DMA_DESTINATION = 0x88,
    EDU_DMA_COUNT = 0x90,
    EDU_DMA_COMMAND = 0x98,

    STATUS_COMPUTING = 0x01,
    STATUS_IRQ_WHEN_DONE = 0x80,
    IRQ_FACTORIAL = 0x001,
    IRQ_DMA = 0x100,
    DMA_RUN = 0x1,
    DMA_TO_RAM = 0x2,
    DMA_IRQ_WHEN_DONE = 0x4,

    EDU_IDENTIFICATION = 0x010000ED,
    EDU_BAR_SIZE = 0x100000,
    BUFFER_SIZE = 4096,
    BUFFER_ADDRESS = 0x40000,   /* where the buffer lies in the engine's addresses */
    DMA_ADDRESS_BITS = 28,
    FACTORIAL_NS = 20 * 1000,
    DMA_NS = 50 * 1000,
};

/* --- state --- */

struct edu {
    struct pci_function pci;
    uint32_t liveness, factorial, status, irq_status;
    uint64_t dma_source, dma_destination, dma_count, dma_command;
    uint8_t buffer[BUFFER_SIZE];
    struct timer factorial_timer, dma_timer;
};

/* --- helpers --- */

static void raise_irq(struct edu *edu, uint32_t bits_set)
{
    edu->irq_status |= bits_set;
    if (!edu->irq_status)
        return;
    if (pci_msi_enabled(&edu->pci))
        pci_msi_send(&edu->pci, 0);
    else
        pci_intx(&edu->pci, true);
}

static void acknowledge_irq(struct edu *edu, uint32_t bits_cleared)
{
    edu->irq_status &= ~bits_cleared;
    if (!edu->irq_status)
        pci_intx(&edu->pci, false);
}

/* Modulo 2^32, as the register is: from 34 on there are 32 factors of two in it. */
static uint32_t factorial(uint32_t n)
{
    uint32_t product = 1;
    if (n >= 34)
        return 0;
    for (; n > 1; n--)
        product *= n;
    return product;
}

static void factorial_done(void *owner)
{
    struct edu *edu = owner;
    edu->factorial = factorial(edu->factorial);
    edu->status &= ~(uint32_t)STATUS_COMPUTING;
    if (edu->status & STATUS_IRQ_WHEN_DONE)
        raise_irq(edu, IRQ_FACTORIAL);
}

static bool in_buffer(uint64_t address, uint64_t size)
{
    return address >= BUFFER_ADDRESS && size <= BUFFER_SIZE && address - BUFFER_ADDRESS <= BUFFER_SIZE - size;
}

static void dma_transfer(struct edu *edu)
{
    bool to_ram = edu->dma_command & DMA_TO_RAM;
    uint64_t device_side = to_ram ? edu->dma_source : edu->dma_destination;
    uint64_t ram_side = (to_ram ? edu->dma_destination : edu->dma_source) & (BIT(DMA_ADDRESS_BITS) - 1);
    uint64_t size = edu->dma_count;
    const struct dma *dma = &edu->pci.device.dma;
    if (!in_buffer(device_side, size)) {
        guest_error(edu->pci.device.world.log, "edu: %#lx bytes at %#lx are not in the buffer", (unsigned long)size,
                    (unsigned long)device_side);
        return;
    }
    uint8_t *at = edu->buffer + (device_side - BUFFER_ADDRESS);
    if (!(to_ram ? dma_write(dma, ram_side, at, size) : dma_read(dma, ram_side, at, size)))
        guest_error(edu->pci.device.world.log, "edu: DMA at %#lx was refused", (unsigned long)ram_side);
}

static void dma_done(void *owner)
{
    struct edu *edu = owner;
    dma_transfer(edu);
    edu->dma_command &= ~(uint64_t)DMA_RUN;
    if (edu->dma_command & DMA_IRQ_WHEN_DONE)
        raise_irq(edu, IRQ_DMA);
}

static void start(struct edu *edu, struct timer *timer, uint64_t ns)
{
    timer_arm(timer, clock_ns(edu->pci.device.world.clock) + ns);
}

/* --- access --- */

static uint64_t edu_read(struct edu *edu, uint64_t offset)
{
    switch (offset) {
    case EDU_ID: return EDU_IDENTIFICATION;
    case EDU_LIVENESS: return edu->liveness;
    case EDU_FACTORIAL: return edu->factorial;
    case EDU_STATUS: return edu->status;
    case EDU_IRQ_STATUS: return edu->irq_status;
    case EDU_DMA_SOURCE: return edu->dma_source;
    case EDU_DMA_DESTINATION: return edu->dma_destination;
    case EDU_DMA_COUNT: return edu->dma_count;
    case EDU_DMA_COMMAND: return edu->dma_command;
    default: return ~0ull;
    }
}

static void dma_register_write(struct edu *edu, uint64_t offset, uint64_t value)
{
    if (edu->dma_command & DMA_RUN)
        return;                 /* the engine's registers are locked while it runs */
    switch (offset) {
    case EDU_DMA_SOURCE: edu->dma_source = value; break;
    case EDU_DMA_DESTINATION: edu->dma_destination = value; break;
    case EDU_DMA_COUNT: edu->dma_count = value; break;
    case EDU_DMA_COMMAND:
        edu->dma_command = value & (DMA_RUN | DMA_TO_RAM | DMA_IRQ_WHEN_DONE);
        if (value & DMA_RUN)
            start(edu, &edu->dma_timer, DMA_NS);
        break;
    }
}

static void edu_write(struct edu *edu, uint64_t offset, uint64_t value)
{
    switch (offset) {
    case EDU_LIVENESS: edu->liveness = ~(uint32_t)value; break;
    case EDU_FACTORIAL:
        if (edu->status & STATUS_COMPUTING)
            break;
        edu->factorial = (uint32_t)value;
        edu->status |= STATUS_COMPUTING;
        start(edu, &edu->factorial_timer, FACTORIAL_NS);
        break;
    case EDU_STATUS:
        edu->status = (edu->status & STATUS_COMPUTING) | (value & STATUS_IRQ_WHEN_DONE);
        break;
    case EDU_IRQ_RAISE: raise_irq(edu, (uint32_t)value); break;
    case EDU_IRQ_ACK: acknowledge_irq(edu, (uint32_t)value); break;
    default: dma_register_write(edu, offset, value); break;
    }
}

/* Four bytes wide below 0x80, four or eight from there on. */
static enum access_result edu_access(void *owner, struct access *access)
{
    struct edu *edu = owner;
    bool wide_enough = access->size == 4 || (access->size == 8 && access->address >= EDU_DMA_SOURCE);
    if (access->write && wide_enough)
        edu_write(edu, access->address, access->value);
    else if (!access->write)
        access->value = (wide_enough ? edu_read(edu, access->address) : ~0ull) & size_mask(access->size);
    return ACCESS_OK;
}

/* --- reset, init --- */

static void edu_reset(struct device *device)
{
    struct edu *edu = (struct edu *)device;
    timer_disarm(&edu->factorial_timer);
    timer_disarm(&edu->dma_timer);
    edu->liveness = edu->factorial = edu->status = edu->irq_status = 0;
    edu->dma_source = edu->dma_destination = edu->dma_count = edu->dma_command = 0;
    memset(edu->buffer, 0, sizeof(edu->buffer));
    pci_function_reset(&edu->pci);
}

static bool edu_init(struct device *device, struct error *err)
{
    struct edu *edu = (struct edu *)device;
    static const struct pci_identity identity = { 0x1234, 0x11E8, 0x1AF4, 0x1100, 0x00FF00, 0x10 };
    if (!pci_function_init(&edu->pci, &identity, err))
        return false;
    pci_add_msi(&edu->pci);
    pci_bar_init(&edu->pci, 0, "edu", EDU_BAR_SIZE, false, false, edu_access, edu);
    edu->pci.bar[0].region.access_min = 4;
    edu->pci.bar[0].region.access_max = 8;
    timer_init(&edu->factorial_timer, device->world.clock, factorial_done, edu);
    timer_init(&edu->dma_timer, device->world.clock, dma_done, edu);
    return true;
}

/* What was under way starts again: it has no effect before its end. */
static void edu_resume(struct device *device)
{
    struct edu *edu = (struct edu *)device;
    pci_function_resume(&edu->pci);
    if (edu->status & STATUS_COMPUTING)
        start(edu, &edu->factorial_timer, FACTORIAL_NS);
    if (edu->dma_command & DMA_RUN)
        start(edu, &edu->dma_timer, DMA_NS);
}

static void edu_fini(struct device *device)
{
    struct edu *edu = (struct edu *)device;
    timer_disarm(&edu->factorial_timer);
    timer_disarm(&edu->dma_timer);
    pci_function_fini(&edu->pci);
}

/* --- state, type --- */

static const struct state_field fields[] = {
    STATE_NESTED(struct edu, pci, pci_function_state),
    STATE_SCALAR(struct edu, liveness),
    STATE_SCALAR(struct edu, factorial),
    STATE_SCALAR(struct edu, status),
    STATE_SCALAR(struct edu, irq_status),
    STATE_SCALAR(struct edu, dma_source),
    STATE_SCALAR(struct edu, dma_destination),
    STATE_SCALAR(struct edu, dma_count),
    STATE_SCALAR(struct edu, dma_command),
    STATE_BLOB(struct edu, buffer),
};
static const struct state_list state = STATE_LIST("edu", 1, fields);

const struct device_type device_edu = {
    .name = "edu",
    .text = "educational PCI device (1234:11e8)",
    .size = sizeof(struct edu),
    .state = &state,
    .init = edu_init,
    .reset = edu_reset,
    .resume = edu_resume,
    .fini = edu_fini,
};
