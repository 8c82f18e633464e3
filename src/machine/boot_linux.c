/*
 * The Linux boot protocol: bzImage through its 64-bit entry point, or through the 32-bit one where the kernel has no other;
 * and an ELF vmlinux, which is entered like an unpacked kernel.
 * Described in the Linux documentation: "The Linux/x86 Boot Protocol" (Documentation/arch/x86/boot.rst) and "Zero Page"
 * (zero-page.rst). Field names are theirs.
 */
#include <stdlib.h>
#include <string.h>

#include "machine/boot_elf.h"
#include "machine/boot_place.h"
#include "mem/ram.h"

/* Offsets of the setup header in the image, and of the same bytes in the zero page. */
enum {
    SETUP_SECTS = 0x1F1, VID_MODE = 0x1FA, BOOT_FLAG = 0x1FE, JUMP_LENGTH = 0x201, HEADER = 0x202, VERSION = 0x206,
    TYPE_OF_LOADER = 0x210, LOADFLAGS = 0x211, CODE32_START = 0x214, RAMDISK_IMAGE = 0x218, RAMDISK_SIZE = 0x21C,
    CMD_LINE_PTR = 0x228, INITRD_ADDR_MAX = 0x22C, KERNEL_ALIGNMENT = 0x230, RELOCATABLE_KERNEL = 0x234,
    MIN_ALIGNMENT = 0x235, XLOADFLAGS = 0x236, CMDLINE_SIZE = 0x238, PREF_ADDRESS = 0x258, INIT_SIZE = 0x260,
};
/* Offsets in the zero page alone. */
enum { ZERO_ACPI_RSDP = 0x70, ZERO_E820_ENTRIES = 0x1E8, ZERO_E820_TABLE = 0x2D0, ZERO_PAGE_SIZE = 4096 };

enum {
    MAGIC_HDRS = 0x53726448, MAGIC_BOOT_FLAG = 0xAA55, LOADED_HIGH = 1, XLF_KERNEL_64 = 1,
    LOADER_UNDEFINED = 0xFF, VID_MODE_NORMAL = 0xFFFF, SECTOR = 512, ENTRY64_OFFSET = 0x200, HEADER_END_MAX = 0x290,
    CMDLINE_SIZE_BEFORE_2_06 = 255, CMDLINE_SIZE_ELF = 2047, OLD_LOAD_ADDRESS = 0x100000,
};
static const uint32_t initrd_max_before_2_03 = 0x37FFFFFF;

/* What the checked header says. */
struct bzimage {
    const struct blob *file;
    uint16_t version;
    uint32_t header_end;
    uint64_t payload_offset, payload_size;      /* the protected-mode part */
    bool entry64, relocatable;
    uint64_t pref_address, init_size, alignment, min_alignment;
    uint32_t initrd_addr_max, cmdline_size;
};

static bool parse_bzimage(const struct blob *kernel, struct bzimage *image, struct error *err)
{
    const uint8_t *data = kernel->data;
    if (kernel->size < HEADER_END_MAX || get32(data + HEADER) != MAGIC_HDRS || get16(data + BOOT_FLAG) != MAGIC_BOOT_FLAG)
        return error_set(err, "%s is not a Linux bzImage", kernel->name);
    uint16_t version = get16(data + VERSION);
    if (version < 0x0202 || !(data[LOADFLAGS] & LOADED_HIGH))
        return error_set(err, "%s is a Linux kernel too old to be started (boot protocol %u.%02u; 2.02 and a bzImage are needed)",
                         kernel->name, version >> 8, version & 0xFF);
    uint64_t sectors = data[SETUP_SECTS] ? data[SETUP_SECTS] : 4;
    uint64_t offset = (sectors + 1) * SECTOR;
    if (offset >= kernel->size)
        return error_set(err, "%s is truncated: it ends within its setup code", kernel->name);
    *image = (struct bzimage){
        .file = kernel,
        .version = version,
        .header_end = (uint32_t)min_u64(HEADER + data[JUMP_LENGTH], HEADER_END_MAX),
        .payload_offset = offset,
        .payload_size = kernel->size - offset,
        .initrd_addr_max = version >= 0x0203 ? get32(data + INITRD_ADDR_MAX) : initrd_max_before_2_03,
        .cmdline_size = version >= 0x0206 ? get32(data + CMDLINE_SIZE) : CMDLINE_SIZE_BEFORE_2_06,
        .relocatable = version >= 0x0205 && data[RELOCATABLE_KERNEL],
        .alignment = version >= 0x0205 ? get32(data + KERNEL_ALIGNMENT) : 1,
        .min_alignment = PAGE_SIZE,
        .pref_address = version >= 0x020A ? get64(data + PREF_ADDRESS) : OLD_LOAD_ADDRESS,
        .init_size = version >= 0x020A ? get32(data + INIT_SIZE) : 0,
        .entry64 = version >= 0x020C && (get16(data + XLOADFLAGS) & XLF_KERNEL_64),
    };
    if (version >= 0x020A && data[MIN_ALIGNMENT] >= 12 && data[MIN_ALIGNMENT] < 32)
        image->min_alignment = BIT(data[MIN_ALIGNMENT]);
    if (!image->alignment || (image->alignment & (image->alignment - 1)))
        return error_set(err, "%s is damaged: its header asks for an alignment of 0x%llx", kernel->name,
                         (unsigned long long)image->alignment);
    return true;
}

