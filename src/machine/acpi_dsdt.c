/* The DSDT as iasl compiled it from dsdt.asl; kept apart because the compiler's output names the array. */
#include "machine/acpi_tables.h"
#include "machine/dsdt.hex"

const uint8_t *acpi_dsdt(uint32_t *size)
{
    *size = sizeof(dsdt_aml_code);
    return dsdt_aml_code;
}
