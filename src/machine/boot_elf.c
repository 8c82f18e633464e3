#include "machine/boot_elf.h"

#include <elf.h>
#include <string.h>

_Static_assert(ELF_LOAD == PT_LOAD && ELF_NOTE == PT_NOTE, "segment types are ELF's");

bool elf_probe(const struct blob *file)
{
    return file->size >= EI_NIDENT && !memcmp(file->data, ELFMAG, SELFMAG);
}

static struct elf_segment segment64(const uint8_t *row)
{
    Elf64_Phdr header;
    memcpy(&header, row, sizeof(header));
    return (struct elf_segment){ header.p_type, header.p_offset, header.p_filesz, header.p_vaddr, header.p_paddr, header.p_memsz };
}

static struct elf_segment segment32(const uint8_t *row)
{
    Elf32_Phdr header;
    memcpy(&header, row, sizeof(header));
    return (struct elf_segment){ header.p_type, header.p_offset, header.p_filesz, header.p_vaddr, header.p_paddr, header.p_memsz };
}

static bool add_segment(struct elf *elf, struct elf_segment segment, struct error *err)
{
    if (segment.type != ELF_LOAD && segment.type != ELF_NOTE)
        return true;
    if (!blob_has(elf->file, segment.offset, segment.file_size))
        return error_set(err, "%s is truncated: a segment lies past the end of the file", elf->file->name);
    if (segment.type == ELF_LOAD && segment.file_size > segment.memory_size)
        return error_set(err, "%s is damaged: a segment is larger in the file than in memory", elf->file->name);
    if (elf->count == ELF_SEGMENTS_MAX)
        return error_set(err, "%s has more than %d segments", elf->file->name, ELF_SEGMENTS_MAX);
    elf->segment[elf->count++] = segment;
    return true;
}

/* Where the program headers are, and what each is. */
struct header_table {
    uint64_t offset;
    unsigned count, size;
    uint16_t machine, type;
};

static struct header_table read_header(const struct blob *file, struct elf *elf)
{
    if (elf->is64) {
        Elf64_Ehdr header;
        memcpy(&header, file->data, sizeof(header));
        elf->entry = header.e_entry;
        return (struct header_table){ header.e_phoff, header.e_phnum, header.e_phentsize, header.e_machine, header.e_type };
    }
    Elf32_Ehdr header;
    memcpy(&header, file->data, sizeof(header));
    elf->entry = header.e_entry;
    return (struct header_table){ header.e_phoff, header.e_phnum, header.e_phentsize, header.e_machine, header.e_type };
}

bool elf_parse(const struct blob *file, struct elf *elf, struct error *err)
{
    if (!elf_probe(file))
        return error_set(err, "%s is not an ELF file", file->name);
    *elf = (struct elf){ .file = file, .is64 = file->data[EI_CLASS] == ELFCLASS64 };
    if (!elf->is64 && file->data[EI_CLASS] != ELFCLASS32)
        return error_set(err, "%s is neither a 32- nor a 64-bit ELF file", file->name);
    if (file->size < (elf->is64 ? sizeof(Elf64_Ehdr) : sizeof(Elf32_Ehdr)))
        return error_set(err, "%s is truncated: it ends within its ELF header", file->name);
    struct header_table table = read_header(file, elf);
    if (file->data[EI_DATA] != ELFDATA2LSB || (table.machine != EM_X86_64 && table.machine != EM_386))
        return error_set(err, "%s is an ELF file for another kind of processor", file->name);
    if (table.type != ET_EXEC && table.type != ET_DYN)
        return error_set(err, "%s is an ELF file but not an executable", file->name);
    unsigned row_size = elf->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
    if (!table.count || table.size != row_size || !blob_has(file, table.offset, (uint64_t)table.count * row_size))
        return error_set(err, "%s is damaged: its program headers are not whole", file->name);
    for (unsigned i = 0; i < table.count; i++) {
        const uint8_t *row = file->data + table.offset + (uint64_t)i * row_size;
        if (!add_segment(elf, elf->is64 ? segment64(row) : segment32(row), err))
            return false;
    }
    return true;
}

bool elf_load(const struct elf *elf, struct placement *place, struct error *err)
{
    bool any = false;
    for (unsigned i = 0; i < elf->count; i++) {
        const struct elf_segment *segment = &elf->segment[i];
        if (segment->type != ELF_LOAD || !segment->memory_size)
            continue;
        any = true;
        if (!place_put(place, segment->paddr, elf->file->data + segment->offset, segment->file_size, segment->memory_size,
                       "a segment of the kernel", err))
            return false;
    }
    return any || error_set(err, "%s has nothing to load", elf->file->name);
}

/* One note segment: rows of { name size, description size, type }, name, description, each padded to 4 bytes. */
static const uint8_t *find_note(const struct blob *notes, const char *owner, uint32_t type, uint32_t *size)
{
    enum { ROW = 12 };
    uint64_t at = 0;
    while (blob_has(notes, at, ROW)) {
        const uint8_t *row = notes->data + at;
        uint64_t name_size = get32(row), description_size = get32(row + 4);
        uint64_t name = at + ROW, description = name + align_up(name_size, 4);
        if (!blob_has(notes, name, name_size) || !blob_has(notes, description, description_size))
            return NULL;
        if (get32(row + 8) == type && name_size == strlen(owner) + 1 && !memcmp(notes->data + name, owner, name_size)) {
            *size = (uint32_t)description_size;
            return notes->data + description;
        }
        at = description + align_up(description_size, 4);
    }
    return NULL;
}

const uint8_t *elf_note(const struct elf *elf, const char *owner, uint32_t type, uint32_t *size)
{
    for (unsigned i = 0; i < elf->count; i++) {
        const struct elf_segment *segment = &elf->segment[i];
        if (segment->type != ELF_NOTE)
            continue;
        const struct blob notes = { elf->file->data + segment->offset, segment->file_size, elf->file->name };
        const uint8_t *found = find_note(&notes, owner, type, size);
        if (found)
            return found;
    }
    return NULL;
}

uint64_t elf_physical_entry(const struct elf *elf)
{
    for (unsigned i = 0; i < elf->count; i++) {
        const struct elf_segment *segment = &elf->segment[i];
        if (segment->type == ELF_LOAD && elf->entry - segment->vaddr < segment->memory_size)
            return elf->entry - segment->vaddr + segment->paddr;
    }
    return elf->entry;
}
