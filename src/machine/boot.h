/*
 * Loaders: they read an image, check every byte of it that they use (it is hostile), place it in RAM and say how the boot
 * processor starts. One file each: boot_linux.c, boot_pvh.c, boot_multiboot.c, boot_flat.c; boot.c picks.
 */
#ifndef DOPPEL_MACHINE_BOOT_H
#define DOPPEL_MACHINE_BOOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine/machine.h"

/* A file in memory, or part of one. */
struct blob {
    const uint8_t *data;
    size_t size;
    const char *name;       /* for messages */
};

/* What the loaders need to know of the machine; no machine is needed to test one. */
struct boot_target {
    struct ram *ram;
    uint64_t low_ram_end;   /* first byte after RAM below 4 GiB */
    uint64_t high_ram_end;  /* first byte after RAM above 4 GiB; 4 GiB if none */
    uint64_t rsdp;          /* guest-physical address of the ACPI RSDP */
    struct log *log;
};

enum boot_mode {
    BOOT_ENTRY_REAL,            /* CS:IP */
    BOOT_ENTRY_PROTECTED,       /* flat 32-bit, paging off: PVH, Multiboot */
    BOOT_ENTRY_LONG,            /* 64-bit Linux boot protocol: identity-mapped page tables */
};

/* The start of the boot processor. */
struct boot_entry {
    enum boot_mode mode;
    uint64_t rip;
    uint64_t rax, rbx, rsi, rsp;
    uint64_t cr3;               /* BOOT_ENTRY_LONG */
    uint64_t gdt_base;          /* protected and long: the loader wrote a GDT there */
    uint16_t gdt_limit;
    uint16_t cs, ds;            /* selectors */
};

/* Loads by config->boot (BOOT_AUTO looks at the image). initrd: config->initrd_count blobs. */
bool boot_load(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
               const struct boot_target *target, struct boot_entry *entry, struct error *err);

bool boot_linux(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
                const struct boot_target *target, struct boot_entry *entry, struct error *err);
bool boot_pvh(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
              const struct boot_target *target, struct boot_entry *entry, struct error *err);
bool boot_multiboot(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
                    const struct boot_target *target, struct boot_entry *entry, struct error *err);
bool boot_flat(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
               const struct boot_target *target, struct boot_entry *entry, struct error *err);

/* Which loader knows the image? For BOOT_AUTO. */
bool boot_linux_probe(const struct blob *kernel);
bool boot_pvh_probe(const struct blob *kernel);
bool boot_multiboot_probe(const struct blob *kernel);
/* The packed kernel within a bzImage. */
bool boot_linux_payload(const struct blob *kernel, struct blob *payload, struct error *err);
/* config->append; without one, the console that the machine has. */
const char *boot_command_line(const struct machine_config *config);

/* Puts the entry into a freshly reset vCPU. */
void boot_apply(const struct boot_entry *entry, struct vcpu *vcpu);

/* ACPI tables (acpi.c) */
struct acpi_blob;
struct acpi_config {
    unsigned cpus;
    uint32_t apic_id[MACHINE_CPUS_MAX];
    uint64_t ecam_base;         /* 0: there is no ECAM */
    bool hpet;
    bool vga;                   /* a screen, and a keyboard and a mouse with it */
};
/* False: they do not fit into a blob. */
bool acpi_build(const struct acpi_config *config, struct acpi_blob *blob);
/* Makes the blob's addresses absolute and writes it into RAM at base; returns the RSDP's address, or 0 if there is no room. */
uint64_t acpi_place(struct acpi_blob *blob, struct ram *ram, uint64_t base, uint64_t size);

#endif
