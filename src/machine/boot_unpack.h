/* Unpacks the kernel inside a bzImage: gzip, XZ, LZMA, LZ4 (its legacy frame) and zstd, told apart by their first bytes. */
#ifndef DOPPEL_MACHINE_BOOT_UNPACK_H
#define DOPPEL_MACHINE_BOOT_UNPACK_H

#include "machine/boot.h"

/* Output never exceeds `limit` bytes. On true unpacked->data is the caller's to free. */
bool boot_unpack(const struct blob *packed, size_t limit, struct blob *unpacked, struct error *err);

#endif
