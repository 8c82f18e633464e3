/*
 * The table loader (QEMU documentation, "ACPI tables through fw_cfg"; the format is that of hw/acpi/bios-linker-loader): a list of
 * commands by which firmware allocates memory for the files that hold the tables, adds addresses to pointers, and
 * computes checksums.
 */
#include "machine/firmware_acpi.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "dev/fw_cfg.h"
#include "dev/pci/host_bridge.h"
#include "machine/acpi_tables.h"
#include "machine/boot.h"

enum { LOADER_COMMANDS_MAX = 64 };
enum { LOADER_ALLOCATE = 1, LOADER_ADD_POINTER = 2, LOADER_ADD_CHECKSUM = 3, ZONE_HIGH = 1, ZONE_FSEG = 2 };

/* Little-endian, 128 bytes each. */
struct loader_command {
    uint32_t command;
    union {
        struct {
            char file[FW_CFG_NAME_SIZE];
            uint32_t align;
            uint8_t zone;
        } __attribute__((packed)) allocate;
        struct {
            char file[FW_CFG_NAME_SIZE], target[FW_CFG_NAME_SIZE];
            uint32_t offset;
            uint8_t size;
        } __attribute__((packed)) pointer;
        struct {
            char file[FW_CFG_NAME_SIZE];
            uint32_t offset, start, length;
        } __attribute__((packed)) checksum;
        uint8_t all[124];
    };
} __attribute__((packed));
_Static_assert(sizeof(struct loader_command) == 128, "as firmware reads it");

static const char tables_file[] = "etc/acpi/tables", rsdp_file[] = "etc/acpi/rsdp", loader_file[] = "etc/table-loader";

struct loader {
    struct acpi_blob blob;
    struct loader_command command[LOADER_COMMANDS_MAX];
    unsigned count;
};

static struct loader_command *next(struct loader *loader, uint32_t command)
{
    assert(loader->count < LOADER_COMMANDS_MAX);
    struct loader_command *at = &loader->command[loader->count++];
    at->command = command;
    return at;
}

static void allocate(struct loader *loader, const char *file, uint32_t align, uint8_t zone)
{
    struct loader_command *command = next(loader, LOADER_ALLOCATE);
    strcpy(command->allocate.file, file);
    command->allocate.align = align;
    command->allocate.zone = zone;
}

static void add_pointer(struct loader *loader, const char *file, uint32_t offset, uint8_t size)
{
    struct loader_command *command = next(loader, LOADER_ADD_POINTER);
    strcpy(command->pointer.file, file);
    strcpy(command->pointer.target, tables_file);
    command->pointer.offset = offset;
    command->pointer.size = size;
}

static void add_checksum(struct loader *loader, const char *file, uint32_t offset, uint32_t start, uint32_t length)
{
    struct loader_command *command = next(loader, LOADER_ADD_CHECKSUM);
    strcpy(command->checksum.file, file);
    command->checksum.offset = offset;
    command->checksum.start = start;
    command->checksum.length = length;
}

static void write_script(struct loader *loader)
{
    const struct acpi_blob *blob = &loader->blob;
    allocate(loader, tables_file, 64, ZONE_HIGH);
    allocate(loader, rsdp_file, 16, ZONE_FSEG);
    for (unsigned i = 0; i < blob->pointer_count; i++)
        add_pointer(loader, tables_file, blob->pointer[i].at, blob->pointer[i].size);
    for (unsigned i = 0; i < blob->table_count; i++) {
        const struct acpi_header *head = (const struct acpi_header *)(blob->bytes + blob->table[i]);
        add_checksum(loader, tables_file, blob->table[i] + (uint32_t)offsetof(struct acpi_header, checksum), blob->table[i],
                     head->length);
    }
    add_pointer(loader, rsdp_file, offsetof(struct acpi_rsdp, rsdt_address), 4);
    add_pointer(loader, rsdp_file, offsetof(struct acpi_rsdp, xsdt_address), 8);
    add_checksum(loader, rsdp_file, offsetof(struct acpi_rsdp, checksum), 0, 20);
    add_checksum(loader, rsdp_file, offsetof(struct acpi_rsdp, extended_checksum), 0, sizeof(struct acpi_rsdp));
}

static struct loader *make(struct machine *machine)
{
    struct loader *loader = calloc(1, sizeof(*loader));
    struct acpi_config config = { .cpus = machine->config.cpus, .hpet = true, .vga = machine->vga,
                                  .ecam_base = host_bridge_ecam((struct host_bridge *)machine->host_bridge) };
    for (unsigned i = 0; i < config.cpus; i++)
        config.apic_id[i] = machine->vcpu[i]->apic_id;
    if (!loader || !acpi_build(&config, &loader->blob)) {
        free(loader);
        return NULL;
    }
    write_script(loader);
    return loader;
}

/* Only numbers within the tables change: firmware may have read another file, or all their sizes, before. */
static void refresh(void *owner)
{
    struct machine *machine = owner;
    struct fw_cfg *fw_cfg = (struct fw_cfg *)machine->fw_cfg;
    struct loader *loader = make(machine);
    if (!loader)
        return;
    fw_cfg_refresh(fw_cfg, tables_file, loader->blob.bytes, loader->blob.size);
    free(loader);
}

bool firmware_add_acpi(struct machine *machine, struct error *err)
{
    struct fw_cfg *fw_cfg = (struct fw_cfg *)machine->fw_cfg;
    const struct fw_cfg_source source = { refresh, machine };
    struct loader *loader = make(machine);
    bool ok = loader && fw_cfg_add_file(fw_cfg, tables_file, loader->blob.bytes, loader->blob.size, &source) &&
              fw_cfg_add_file(fw_cfg, rsdp_file, &loader->blob.rsdp, sizeof(loader->blob.rsdp), NULL) &&
              fw_cfg_add_file(fw_cfg, loader_file, loader->command, loader->count * sizeof(loader->command[0]), NULL);
    free(loader);
    return ok || error_set(err, "no memory for ACPI tables");
}
