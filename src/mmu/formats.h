/*
 * Page-table formats as data. A format says, level by level, which address bits index a table, where an entry may map a
 * page, and which bits must be zero; the walker (walk.c) knows nothing else. The formats of EPT (SDM3 §29.3.2) and VT-d
 * first and second level are rows of the same shape.
 */
#ifndef DOPPEL_MMU_FORMATS_H
#define DOPPEL_MMU_FORMATS_H

#include <stdbool.h>
#include <stdint.h>

/* Bits of an entry of EPT (SDM3 §29.3.2, tables 29-1 to 29-6). */
enum { EPTE_READ = 1, EPTE_WRITE = 2, EPTE_EXECUTE = 4, EPTE_RIGHTS = 7, EPTE_A = 1 << 8, EPTE_D = 1 << 9, EPTE_USER_EXECUTE = 1 << 10 };
enum { EPTP_ACCESSED_DIRTY = 1 << 6 };
#define EPTE_SUPPRESS_VE (1ull << 63)
#define EPTE_MEMORY_TYPE(entry) (((entry) >> 3) & 7)

/* Bits of an entry, the same in every format of the processor's own paging (SDM3 §4.3 to §4.5). */
enum {
    PTE_P = 1u << 0, PTE_W = 1u << 1, PTE_U = 1u << 2, PTE_A = 1u << 5, PTE_D = 1u << 6, PTE_PS = 1u << 7, PTE_G = 1u << 8,
};
#define PTE_NX (1ull << 63)
#define PTE_PKEY(entry) (((entry) >> 59) & 15)

enum { PAGING_LEVELS_MAX = 5 };

enum leaf { LEAF_NEVER, LEAF_LARGE, LEAF_ALWAYS };     /* never maps a page; does when PS is set; always does */

struct paging_level {
    uint8_t shift;              /* lowest address bit of the index; log2 of the page size if the entry maps a page */
    uint8_t index_bits;
    uint8_t leaf;               /* enum leaf */
    uint64_t reserved;          /* must be zero in an entry that points to a table */
    uint64_t leaf_reserved;     /* and in one that maps a page */
    /* PSE-36: bits high_shift.. of a leaf are address bits 32.. (SDM3 §4.3, table 4-4). 0 bits: none. */
    uint8_t high_shift, high_bits;
};

struct paging_format {
    const char *name;
    uint8_t levels;             /* 0: no paging */
    uint8_t entry_bytes;
    uint64_t present;           /* an entry with none of these bits is not present */
    uint64_t accessed, dirty;   /* the flags that a walk sets; 0 where the format has none */
    bool ept;                   /* the rights are EPT's */
    uint64_t needs_read;        /* rights of EPT that are a misconfiguration without that to read */
    bool pdpte_registers;       /* PAE: the root is one of four registers, chosen by address bits 31:30 */
    uint64_t address_mask;      /* address bits of an entry */
    struct paging_level level[PAGING_LEVELS_MAX];       /* [0] is the page table */
};

/* What decides the format and its reserved bits. */
struct paging_mode {
    uint64_t cr0, cr4, efer;
    unsigned physical_bits;     /* MAXPHYADDR */
    bool pse36, page1gb;        /* CPUID */
    bool ept_2m, ept_1g, ept_execute_only;      /* IA32_VMX_EPT_VPID_CAP */
};

void paging_format_select(struct paging_format *format, const struct paging_mode *mode);
/* SDM3 §29.3.2 "EPT Translation Mechanism": four levels; what depends on the guest that runs (A and D, rights) is the caller's. */
void paging_format_select_ept(struct paging_format *format, const struct paging_mode *mode);

/* Bits that must be zero in a present PDPTE register (SDM3 §4.4.1, table 4-8). */
uint64_t paging_pdpte_reserved(unsigned physical_bits);

#endif
