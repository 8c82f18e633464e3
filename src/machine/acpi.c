/*
 * The ACPI tables: FACS, DSDT, FADT, MADT, MCFG, SSDT, HPET, RSDT and XSDT, one after the other in a blob that knows where its
 * pointers and checksums are, so that it can be put anywhere: by us (acpi_place), or by firmware through the table
 * loader (firmware_acpi.c). The RSDP is apart, 16-byte aligned in the BIOS area, so that an operating system that is
 * not told where it is finds it by searching (ACPI 6.4 §5.2.5.1 "Finding the RSDP on IA-PC Systems").
 */
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

/* Appends bytes 64-byte aligned, as the FACS must be; returns their offset. */
static uint32_t append(struct acpi_blob *blob, const void *data, size_t size)
{
    uint32_t at = (uint32_t)align_up(blob->size, 64);
    if (at > sizeof(blob->bytes) || size > sizeof(blob->bytes) - at) {
        blob->full = true;
        return 0;
    }
    memcpy(blob->bytes + at, data, size);
    blob->size = at + (uint32_t)size;
    return at;
}

/* A table that starts with a header: it is summed up when its place is known. */
static uint32_t append_table(struct acpi_blob *blob, const void *table)
{
    const struct acpi_header *head = table;
    uint32_t at = append(blob, table, head->length);
    if (blob->table_count < ACPI_TABLES_MAX)
        blob->table[blob->table_count++] = at;
    else
        blob->full = true;
    return at;
}

/* The field at the offset holds an offset within the blob that is to become an address. */
static void point(struct acpi_blob *blob, uint32_t at, uint8_t size)
{
    if (blob->pointer_count < ACPI_POINTERS_MAX)
        blob->pointer[blob->pointer_count++] = (struct acpi_pointer){ at, size };
    else
        blob->full = true;
}

static struct acpi_address port(uint32_t offset, uint8_t bytes)
{
    enum { ACCESS_BYTE = 1, ACCESS_WORD = 2, ACCESS_DWORD = 3 };
    return (struct acpi_address){ .space = ACPI_IO, .bit_width = (uint8_t)(bytes * 8),
                                  .access_size = bytes == 4 ? ACCESS_DWORD : bytes == 2 ? ACCESS_WORD : ACCESS_BYTE,
                                  .address = PORT_ACPI_PM_BASE + offset };
}

static uint32_t add_facs(struct acpi_blob *blob)
{
    const struct acpi_facs facs = { .signature = { 'F', 'A', 'C', 'S' }, .length = sizeof(facs), .version = 2 };
    return append(blob, &facs, sizeof(facs));
}

static uint32_t add_fadt(struct acpi_blob *blob, uint32_t facs, uint32_t dsdt, bool vga)
{
    struct acpi_fadt fadt = {
        .header = header("FACP", sizeof(fadt), 6),
        .minor_version = 4,
        .firmware_ctrl = facs,
        .dsdt = dsdt,
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
        .iapc_boot_arch = IAPC_LEGACY_DEVICES | (vga ? IAPC_8042 : IAPC_VGA_NOT_PRESENT),
        .flags = FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_RESET_REG_SUP | FADT_TMR_VAL_EXT,
        .reset_reg = { .space = ACPI_IO, .bit_width = 8, .access_size = 1, .address = RESET_PORT },
        .reset_value = RESET_VALUE,
    };
    fadt.x_pm1a_evt_blk.access_size = 2;        /* status and enable are 16-bit registers */
    memcpy(&fadt.hypervisor_vendor_identity, "DOPPEL", 6);
    uint32_t at = append_table(blob, &fadt);
    point(blob, at + offsetof(struct acpi_fadt, firmware_ctrl), 4);
    point(blob, at + offsetof(struct acpi_fadt, dsdt), 4);
    point(blob, at + offsetof(struct acpi_fadt, x_dsdt), 8);
    return at;
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

static uint32_t add_madt(struct acpi_blob *blob, const struct acpi_config *config)
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
    return append_table(blob, &madt);
}

static uint32_t add_mcfg(struct acpi_blob *blob, uint64_t ecam_base)
{
    struct acpi_mcfg mcfg = { .header = header("MCFG", sizeof(mcfg), 1), .base = ecam_base, .last_bus = 0xFF };
    return append_table(blob, &mcfg);
}

/* ACPI 6.4 §20.2: Name (\NAME, value). */
static struct acpi_named_integer named_integer(const char *name, uint32_t value)
{
    struct acpi_named_integer named = { .name_op = 0x08, .root = '\\', .dword_prefix = 0x0C, .value = value };
    memcpy(named.name, name, sizeof(named.name));
    return named;
}

