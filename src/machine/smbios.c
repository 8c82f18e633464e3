/*
 * SMBIOS 2.8 structures (DMTF DSP0134 2.8.0 §7), the ones that the specification requires (§6.2): firmware and system
 * information, enclosure, processors, memory, boot information. Strings follow a structure's formatted part.
 */
#include "machine/smbios.h"

#include <stdio.h>
#include <string.h>

#include "base/base.h"

#define SMBIOS_PACKED __attribute__((packed))

enum { HANDLE_ARRAY = 0x1000, HANDLE_NONE = 0xFFFE };

struct smbios_header {
    uint8_t type, length;
    uint16_t handle;
} SMBIOS_PACKED;

/* §7.1 "BIOS Information (Type 0)" */
struct type0 {
    struct smbios_header header;
    uint8_t vendor, version;
    uint16_t segment;
    uint8_t release_date, rom_size;
    uint64_t characteristics;
    uint8_t extension[2], major, minor, controller_major, controller_minor;
} SMBIOS_PACKED;
enum { CHARACTERISTICS_UNSUPPORTED = 1 << 3, EXTENSION2_VIRTUAL_MACHINE = 1 << 4, EXTENSION2_TARGETED = 1 << 2 };

/* §7.2 "System Information (Type 1)" */
struct type1 {
    struct smbios_header header;
    uint8_t manufacturer, product, version, serial;
    uint8_t uuid[16];           /* all zero: there is none */
    uint8_t wake_up, sku, family;
} SMBIOS_PACKED;
enum { WAKE_UP_POWER_SWITCH = 6 };

/* §7.4 "System Enclosure or Chassis (Type 3)" */
struct type3 {
    struct smbios_header header;
    uint8_t manufacturer, type, version, serial, asset_tag, boot_state, power_state, thermal_state, security;
    uint32_t oem;
    uint8_t height, power_cords, element_count, element_length;
} SMBIOS_PACKED;
enum { CHASSIS_OTHER = 1, STATE_SAFE = 3, SECURITY_UNKNOWN = 2 };

/* §7.5 "Processor Information (Type 4)" */
struct type4 {
    struct smbios_header header;
    uint8_t socket, type, family, manufacturer;
    uint64_t id;
    uint8_t version, voltage;
    uint16_t clock, max_speed, speed;
    uint8_t status, upgrade;
    uint16_t l1, l2, l3;
    uint8_t serial, asset_tag, part;
    uint8_t cores, enabled, threads;
    uint16_t characteristics, family2;
} SMBIOS_PACKED;
enum { PROCESSOR_CENTRAL = 3, FAMILY_OTHER = 1, STATUS_ENABLED = 0x41, UPGRADE_OTHER = 1, NO_CACHE_HANDLE = 0xFFFF,
       CHARACTERISTIC_64BIT = 1 << 2 };

/* §7.17 "Physical Memory Array (Type 16)" */
struct type16 {
    struct smbios_header header;
    uint8_t location, use, correction;
    uint32_t capacity_kib;
    uint16_t error_handle, devices;
    uint64_t capacity;
} SMBIOS_PACKED;
enum { LOCATION_OTHER = 1, USE_SYSTEM = 3, CORRECTION_NONE = 3, CAPACITY_EXTENDED = 0x80000000 };

/* §7.18 "Memory Device (Type 17)" */
struct type17 {
    struct smbios_header header;
    uint16_t array, error_handle, total_width, data_width, size_mib;
    uint8_t form_factor, set, locator, bank, type;
    uint16_t detail, speed;
    uint8_t manufacturer, serial, asset_tag, part, attributes;
    uint32_t extended_size_mib;
    uint16_t configured_speed, minimum_voltage, maximum_voltage, configured_voltage;
} SMBIOS_PACKED;
enum { WIDTH_UNKNOWN = 0xFFFF, SIZE_EXTENDED = 0x7FFF, FORM_DIMM = 9, TYPE_RAM = 7, DETAIL_OTHER = 1 << 1 };

