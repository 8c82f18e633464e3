/* The ACPI tables: checksums, the chain from the RSDP, and that iasl takes every one of them apart again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "boot_images.h"
#include "machine/acpi_tables.h"
#include "machine/layout.h"

static uint8_t sum(const struct boot_target *target, uint64_t address, uint32_t size)
{
    uint8_t total = 0;
    for (uint32_t i = 0; i < size; i++)
        total = (uint8_t)(total + guest8(target, address + i));
    return total;
}

static struct boot_target built(unsigned cpus, bool hpet)
{
    struct boot_target target = target_create(16 * MiB);
    struct acpi_config config = { .cpus = cpus, .ecam_base = ECAM_BASE, .hpet = hpet };
    for (unsigned i = 0; i < cpus; i++)
        config.apic_id[i] = i * 5;
    struct acpi_blob blob;
    assert_true(acpi_build(&config, &blob));
    target.rsdp = acpi_place(&blob, target.ram, ACPI_TABLES_BASE, ACPI_TABLES_SIZE);
    assert_int_equal(target.rsdp, ACPI_TABLES_BASE);
    return target;
}

/* Address of the table with that signature; 0: none. */
static uint64_t find(const struct boot_target *target, const char *signature)
{
    uint64_t xsdt = guest64(target, target->rsdp + 24);
    for (uint32_t at = 36; at < guest32(target, xsdt + 4); at += 8) {
        uint64_t table = guest64(target, xsdt + at);
        uint32_t wanted;
        memcpy(&wanted, signature, 4);
        if (guest32(target, table) == wanted)
            return table;
    }
    return 0;
}

static void every_checksum_is_right(void **state)
{
    struct boot_target target = built(64, true);
    assert_int_equal(sum(&target, target.rsdp, 20), 0);
    assert_int_equal(sum(&target, target.rsdp, 36), 0);
    uint64_t xsdt = guest64(&target, target.rsdp + 24);
    assert_int_equal(sum(&target, xsdt, guest32(&target, xsdt + 4)), 0);
    static const char *const names[] = { "FACP", "APIC", "MCFG", "SSDT", "HPET" };
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        uint64_t table = find(&target, names[i]);
        assert_true(table);
        assert_int_equal(sum(&target, table, guest32(&target, table + 4)), 0);
    }
    uint32_t facs = guest32(&target, find(&target, "FACP") + offsetof(struct acpi_fadt, firmware_ctrl));
    assert_int_equal(facs % 64, 0);
    assert_int_equal(guest32(&target, facs + 4), 64);
    uint64_t dsdt = guest64(&target, find(&target, "FACP") + offsetof(struct acpi_fadt, x_dsdt));
    assert_int_equal(sum(&target, dsdt, guest32(&target, dsdt + 4)), 0);
    ram_destroy(target.ram);
}

static void madt_names_every_processor(void **state)
{
    struct boot_target target = built(64, false);
    assert_int_equal(find(&target, "HPET"), 0);
    uint64_t madt = find(&target, "APIC");
    unsigned lapics = 0, x2apics = 0;
    for (uint64_t at = madt + 44; at < madt + guest32(&target, madt + 4); at += guest8(&target, at + 1)) {
        assert_true(guest8(&target, at + 1) >= 6);
        lapics += guest8(&target, at) == MADT_LAPIC;
        x2apics += guest8(&target, at) == MADT_X2APIC;
    }
    assert_int_equal(lapics, 51);       /* ids 0, 5, .. 250 */
    assert_int_equal(x2apics, 13);
    ram_destroy(target.ram);
}

static void tables_that_do_not_fit_are_refused(void **state)
{
    struct boot_target target = target_create(16 * MiB);
    struct acpi_config config = { .cpus = 1 };
    struct acpi_blob blob;
    assert_true(acpi_build(&config, &blob));
    assert_int_equal(acpi_place(&blob, target.ram, ACPI_TABLES_BASE, 1024), 0);
    ram_destroy(target.ram);
}

/* iasl checks lengths, reserved fields and checksums of what it disassembles, and says so in its output. */
static void iasl_disassembles_every_table(void **state)
{
    struct boot_target target = built(2, true);
    char folder[] = "/tmp/doppel-acpi-XXXXXX", command[256], path[128];
    assert_non_null(mkdtemp(folder));
    uint64_t table[] = { find(&target, "FACP"), find(&target, "APIC"), find(&target, "MCFG"), find(&target, "HPET"), find(&target, "SSDT"),
                         guest64(&target, find(&target, "FACP") + offsetof(struct acpi_fadt, x_dsdt)) };
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++) {
        uint32_t size = guest32(&target, table[i] + 4);
        uint8_t *bytes = malloc(size);
        assert_true(ram_read(target.ram, table[i], bytes, size));
        snprintf(path, sizeof(path), "%s/%.4s.aml", folder, (const char *)bytes);
        FILE *file = fopen(path, "w");
        assert_int_equal(fwrite(bytes, 1, size, file), size);
        fclose(file);
        snprintf(command, sizeof(command), "iasl -d %s > %s/log 2>&1 && ! grep -Eiq 'error|invalid|incorrect checksum' %s/log",
                 path, folder, folder);
        if (system(command))
            fail_msg("iasl does not like %s", path);
        free(bytes);
    }
    snprintf(command, sizeof(command), "cat %s/*.dsl | grep -q 'Reset Register' && rm -r %s", folder, folder);
    assert_int_equal(system(command), 0);
    ram_destroy(target.ram);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_checksum_is_right),
        cmocka_unit_test(madt_names_every_processor),
        cmocka_unit_test(tables_that_do_not_fit_are_refused),
        cmocka_unit_test(iasl_disassembles_every_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
