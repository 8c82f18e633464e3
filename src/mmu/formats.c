#include "mmu/formats.h"

#include "base/base.h"
#include "x86/flags.h"

static const uint64_t address_64 = 0x000FFFFFFFFFF000ull;

/*
 * The rows hold the reserved bits that do not depend on the processor; select() adds those above MAXPHYADDR, XD
 * without EFER.NXE, and PS where large pages of a level are not offered.
 */

/* SDM3 §4.3 "32-Bit Paging", tables 4-4 to 4-6. */
static const struct paging_format format_32 = {
    .name = "32-bit", .present = PTE_P, .accessed = PTE_A, .dirty = PTE_D, .levels = 2, .entry_bytes = 4, .address_mask = 0xFFFFF000,
    .level = {
        { .shift = 12, .index_bits = 10, .leaf = LEAF_ALWAYS },
        { .shift = 22, .index_bits = 10, .leaf = LEAF_LARGE, .high_shift = 13, .high_bits = 8 },
    },
};

/* SDM3 §4.4 "PAE Paging", tables 4-9 to 4-11. */
static const struct paging_format format_pae = {
    .name = "PAE", .present = PTE_P, .accessed = PTE_A, .dirty = PTE_D, .levels = 2, .entry_bytes = 8, .pdpte_registers = true,
    .address_mask = address_64,
    .level = {
        { .shift = 12, .index_bits = 9, .leaf = LEAF_ALWAYS },
        { .shift = 21, .index_bits = 9, .leaf = LEAF_LARGE, .leaf_reserved = 0x001FE000 },
    },
};

/* SDM3 §4.5 "4-Level Paging and 5-Level Paging", tables 4-14 to 4-20. */
static const struct paging_format format_long = {
    .name = "5-level", .present = PTE_P, .accessed = PTE_A, .dirty = PTE_D, .levels = 5, .entry_bytes = 8, .address_mask = address_64,
    .level = {
        { .shift = 12, .index_bits = 9, .leaf = LEAF_ALWAYS },
        { .shift = 21, .index_bits = 9, .leaf = LEAF_LARGE, .leaf_reserved = 0x001FE000 },
        { .shift = 30, .index_bits = 9, .leaf = LEAF_LARGE, .leaf_reserved = 0x3FFFE000 },
        { .shift = 39, .index_bits = 9, .leaf = LEAF_NEVER, .reserved = PTE_PS },
        { .shift = 48, .index_bits = 9, .leaf = LEAF_NEVER, .reserved = PTE_PS },
    },
};

/* SDM3 §29.3.2; the reserved bits of tables 29-1 to 29-6 that do not depend on the processor. */
static const struct paging_format format_ept = {
    .name = "EPT", .ept = true, .present = EPTE_RIGHTS, .levels = 4, .entry_bytes = 8, .address_mask = address_64,
    .level = {
        { .shift = 12, .index_bits = 9, .leaf = LEAF_ALWAYS },
        { .shift = 21, .index_bits = 9, .leaf = LEAF_LARGE, .reserved = 0x78, .leaf_reserved = 0x001FF000 },
        { .shift = 30, .index_bits = 9, .leaf = LEAF_LARGE, .reserved = 0x78, .leaf_reserved = 0x3FFFF000 },
        { .shift = 39, .index_bits = 9, .leaf = LEAF_NEVER, .reserved = 0xF8 },
    },
};

static const struct paging_format format_none = { .name = "none" };

/* Bits high..low. */
static uint64_t range(unsigned high, unsigned low)
{
    return high < low ? 0 : (~0ull >> (63 - high)) & (~0ull << low);
}

static void reserve(struct paging_format *format, uint64_t bits_everywhere)
{
    for (unsigned i = 0; i < format->levels; i++) {
        format->level[i].reserved |= bits_everywhere;
        format->level[i].leaf_reserved |= bits_everywhere;
    }
}

static void select_32(struct paging_format *format, const struct paging_mode *mode)
{
    *format = format_32;
    struct paging_level *directory = &format->level[1];
    if (!(mode->cr4 & CR4_PSE)) {
        directory->leaf = LEAF_NEVER;       /* PS is ignored */
        return;
    }
    /* M of table 4-4: with PSE-36 an address of up to 40 bits; bits 21:(M - 19) are reserved. Without, bits 21:13. */
    unsigned m = mode->pse36 ? min_u64(40, mode->physical_bits) : 32;
    directory->high_bits = m - 32;
    directory->leaf_reserved = range(21, m - 19);
}

void paging_format_select(struct paging_format *format, const struct paging_mode *mode)
{
    uint64_t no_nx = mode->efer & EFER_NXE ? 0 : PTE_NX;
    if (!(mode->cr0 & CR0_PG)) {
        *format = format_none;
    } else if (!(mode->cr4 & CR4_PAE)) {
        select_32(format, mode);
    } else if (!(mode->efer & EFER_LMA)) {
        *format = format_pae;
        reserve(format, range(62, mode->physical_bits) | no_nx);
    } else {
        *format = format_long;
        if (!(mode->cr4 & CR4_LA57)) {
            format->name = "4-level";
            format->levels = 4;
        }
        if (!mode->page1gb) {
            format->level[2].leaf = LEAF_NEVER;
            format->level[2].reserved |= PTE_PS;
        }
        reserve(format, range(51, mode->physical_bits) | no_nx);
    }
}

/* SDM3 §29.3.3.1: bit 7 is reserved where the processor has no such pages. */
static void ept_large_pages(struct paging_level *level, bool offered)
{
    if (offered)
        return;
    level->leaf = LEAF_NEVER;
    level->reserved |= PTE_PS;
}

void paging_format_select_ept(struct paging_format *format, const struct paging_mode *mode)
{
    *format = format_ept;
    ept_large_pages(&format->level[1], mode->ept_2m);
    ept_large_pages(&format->level[2], mode->ept_1g);
    reserve(format, range(51, mode->physical_bits));
}

uint64_t paging_pdpte_reserved(unsigned physical_bits)
{
    return range(63, physical_bits) | range(8, 5) | range(2, 1);
}
