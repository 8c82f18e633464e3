/* ACPI tables for firmware to place: QEMU's table loader files in fw_cfg. */
#ifndef DOPPEL_MACHINE_FIRMWARE_ACPI_H
#define DOPPEL_MACHINE_FIRMWARE_ACPI_H

#include "machine/machine.h"

/* Adds the files. Their contents follow the host bridge: they are made again whenever firmware begins to read one. */
bool firmware_add_acpi(struct machine *machine, struct error *err);

#endif
