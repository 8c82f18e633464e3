/*
 * LPC bridge in the likeness of Intel's ICH9 (I/O Controller Hub 9 datasheet, 316972 §13 "LPC Interface Bridge Registers"), at
 * device 31 function 0, where firmware looks for it. Each of the eight PCI interrupt lines PIRQA to PIRQH reaches its own
 * I/O APIC input, and besides that input of the 8259s which its PIRQx_ROUT register names.
 *
 * NOTE(spec): PMBASE cannot be moved and ACPI decoding not switched off: the power-management block (dev/acpi_pm.c) stands
 * at the one place that all firmware gives it. Not modelled: the root complex registers behind RCBA, GPIO, decode ranges.
 */
#include "dev/pci/lpc.h"

/* --- registers --- */

enum {
    LPC_VENDOR = 0x8086,
    LPC_DEVICE = 0x2918,
    LPC_CLASS = 0x060100,
    LPC_PMBASE = 0x40,          /* §13.1.13 */
    LPC_ACPI_CNTL = 0x44,       /* §13.1.14 */
    LPC_PIRQA_ROUT = 0x60,      /* §13.1.17: PIRQA to PIRQD */
    LPC_PIRQE_ROUT = 0x68,      /* §13.1.19: PIRQE to PIRQH */
    LPC_RCBA = 0xF0,            /* §13.1.35 */
    MULTIFUNCTION = 1 << 7,     /* of the header type */
    ROUT_OFF = 1 << 7,          /* IRQEN: 1 is "not routed to the 8259" */
    ROUT_IRQ = 0x0F,
    ACPI_CNTL_EN = 1 << 7,
    ACPI_CNTL_SCI = 7,
    PMBASE_VALUE = 0x600 | 1,
    ROUTABLE = 0xDEF8,          /* 3 to 7, 9 to 12, 14 and 15; the other values are reserved */
};
static const uint32_t rcba_writable = 0xFFFFC001;

/* --- helpers --- */

static unsigned rout_offset(unsigned n) { return n < 4 ? LPC_PIRQA_ROUT + n : LPC_PIRQE_ROUT + n - 4; }

static bool routed_to(const struct lpc *lpc, unsigned n, unsigned irq)
{
    uint8_t rout = lpc->pci.config[rout_offset(n)];
    return !(rout & ROUT_OFF) && (rout & ROUT_IRQ) == irq;
}

static void update_irq(struct lpc *lpc, unsigned irq)
{
    bool level = false;
    for (unsigned n = 0; n < PCI_INTX_LINES; n++)
        level |= lpc->pirq[n] && routed_to(lpc, n, irq);
    irq_set(&lpc->irq[irq], level);
}

static void update_all(struct lpc *lpc)
{
    for (unsigned irq = 0; irq < LPC_ISA_IRQS; irq++)
        if (ROUTABLE & BIT(irq))
            update_irq(lpc, irq);
}

void lpc_set_pirq(void *sink, unsigned n, bool level)
{
    struct lpc *lpc = sink;
    lpc->pirq[n] = level;
    irq_set(&lpc->apic[n], level);
    uint8_t rout = lpc->pci.config[rout_offset(n)];
    if (!(rout & ROUT_OFF) && ROUTABLE & BIT(rout & ROUT_IRQ))
        update_irq(lpc, rout & ROUT_IRQ);
}

void lpc_route(struct lpc *lpc, unsigned n, uint8_t irq)
{
    pci_config_write(&lpc->pci, rout_offset(n), 1, irq);
}

/* --- access --- */

static void config_written(struct pci_function *function, unsigned offset, unsigned size)
{
    if (offset < LPC_PIRQE_ROUT + 4 && offset + size > LPC_PIRQA_ROUT)
        update_all((struct lpc *)function);
}

/* --- reset, init --- */

static void lpc_reset(struct device *device)
{
    struct lpc *lpc = (struct lpc *)device;
    pci_function_reset(&lpc->pci);
    for (unsigned n = 0; n < PCI_INTX_LINES; n++) {
        lpc->pci.config[rout_offset(n)] = ROUT_OFF;
        lpc_set_pirq(lpc, n, false);
    }
    update_all(lpc);
}

static void lpc_resume(struct device *device)
{
    struct lpc *lpc = (struct lpc *)device;
    pci_function_resume(&lpc->pci);
    for (unsigned n = 0; n < PCI_INTX_LINES; n++)
        irq_set(&lpc->apic[n], lpc->pirq[n]);
    update_all(lpc);
}

static bool lpc_init(struct device *device, struct error *err)
{
    struct lpc *lpc = (struct lpc *)device;
    static const struct pci_identity identity = { LPC_VENDOR, LPC_DEVICE, 0x1AF4, 0x1100, LPC_CLASS, 2 };
    lpc->pci.conventional = true;
    if (!pci_function_init(&lpc->pci, &identity, err))
        return false;
    lpc->pci.config[PCI_HEADER_TYPE] = MULTIFUNCTION;
    pci_set(lpc->pci.config, LPC_PMBASE, 4, PMBASE_VALUE);
    lpc->pci.write_mask[LPC_ACPI_CNTL] = ACPI_CNTL_SCI;
    lpc->pci.config[LPC_ACPI_CNTL] = ACPI_CNTL_EN;
    for (unsigned n = 0; n < PCI_INTX_LINES; n++)
        lpc->pci.write_mask[rout_offset(n)] = ROUT_OFF | ROUT_IRQ;
    pci_set(lpc->pci.write_mask, LPC_RCBA, 4, rcba_writable);
    lpc->pci.config_written = config_written;
    return true;
}

static void lpc_fini(struct device *device) { pci_function_fini((struct pci_function *)device); }

/* --- state list, type --- */

static const struct state_field lpc_fields[] = {
    STATE_NESTED(struct lpc, pci, pci_function_state),
    STATE_ARRAY(struct lpc, pirq),
};
static const struct state_list lpc_state = STATE_LIST("lpc", 1, lpc_fields);

const struct device_type device_lpc = {
    .name = "lpc",
    .text = "LPC bridge and PCI interrupt router (ICH9)",
    .size = sizeof(struct lpc),
    .state = &lpc_state,
    .init = lpc_init,
    .reset = lpc_reset,
    .resume = lpc_resume,
    .fini = lpc_fini,
};
