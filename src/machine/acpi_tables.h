/*
 * Layouts of the ACPI tables that acpi.c writes (ACPI Specification 6.4 §5.2; HPET: IA-PC HPET 1.0a §3.2.4; MCFG: PCI
 * Firmware Specification 3.2 §4.1.2). Field names are the specification's, in snake case.
 */
#ifndef DOPPEL_MACHINE_ACPI_TABLES_H
#define DOPPEL_MACHINE_ACPI_TABLES_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#define ACPI_PACKED __attribute__((packed))

struct acpi_header {
    char signature[4];
    uint32_t length;
    uint8_t revision, checksum;
    char oem_id[6], oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
} ACPI_PACKED;

/* §5.2.3.2 "Generic Address Structure" */
enum { ACPI_MEMORY = 0, ACPI_IO = 1 };
struct acpi_address {
    uint8_t space, bit_width, bit_offset, access_size;
    uint64_t address;
} ACPI_PACKED;

/* §5.2.5.3 "Root System Description Pointer (RSDP) Structure" */
struct acpi_rsdp {
    char signature[8];
    uint8_t checksum;
    char oem_id[6];
    uint8_t revision;
    uint32_t rsdt_address, length;
    uint64_t xsdt_address;
    uint8_t extended_checksum, reserved[3];
} ACPI_PACKED;

enum { ACPI_TABLES_MAX = 10 };
struct acpi_rsdt {
    struct acpi_header header;
    uint32_t entry[ACPI_TABLES_MAX];
} ACPI_PACKED;
struct acpi_xsdt {
    struct acpi_header header;
    uint64_t entry[ACPI_TABLES_MAX];
} ACPI_PACKED;

/* §20.2.5.1 "Namespace Modifier Objects Encoding": an SSDT that names integers */
struct acpi_ssdt {
    struct acpi_header header;
    struct acpi_named_integer {
        uint8_t name_op, root;
        char name[4];
        uint8_t dword_prefix;
        uint32_t value;
    } ACPI_PACKED named[2];
} ACPI_PACKED;

/* §5.2.9 "Fixed ACPI Description Table (FADT)", revision 6 */
struct acpi_fadt {
    struct acpi_header header;
    uint32_t firmware_ctrl, dsdt;
    uint8_t reserved0, preferred_pm_profile;
    uint16_t sci_int;
    uint32_t smi_cmd;
    uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
    uint32_t pm1a_evt_blk, pm1b_evt_blk, pm1a_cnt_blk, pm1b_cnt_blk, pm2_cnt_blk, pm_tmr_blk, gpe0_blk, gpe1_blk;
    uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_blk_len, gpe1_blk_len, gpe1_base, cst_cnt;
    uint16_t p_lvl2_lat, p_lvl3_lat, flush_size, flush_stride;
    uint8_t duty_offset, duty_width, day_alrm, mon_alrm, century;
    uint16_t iapc_boot_arch;
    uint8_t reserved1;
    uint32_t flags;
    struct acpi_address reset_reg;
    uint8_t reset_value;
    uint16_t arm_boot_arch;
    uint8_t minor_version;
    uint64_t x_firmware_ctrl, x_dsdt;
    struct acpi_address x_pm1a_evt_blk, x_pm1b_evt_blk, x_pm1a_cnt_blk, x_pm1b_cnt_blk, x_pm2_cnt_blk, x_pm_tmr_blk,
        x_gpe0_blk, x_gpe1_blk, sleep_control_reg, sleep_status_reg;
    uint64_t hypervisor_vendor_identity;
} ACPI_PACKED;

/* §5.2.9 table 5.10 "Fixed ACPI Description Table Fixed Feature Flags", and table 5.11 "IA-PC Boot Architecture Flags" */
enum { FADT_WBINVD = 1 << 0, FADT_PROC_C1 = 1 << 2, FADT_SLP_BUTTON = 1 << 5, FADT_TMR_VAL_EXT = 1 << 8,
       FADT_RESET_REG_SUP = 1 << 10 };
enum { IAPC_LEGACY_DEVICES = 1 << 0, IAPC_8042 = 1 << 1, IAPC_VGA_NOT_PRESENT = 1 << 2 };

