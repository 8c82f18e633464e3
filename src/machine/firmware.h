/*
 * Firmware: the image at the end of the first 4 GiB, and what it is told through fw_cfg and CMOS. A machine has firmware when it
 * has no kernel to start directly.
 */
#ifndef DOPPEL_MACHINE_FIRMWARE_H
#define DOPPEL_MACHINE_FIRMWARE_H

#include "machine/boot.h"

struct firmware;
struct flash;

/* Reads the image that config->firmware names. NULL: err says what is missing and what to do. */
struct firmware *firmware_open(const struct machine_config *config, struct error *err);
void firmware_close(struct firmware *firmware);
/* UEFI keeps its variables in a flash chip. */
bool firmware_has_flash(const struct firmware *firmware);
void firmware_wire_flash(const struct firmware *firmware, struct flash *flash);
/*
 * Where UEFI keeps its variables: the file that was named, or one beside the first image that is written to. False: nowhere, they are
 * forgotten at the end.
 */
bool firmware_variables_path(const struct machine_config *config, char *path, size_t size);
/* The VGA BIOS, a power of two in size; size 0: none. */
const struct blob *firmware_vga_bios(const struct firmware *firmware);
/* What boots from a network card, a virtio card or an e1000: the same, if there is one that the machine boots from. */
const struct blob *firmware_net_rom(const struct firmware *firmware, bool virtio);
/* Places the image in guest memory; with the machine's other memory. */
bool firmware_map(struct machine *machine, struct error *err);
/* Fills in fw_cfg and CMOS. All devices have been made. */
bool firmware_describe(struct machine *machine, struct error *err);

#endif
