/* ELF executables, 32- and 64-bit, x86 only (System V ABI, "Object Files"). The file is hostile: every number is checked. */
#ifndef DOPPEL_MACHINE_BOOT_ELF_H
#define DOPPEL_MACHINE_BOOT_ELF_H

#include "machine/boot_place.h"

enum { ELF_SEGMENTS_MAX = 64 };

struct elf_segment {
    uint32_t type;              /* ELF_LOAD, ELF_NOTE */
    uint64_t offset, file_size; /* within the file, checked */
    uint64_t vaddr, paddr, memory_size;
};

struct elf {
    const struct blob *file;
    bool is64;
    uint64_t entry;
    unsigned count;
    struct elf_segment segment[ELF_SEGMENTS_MAX];
};

enum { ELF_LOAD = 1, ELF_NOTE = 4 };

/* Begins like an ELF file? */
bool elf_probe(const struct blob *file);
bool elf_parse(const struct blob *file, struct elf *elf, struct error *err);
/* Places every ELF_LOAD segment at its physical address. */
bool elf_load(const struct elf *elf, struct placement *place, struct error *err);
/* The description of the first note of that owner and type, in any ELF_NOTE segment; its size in *size; NULL: none. */
const uint8_t *elf_note(const struct elf *elf, const char *owner, uint32_t type, uint32_t *size);
/* The entry as a physical address, where a segment's virtual addresses hold it (Multiboot loaders do that). */
uint64_t elf_physical_entry(const struct elf *elf);

#endif