/* §5.2.10 "Firmware ACPI Control Structure (FACS)": has no checksum, and stands at a multiple of 64 */
struct acpi_facs {
    char signature[4];
    uint32_t length, hardware_signature, firmware_waking_vector, global_lock, flags;
    uint64_t x_firmware_waking_vector;
    uint8_t version, reserved0[3];
    uint32_t ospm_flags;
    uint8_t reserved1[24];
} ACPI_PACKED;

/* §5.2.12 "Multiple APIC Description Table (MADT)" and its structures */
struct acpi_madt {
    struct acpi_header header;
    uint32_t local_apic_address, flags;
} ACPI_PACKED;
enum { MADT_PCAT_COMPAT = 1, MADT_ENABLED = 1 };
enum { MADT_LAPIC = 0, MADT_IOAPIC = 1, MADT_OVERRIDE = 2, MADT_LAPIC_NMI = 4, MADT_X2APIC = 9, MADT_X2APIC_NMI = 10 };
enum { MPS_ACTIVE_HIGH_EDGE = 5, MPS_ACTIVE_HIGH_LEVEL = 0xD };

struct madt_lapic {
    uint8_t type, length, processor_uid, apic_id;
    uint32_t flags;
} ACPI_PACKED;
struct madt_ioapic {
    uint8_t type, length, io_apic_id, reserved;
    uint32_t address, gsi_base;
} ACPI_PACKED;
struct madt_override {
    uint8_t type, length, bus, source;
    uint32_t gsi;
    uint16_t flags;
} ACPI_PACKED;
struct madt_lapic_nmi {
    uint8_t type, length, processor_uid;
    uint16_t flags;
    uint8_t lint;
} ACPI_PACKED;
struct madt_x2apic {
    uint8_t type, length;
    uint16_t reserved;
    uint32_t x2apic_id, flags, processor_uid;
} ACPI_PACKED;
struct madt_x2apic_nmi {
    uint8_t type, length;
    uint16_t flags;
    uint32_t processor_uid;
    uint8_t lint, reserved[3];
} ACPI_PACKED;

struct acpi_mcfg {
    struct acpi_header header;
    uint64_t reserved0;
    uint64_t base;
    uint16_t segment;
    uint8_t first_bus, last_bus;
    uint32_t reserved1;
} ACPI_PACKED;

struct acpi_hpet {
    struct acpi_header header;
    uint32_t event_timer_block_id;
    struct acpi_address base;
    uint8_t number;
    uint16_t minimum_tick;
    uint8_t page_protection;
} ACPI_PACKED;

static_assert(sizeof(struct acpi_header) == 36 && sizeof(struct acpi_address) == 12 && sizeof(struct acpi_rsdp) == 36 &&
              sizeof(struct acpi_fadt) == 276 && sizeof(struct acpi_madt) == 44 && sizeof(struct acpi_mcfg) == 60 &&
              sizeof(struct acpi_hpet) == 56 && sizeof(struct acpi_facs) == 64 && sizeof(struct madt_lapic) == 8 && sizeof(struct madt_ioapic) == 12 &&
              sizeof(struct madt_override) == 10 && sizeof(struct madt_lapic_nmi) == 6 && sizeof(struct madt_x2apic) == 16 &&
              sizeof(struct madt_x2apic_nmi) == 12 && sizeof(struct acpi_ssdt) == 58, "layouts are the specification's");

/*
 * All tables but the RSDP, relocatable: the fields of `pointer` hold offsets within `bytes` until the blob's address is known,
 * and the tables at `table` lack their checksums. The RSDP's two addresses are offsets of that kind, too.
 */
enum { ACPI_POINTERS_MAX = 32, ACPI_BLOB_SIZE = 0x8000 };
struct acpi_pointer {
    uint32_t at;
    uint8_t size;       /* bytes: 4 or 8 */
};
struct acpi_blob {
    uint8_t bytes[ACPI_BLOB_SIZE];
    uint32_t size;
    struct acpi_pointer pointer[ACPI_POINTERS_MAX];
    unsigned pointer_count;
    uint32_t table[ACPI_TABLES_MAX];
    unsigned table_count;
    uint32_t rsdt, xsdt;
    struct acpi_rsdp rsdp;
    bool full;          /* it has not all fitted in */
};

/* The compiled DSDT (dsdt.asl). */
const uint8_t *acpi_dsdt(uint32_t *size);

#endif