/* syssize counts the protected-mode part in 16-byte units: more than the file holds means that the end is missing. */
static bool check_length(const struct bzimage *image, struct error *err)
{
    enum { SYSSIZE = 0x1F4 };
    uint64_t said = (uint64_t)get32(image->file->data + SYSSIZE) * 16;
    if (image->version >= 0x0204 && align_down(said, 16) > align_up(image->payload_size, 16))
        return error_set(err, "%s is truncated: its header promises %llu bytes of kernel, the file has %llu", image->file->name,
                         (unsigned long long)said, (unsigned long long)image->payload_size);
    return true;
}

/* At the preferred address; a relocatable kernel goes lower, where there is room, if the machine is too small for that. */
static bool place_kernel(struct placement *place, const struct bzimage *image, uint64_t *address, struct error *err)
{
    uint64_t size = max_u64(image->init_size, image->payload_size);
    if (place_claim(place, image->pref_address, size, "the kernel", err))
        *address = image->pref_address;
    else if (!image->relocatable ||
             !place_low(place, size, max_u64(image->min_alignment, PAGE_SIZE), HIGH_MEMORY_START, PLACE_4G, "the kernel",
                        address, err))
        return false;
    if (*address + size > PLACE_4G)
        return error_set(err, "%s wants to be loaded above 4 GiB", image->file->name);
    return ram_load(place->target->ram, *address, image->file->data + image->payload_offset, image->payload_size) ||
           error_set(err, "%s does not fit in memory", image->file->name);
}

/* Several initrds become one: the kernel takes archives one after the other, each at a multiple of 4. */
static bool place_initrds(struct placement *place, const struct blob *initrd, unsigned count, uint32_t addr_max,
                          uint8_t *zero_page, struct error *err)
{
    uint64_t size = 0, start;
    for (unsigned i = 0; i < count; i++)
        size = align_up(size, 4) + initrd[i].size;
    if (!size)
        return true;
    if (size > UINT32_MAX)
        return error_set(err, "the initrd is larger than 4 GiB");
    if (!place_high(place, size, PAGE_SIZE, HIGH_MEMORY_START, (uint64_t)addr_max + 1, "the initrd", &start, err))
        return false;
    uint64_t at = start;
    for (unsigned i = 0; i < count; i++) {
        static const uint8_t zeros[4];
        uint64_t padding = align_up(at, 4) - at;
        if (!ram_load(place->target->ram, at, zeros, padding) ||
            !ram_load(place->target->ram, at + padding, initrd[i].data, initrd[i].size))
            return error_set(err, "the initrd does not fit in memory");
        at += padding + initrd[i].size;
    }
    put32(zero_page + RAMDISK_IMAGE, (uint32_t)start);
    put32(zero_page + RAMDISK_SIZE, (uint32_t)size);
    return true;
}

static bool place_command_line(struct placement *place, const char *text, uint32_t limit, uint8_t *zero_page, struct error *err)
{
    size_t length = strlen(text);
    uint64_t start;
    if (length > limit)
        return error_set(err, "the command line is %zu characters long, this kernel takes %u", length, limit);
    if (!place_structure(place, text, length + 1, "the command line", &start, err))
        return false;
    put32(zero_page + CMD_LINE_PTR, (uint32_t)start);
    return true;
}

static void describe_memory(const struct boot_target *target, uint8_t *zero_page)
{
    struct e820_range map[E820_MAX];
    unsigned count = place_memory_map(target, map);
    zero_page[ZERO_E820_ENTRIES] = (uint8_t)count;
    for (unsigned i = 0; i < count; i++) {
        uint8_t *row = zero_page + ZERO_E820_TABLE + i * 20;
        put64(row, map[i].start);
        put64(row + 8, map[i].size);
        put32(row + 16, map[i].type);
    }
    put64(zero_page + ZERO_ACPI_RSDP, target->rsdp);
    zero_page[TYPE_OF_LOADER] = LOADER_UNDEFINED;
    put16(zero_page + VID_MODE, VID_MODE_NORMAL);
}