/* What the DSDT has to be told: where ECAM is, and whether there are a keyboard and a mouse. */
static uint32_t add_ssdt(struct acpi_blob *blob, const struct acpi_config *config)
{
    struct acpi_ssdt ssdt = { .header = header("SSDT", sizeof(ssdt), 1),
                              .named = { named_integer("ECAM", (uint32_t)config->ecam_base), named_integer("PS2P", config->vga) } };
    return append_table(blob, &ssdt);
}

static uint32_t add_hpet(struct acpi_blob *blob)
{
    struct acpi_hpet hpet = { .header = header("HPET", sizeof(hpet), 1), .event_timer_block_id = hpet_block_id,
                              .base = { .space = ACPI_MEMORY, .bit_width = 64, .address = HPET_BASE }, .minimum_tick = 0x80 };
    return append_table(blob, &hpet);
}

static uint32_t add_rsdt(struct acpi_blob *blob, const uint32_t *table, unsigned count)
{
    struct acpi_rsdt rsdt = { .header = header("RSDT", sizeof(rsdt.header) + count * sizeof(rsdt.entry[0]), 1) };
    for (unsigned i = 0; i < count; i++)
        rsdt.entry[i] = table[i];
    uint32_t at = append_table(blob, &rsdt);
    for (unsigned i = 0; i < count; i++)
        point(blob, at + (uint32_t)offsetof(struct acpi_rsdt, entry[i]), 4);
    return at;
}

static uint32_t add_xsdt(struct acpi_blob *blob, const uint32_t *table, unsigned count)
{
    struct acpi_xsdt xsdt = { .header = header("XSDT", sizeof(xsdt.header) + count * sizeof(xsdt.entry[0]), 1) };
    for (unsigned i = 0; i < count; i++)
        xsdt.entry[i] = table[i];
    uint32_t at = append_table(blob, &xsdt);
    for (unsigned i = 0; i < count; i++)
        point(blob, at + (uint32_t)offsetof(struct acpi_xsdt, entry[i]), 8);
    return at;
}

bool acpi_build(const struct acpi_config *config, struct acpi_blob *blob)
{
    uint32_t table[ACPI_TABLES_MAX], dsdt_size;
    unsigned count = 0;
    const uint8_t *dsdt = acpi_dsdt(&dsdt_size);
    *blob = (struct acpi_blob){ 0 };
    uint32_t facs = add_facs(blob);
    table[count++] = add_fadt(blob, facs, append(blob, dsdt, dsdt_size), config->vga);
    table[count++] = add_madt(blob, config);
    if (config->ecam_base)
        table[count++] = add_mcfg(blob, config->ecam_base);
    table[count++] = add_ssdt(blob, config);
    if (config->hpet)
        table[count++] = add_hpet(blob);
    blob->rsdt = add_rsdt(blob, table, count);
    blob->xsdt = add_xsdt(blob, table, count);
    blob->rsdp = (struct acpi_rsdp){ .signature = { 'R', 'S', 'D', ' ', 'P', 'T', 'R', ' ' }, .oem_id = "DOPPEL", .revision = 2,
                                     .length = sizeof(blob->rsdp), .rsdt_address = blob->rsdt, .xsdt_address = blob->xsdt };
    return !blob->full;
}

/* --- putting them where they are found --- */

static void relocate(struct acpi_blob *blob, uint64_t base)
{
    for (unsigned i = 0; i < blob->pointer_count; i++) {
        uint64_t value = 0;
        uint8_t *at = blob->bytes + blob->pointer[i].at;
        memcpy(&value, at, blob->pointer[i].size);
        value += base;
        memcpy(at, &value, blob->pointer[i].size);
    }
    for (unsigned i = 0; i < blob->table_count; i++) {
        struct acpi_header *head = (struct acpi_header *)(blob->bytes + blob->table[i]);
        head->checksum = checksum(head, head->length);
    }
    struct acpi_rsdp *rsdp = &blob->rsdp;
    rsdp->rsdt_address += (uint32_t)base;
    rsdp->xsdt_address += base;
    /* The first 20 bytes have a checksum of their own, for readers of ACPI 1.0. */
    rsdp->checksum = checksum(rsdp, 20);
    rsdp->extended_checksum = checksum(rsdp, sizeof(*rsdp));
}

uint64_t acpi_place(struct acpi_blob *blob, struct ram *ram, uint64_t base, uint64_t size)
{
    const uint64_t tables = base + align_up(sizeof(blob->rsdp), 64);
    if (tables + blob->size > base + size)
        return 0;
    relocate(blob, tables);
    return ram_load(ram, base, &blob->rsdp, sizeof(blob->rsdp)) && ram_load(ram, tables, blob->bytes, blob->size) ? base : 0;
}
