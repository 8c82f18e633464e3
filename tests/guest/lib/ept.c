#include "lib/ept.h"

#include "lib/guest.h"

uint64_t *ept_table_at(uint64_t *entry)
{
    if (!*entry)
        *entry = (uint64_t)alloc_page() | READ | WRITE | EXECUTE | USER_EXECUTE;
    return (uint64_t *)(*entry & ~0xFFFull);
}

uint64_t *ept_build(uint64_t page, uint64_t **leaf)
{
    uint64_t *root = alloc_page(), *pdpt = ept_table_at(&root[0]);
    for (unsigned i = 0; i < 4; i++) {
        uint64_t *directory = ept_table_at(&pdpt[i]);
        for (unsigned j = 0; j < 512; j++)
            directory[j] = (uint64_t)(i * 512 + j) << 21 | LARGE | WB | READ | WRITE | EXECUTE;
    }
    *leaf = &ept_table_at(&ept_table_at(&pdpt[page >> 30 & 511])[page >> 21 & 511])[page >> 12 & 511];
    return root;
}