/* Everything after the kernel itself: initrd, command line, zero page, descriptor and page tables. */
static bool finish(struct placement *place, const struct machine_config *config, const struct blob *initrd, uint32_t initrd_max,
                   uint32_t cmdline_max, bool entry64, uint8_t *zero_page, struct boot_entry *entry, struct error *err)
{
    describe_memory(place->target, zero_page);
    if (!place_gdt(place, entry64, entry, err) || (entry64 && !place_identity_map(place, entry, err)))
        return false;
    if (!place_command_line(place, boot_command_line(config), cmdline_max, zero_page, err) ||
        !place_initrds(place, initrd, config->initrd_count, initrd_max, zero_page, err))
        return false;
    entry->mode = entry64 ? BOOT_ENTRY_LONG : BOOT_ENTRY_PROTECTED;
    entry->rsp = CONVENTIONAL_END - 16;
    return place_low(place, ZERO_PAGE_SIZE, PAGE_SIZE, 0x1000, CONVENTIONAL_END, "the zero page", &entry->rsi, err) &&
           (ram_load(place->target->ram, entry->rsi, zero_page, ZERO_PAGE_SIZE) || error_set(err, "no RAM for the zero page"));
}

static bool boot_bzimage(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
                         const struct boot_target *target, struct boot_entry *entry, struct error *err)
{
    struct bzimage image;
    struct placement place;
    uint64_t address;
    uint8_t zero_page[ZERO_PAGE_SIZE] = { 0 };
    place_init(&place, target);
    if (!parse_bzimage(kernel, &image, err) || !check_length(&image, err) || !place_kernel(&place, &image, &address, err))
        return false;
    memcpy(zero_page + SETUP_SECTS, kernel->data + SETUP_SECTS, image.header_end - SETUP_SECTS);
    put32(zero_page + CODE32_START, (uint32_t)address);
    entry->rip = address + (image.entry64 ? ENTRY64_OFFSET : 0);
    trace(target->log, boot, "bzImage %s: protocol %x, at 0x%llx, %s entry", kernel->name, image.version,
          (unsigned long long)address, image.entry64 ? "64-bit" : "32-bit");
    return finish(&place, config, initrd, image.initrd_addr_max, image.cmdline_size, image.entry64, zero_page, entry, err);
}

/* An ELF vmlinux is entered where its bzImage's unpacker would have jumped; the header that it lacks is made up. */
static bool boot_vmlinux(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
                         const struct boot_target *target, struct boot_entry *entry, struct error *err)
{
    struct elf elf;
    struct placement place;
    uint8_t zero_page[ZERO_PAGE_SIZE] = { 0 };
    place_init(&place, target);
    if (!elf_parse(kernel, &elf, err) || !elf_load(&elf, &place, err))
        return false;
    if (elf.entry >= PLACE_4G)
        return error_set(err, "%s starts at 0x%llx, above 4 GiB", kernel->name, (unsigned long long)elf.entry);
    put16(zero_page + BOOT_FLAG, MAGIC_BOOT_FLAG);
    put32(zero_page + HEADER, MAGIC_HDRS);
    put16(zero_page + VERSION, 0x020F);
    zero_page[LOADFLAGS] = LOADED_HIGH;
    put32(zero_page + KERNEL_ALIGNMENT, 0x200000);
    entry->rip = elf.entry;
    return finish(&place, config, initrd, UINT32_MAX, CMDLINE_SIZE_ELF, elf.is64, zero_page, entry, err);
}

bool boot_linux_probe(const struct blob *kernel)
{
    return kernel->size >= HEADER + 4 && get32(kernel->data + HEADER) == MAGIC_HDRS;
}

bool boot_linux(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
                const struct boot_target *target, struct boot_entry *entry, struct error *err)
{
    *entry = (struct boot_entry){ 0 };
    return (elf_probe(kernel) ? boot_vmlinux : boot_bzimage)(config, kernel, initrd, target, entry, err);
}

/* Offset and length of the packed kernel within a bzImage (protocol 2.08). */
bool boot_linux_payload(const struct blob *kernel, struct blob *payload, struct error *err)
{
    enum { PAYLOAD_OFFSET = 0x248, PAYLOAD_LENGTH = 0x24C };
    struct bzimage image;
    if (!parse_bzimage(kernel, &image, err))
        return false;
    if (image.version < 0x0208)
        return error_set(err, "%s is too old to say where its packed kernel is (boot protocol 2.08 is needed)", kernel->name);
    uint64_t offset = image.payload_offset + get32(kernel->data + PAYLOAD_OFFSET), length = get32(kernel->data + PAYLOAD_LENGTH);
    if (!length || !blob_has(kernel, offset, length))
        return error_set(err, "%s is truncated: the packed kernel in it is not whole", kernel->name);
    *payload = (struct blob){ kernel->data + offset, length, kernel->name };
    return true;
}