/* §7.20 "Memory Array Mapped Address (Type 19)" */
struct type19 {
    struct smbios_header header;
    uint32_t start_kib, end_kib;
    uint16_t array;
    uint8_t partition_width;
    uint64_t start, end;
} SMBIOS_PACKED;
enum { ADDRESS_EXTENDED = -1 };

/* §7.33 "System Boot Information (Type 32)" */
struct type32 {
    struct smbios_header header;
    uint8_t reserved[6], status;
} SMBIOS_PACKED;

/* §5.2.1 "SMBIOS 2.1 (32-bit) Entry Point" */
struct anchor {
    char signature[4];
    uint8_t checksum, length, major, minor;
    uint16_t largest;
    uint8_t revision, formatted[5];
    char intermediate[5];
    uint8_t intermediate_checksum;
    uint16_t size;
    uint32_t address;
    uint16_t count;
    uint8_t bcd_revision;
} SMBIOS_PACKED;
_Static_assert(sizeof(struct anchor) == SMBIOS_ANCHOR_SIZE && sizeof(struct type4) == 42 && sizeof(struct type17) == 40 &&
               sizeof(struct type0) == 24 && sizeof(struct type1) == 27 && sizeof(struct type3) == 21 &&
               sizeof(struct type16) == 23 && sizeof(struct type19) == 31, "layouts are the specification's");

struct builder {
    struct smbios *smbios;
    uint16_t count, largest;
    bool full;
};

/* Appends a structure and its strings, `strings` of them one after the other, each ended by a NUL. */
static void add(struct builder *builder, void *structure, uint8_t type, uint8_t length, uint16_t handle, const char *strings)
{
    struct smbios *smbios = builder->smbios;
    struct smbios_header header = { type, length, handle };
    size_t text = 0;
    while (strings[text])
        text += strlen(strings + text) + 1;
    text = text ? text + 1 : 2;             /* the set ends with an empty string; with none there are two NULs */
    if (length + text > sizeof(smbios->tables) - smbios->size) {
        builder->full = true;
        return;
    }
    uint8_t *at = smbios->tables + smbios->size;
    memcpy(at, structure, length);
    memcpy(at, &header, sizeof(header));
    if (*strings)
        memcpy(at + length, strings, text);
    smbios->size += length + (uint32_t)text;
    builder->largest = (uint16_t)max_u64(builder->largest, length + text);
    builder->count++;
}

static void add_system(struct builder *builder)
{
    struct type0 bios = { .vendor = 1, .version = 2, .segment = 0xE800, .release_date = 3,
                          .characteristics = CHARACTERISTICS_UNSUPPORTED,
                          .extension = { 0, EXTENSION2_VIRTUAL_MACHINE | EXTENSION2_TARGETED }, .controller_major = 0xFF,
                          .controller_minor = 0xFF };
    struct type1 system = { .manufacturer = 1, .product = 2, .version = 3, .wake_up = WAKE_UP_POWER_SWITCH };
    struct type3 chassis = { .manufacturer = 1, .type = CHASSIS_OTHER, .boot_state = STATE_SAFE, .power_state = STATE_SAFE,
                             .thermal_state = STATE_SAFE, .security = SECURITY_UNKNOWN };
    add(builder, &bios, 0, sizeof(bios), 0x0000, "Doppel\0" "1.0\0" "01/01/2025\0");
    add(builder, &system, 1, sizeof(system), 0x0100, "Doppel\0" "Standard PC (Q35 + ICH9)\0" "1.0\0");
    add(builder, &chassis, 3, sizeof(chassis), 0x0300, "Doppel\0");
}

