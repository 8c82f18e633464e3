/*
 * The ACPI tables: RSDP, XSDT, FADT, FACS, MADT, MCFG, HPET and DSDT, one after the other from `tables_base` on. The RSDP comes first,
 * 16-byte aligned in the BIOS area, so that an operating system that is not told where it is finds it by searching
 * (ACPI 6.4 §5.2.5.1 "Finding the RSDP on IA-PC Systems").
 */
#include <stdlib.h>
#include <string.h>

#include "machine/acpi_tables.h"
#include "machine/boot.h"
#include "machine/layout.h"
#include "mem/ram.h"

/* What the power-management chip offers; ports are offsets from PORT_ACPI_PM. */
enum { PM1_EVENT = 0x00, PM1_CONTROL = 0x04, PM_TIMER = 0x08, GPE0 = 0x20, RESET_PORT = 0xCF9, RESET_VALUE = 6 };
enum { LINT1 = 1, X2APIC_ONLY = 255, IOAPIC_ID = 0, RTC_CENTURY = 0x32, NO_C2 = 0xFFF, NO_C3 = 0xFFFF };
/* IA-PC HPET 1.0a §2.3.4: vendor 8086, legacy replacement, 64-bit counter, 3 timers, revision 1 */
static const uint32_t hpet_block_id = 0x8086A201;

/* Tables are made in this buffer, then copied to the guest. */
struct builder {
    uint8_t *bytes;
    uint64_t base, size, used;
    bool full;
};

static uint8_t checksum(const void *data, size_t size)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + ((const uint8_t *)data)[i]);
    return (uint8_t)-sum;
}

static struct acpi_header header(const char *signature, size_t length, uint8_t revision)
{
    struct acpi_header head = { .length = (uint32_t)length, .revision = revision, .oem_revision = 1, .creator_revision = 1 };
    memcpy(head.signature, signature, 4);
    memcpy(head.oem_id, "DOPPEL", 6);
    memcpy(head.oem_table_id, "DOPPEL  ", 8);
    memcpy(head.creator_id, "DPPL", 4);
    return head;
}

/* Appends bytes 64-byte aligned, as the FACS must be; returns their guest-physical address. */
static uint64_t append(struct builder *builder, const void *data, size_t size)
{
    uint64_t at = align_up(builder->used, 64);
    if (at > builder->size || size > builder->size - at) {
        builder->full = true;
        return 0;
    }
    memcpy(builder->bytes + at, data, size);
    builder->used = at + size;
    return builder->base + at;
}

/* A table that starts with a header: sums it up first. */
static uint64_t append_table(struct builder *builder, void *table)
{
    struct acpi_header *head = table;
    head->checksum = 0;
    head->checksum = checksum(table, head->length);
    return append(builder, table, head->length);
}

static struct acpi_address port(uint32_t offset, uint8_t bytes)
{
    enum { ACCESS_BYTE = 1, ACCESS_WORD = 2, ACCESS_DWORD = 3 };
    return (struct acpi_address){ .space = ACPI_IO, .bit_width = (uint8_t)(bytes * 8),
                                  .access_size = bytes == 4 ? ACCESS_DWORD : bytes == 2 ? ACCESS_WORD : ACCESS_BYTE,
                                  .address = PORT_ACPI_PM_BASE + offset };
}

static uint64_t add_facs(struct builder *builder)
{
    const struct acpi_facs facs = { .signature = { 'F', 'A', 'C', 'S' }, .length = sizeof(facs), .version = 2 };
    return append(builder, &facs, sizeof(facs));
}

static uint64_t add_fadt(struct builder *builder, uint64_t facs, uint64_t dsdt)
{
    struct acpi_fadt fadt = {
        .header = header("FACP", sizeof(fadt), 6),
        .minor_version = 4,
        .firmware_ctrl = (uint32_t)facs,
        .dsdt = (uint32_t)dsdt,
        .x_dsdt = dsdt,
        .sci_int = IRQ_SCI,
        .pm1a_evt_blk = (uint32_t)PORT_ACPI_PM_BASE + PM1_EVENT,
        .pm1_evt_len = 4,
        .x_pm1a_evt_blk = port(PM1_EVENT, 4),
        .pm1a_cnt_blk = (uint32_t)PORT_ACPI_PM_BASE + PM1_CONTROL,
        .pm1_cnt_len = 2,
        .x_pm1a_cnt_blk = port(PM1_CONTROL, 2),
        .pm_tmr_blk = (uint32_t)PORT_ACPI_PM_BASE + PM_TIMER,
        .pm_tmr_len = 4,
        .x_pm_tmr_blk = port(PM_TIMER, 4),
        .gpe0_blk = (uint32_t)PORT_ACPI_PM_BASE + GPE0,
        .gpe0_blk_len = 4,
        .x_gpe0_blk = port(GPE0, 4),
        .p_lvl2_lat = NO_C2,
        .p_lvl3_lat = NO_C3,
        .century = RTC_CENTURY,
        .iapc_boot_arch = IAPC_LEGACY_DEVICES | IAPC_VGA_NOT_PRESENT,
        .flags = FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_RESET_REG_SUP | FADT_TMR_VAL_EXT,
        .reset_reg = { .space = ACPI_IO, .bit_width = 8, .access_size = 1, .address = RESET_PORT },
        .reset_value = RESET_VALUE,
    };
    fadt.x_pm1a_evt_blk.access_size = 2;        /* status and enable are 16-bit registers */
    memcpy(&fadt.hypervisor_vendor_identity, "DOPPEL", 6);
    return append_table(builder, &fadt);
}

/* The MADT's length depends on the processors. */
struct madt {
    struct acpi_madt head;
    uint8_t rows[MACHINE_CPUS_MAX * sizeof(struct madt_x2apic) + 256];
};

static void add_row(struct madt *madt, const void *row, uint8_t size)
{
    memcpy((uint8_t *)madt + madt->head.header.length, row, size);
    madt->head.header.length += size;
}

/* §5.2.12.12: an x2APIC structure only for ids that the older structure cannot hold. */
static void add_processor(struct madt *madt, unsigned uid, uint32_t apic_id)
{
    if (apic_id < X2APIC_ONLY) {
        const struct madt_lapic row = { MADT_LAPIC, sizeof(row), (uint8_t)uid, (uint8_t)apic_id, MADT_ENABLED };
        add_row(madt, &row, sizeof(row));
    } else {
        const struct madt_x2apic row = { MADT_X2APIC, sizeof(row), 0, apic_id, MADT_ENABLED, uid };
        add_row(madt, &row, sizeof(row));
    }
}

static uint64_t add_madt(struct builder *builder, const struct acpi_config *config)
{
    struct madt madt = { .head = { .header = header("APIC", sizeof(madt.head), 5), .local_apic_address = (uint32_t)LAPIC_BASE,
                                   .flags = MADT_PCAT_COMPAT } };
    for (unsigned i = 0; i < config->cpus && i < MACHINE_CPUS_MAX; i++)
        add_processor(&madt, i, config->apic_id[i]);
    const struct madt_ioapic ioapic = { MADT_IOAPIC, sizeof(ioapic), IOAPIC_ID, 0, (uint32_t)IOAPIC_BASE, 0 };
    const struct madt_override pit = { MADT_OVERRIDE, sizeof(pit), 0, IRQ_PIT, 2, MPS_ACTIVE_HIGH_EDGE };
    const struct madt_override sci = { MADT_OVERRIDE, sizeof(sci), 0, IRQ_SCI, IRQ_SCI, MPS_ACTIVE_HIGH_LEVEL };
    const struct madt_lapic_nmi nmi = { MADT_LAPIC_NMI, sizeof(nmi), 0xFF, MPS_ACTIVE_HIGH_EDGE, LINT1 };
    add_row(&madt, &ioapic, sizeof(ioapic));
    add_row(&madt, &pit, sizeof(pit));
    add_row(&madt, &sci, sizeof(sci));
    add_row(&madt, &nmi, sizeof(nmi));
    return append_table(builder, &madt);
}

static uint64_t add_mcfg(struct builder *builder, uint64_t ecam_base)
{
    struct acpi_mcfg mcfg = { .header = header("MCFG", sizeof(mcfg), 1), .base = ecam_base, .last_bus = 0xFF };
    return append_table(builder, &mcfg);
}

static uint64_t add_hpet(struct builder *builder)
{
    struct acpi_hpet hpet = { .header = header("HPET", sizeof(hpet), 1), .event_timer_block_id = hpet_block_id,
                              .base = { .space = ACPI_MEMORY, .bit_width = 64, .address = HPET_BASE }, .minimum_tick = 0x80 };
    return append_table(builder, &hpet);
}

/* RSDP: the first 20 bytes have a checksum of their own, for readers of ACPI 1.0. */
static void finish_rsdp(struct acpi_rsdp *rsdp, uint64_t xsdt)
{
    *rsdp = (struct acpi_rsdp){ .signature = "RSD PTR", .oem_id = "DOPPEL", .revision = 2, .length = sizeof(*rsdp),
                                .xsdt_address = xsdt };
    rsdp->signature[7] = ' ';
    rsdp->checksum = checksum(rsdp, 20);
    rsdp->extended_checksum = checksum(rsdp, sizeof(*rsdp));
}

static bool build(const struct acpi_config *config, struct builder *builder)
{
    struct acpi_rsdp rsdp = { 0 };
    struct acpi_xsdt xsdt = { .header = header("XSDT", sizeof(xsdt.header), 1) };
    uint64_t table[ACPI_TABLES_MAX];
    unsigned count = 0;
    uint32_t dsdt_size;
    const uint8_t *dsdt = acpi_dsdt(&dsdt_size);
    append(builder, &rsdp, sizeof(rsdp));
    uint64_t facs = add_facs(builder);
    table[count++] = add_fadt(builder, facs, append(builder, dsdt, dsdt_size));
    table[count++] = add_madt(builder, config);
    table[count++] = add_mcfg(builder, config->ecam_base);
    if (config->hpet)
        table[count++] = add_hpet(builder);
    for (unsigned i = 0; i < count; i++)
        xsdt.entry[i] = table[i];
    xsdt.header.length += count * (uint32_t)sizeof(xsdt.entry[0]);
    finish_rsdp(&rsdp, append_table(builder, &xsdt));
    memcpy(builder->bytes, &rsdp, sizeof(rsdp));
    return !builder->full;
}

uint64_t acpi_build(const struct acpi_config *config, struct ram *ram, uint64_t tables_base, uint64_t tables_size)
{
    struct builder builder = { .bytes = calloc(1, tables_size), .base = tables_base, .size = tables_size };
    bool done = builder.bytes && build(config, &builder) && ram_load(ram, tables_base, builder.bytes, builder.used);
    free(builder.bytes);
    return done ? tables_base : 0;
}