static void add_processor(struct builder *builder, unsigned n)
{
    struct type4 processor = { .socket = 1, .type = PROCESSOR_CENTRAL, .family = FAMILY_OTHER, .manufacturer = 2,
                               .status = STATUS_ENABLED, .upgrade = UPGRADE_OTHER, .l1 = NO_CACHE_HANDLE, .l2 = NO_CACHE_HANDLE,
                               .l3 = NO_CACHE_HANDLE, .cores = 1, .enabled = 1, .threads = 1,
                               .characteristics = CHARACTERISTIC_64BIT, .family2 = FAMILY_OTHER };
    char strings[32] = "";
    int used = snprintf(strings, sizeof(strings), "CPU %u", n) + 1;
    memcpy(strings + used, "Doppel", sizeof("Doppel"));
    add(builder, &processor, 4, sizeof(processor), (uint16_t)(0x0400 + n), strings);
}

static void add_range(struct builder *builder, uint16_t handle, uint64_t start, uint64_t size)
{
    struct type19 range = { .array = HANDLE_ARRAY, .partition_width = 1 };
    if ((start + size) >> 42) {
        range.start_kib = range.end_kib = (uint32_t)ADDRESS_EXTENDED;
        range.start = start;
        range.end = start + size - 1;
    } else {
        range.start_kib = (uint32_t)(start / KiB);
        range.end_kib = (uint32_t)((start + size) / KiB - 1);
    }
    add(builder, &range, 19, sizeof(range), handle, "");
}

static void add_memory(struct builder *builder, const struct smbios_config *config)
{
    struct type16 array = { .location = LOCATION_OTHER, .use = USE_SYSTEM, .correction = CORRECTION_NONE,
                            .error_handle = HANDLE_NONE, .devices = 1 };
    struct type17 dimm = { .array = HANDLE_ARRAY, .error_handle = HANDLE_NONE, .total_width = WIDTH_UNKNOWN,
                           .data_width = WIDTH_UNKNOWN, .form_factor = FORM_DIMM, .locator = 1, .type = TYPE_RAM,
                           .detail = DETAIL_OTHER, .manufacturer = 2 };
    uint64_t kib = config->memory / KiB, mib = config->memory / MiB;
    array.capacity_kib = kib < CAPACITY_EXTENDED ? (uint32_t)kib : CAPACITY_EXTENDED;
    array.capacity = kib < CAPACITY_EXTENDED ? 0 : config->memory;
    dimm.size_mib = mib < SIZE_EXTENDED ? (uint16_t)mib : SIZE_EXTENDED;
    dimm.extended_size_mib = mib < SIZE_EXTENDED ? 0 : (uint32_t)mib;
    add(builder, &array, 16, sizeof(array), HANDLE_ARRAY, "");
    add(builder, &dimm, 17, sizeof(dimm), 0x1100, "DIMM 0\0" "Doppel\0");
    add_range(builder, 0x1300, 0, config->low_memory);
    if (config->memory > config->low_memory)
        add_range(builder, 0x1301, 4 * GiB, config->memory - config->low_memory);
}

bool smbios_build(const struct smbios_config *config, struct smbios *smbios)
{
    struct builder builder = { .smbios = smbios };
    struct type32 boot = { .status = 0 };
    struct smbios_header end;
    smbios->size = 0;
    add_system(&builder);
    for (unsigned n = 0; n < config->cpus; n++)
        add_processor(&builder, n);
    add_memory(&builder, config);
    add(&builder, &boot, 32, sizeof(boot), 0x2000, "");
    add(&builder, &end, 127, sizeof(end), 0x7F00, "");
    struct anchor anchor = { .signature = { '_', 'S', 'M', '_' }, .length = sizeof(anchor), .major = 2, .minor = 8,
                             .largest = builder.largest, .intermediate = { '_', 'D', 'M', 'I', '_' },
                             .size = (uint16_t)smbios->size, .count = builder.count, .bcd_revision = 0x28 };
    memcpy(smbios->anchor, &anchor, sizeof(anchor));
    return !builder.full;
}
