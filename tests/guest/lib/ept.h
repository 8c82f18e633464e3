/* Tables of EPT (SDM3 §29.3) for the guests that are hypervisors. */
#ifndef DOPPEL_TESTS_GUEST_EPT_H
#define DOPPEL_TESTS_GUEST_EPT_H

#include <stdint.h>

enum { READ = 1, WRITE = 2, EXECUTE = 4, WB = 6 << 3, LARGE = 1 << 7, ACCESSED = 1 << 8, DIRTY = 1 << 9, USER_EXECUTE = 1 << 10 };
enum { EPTP_UC_4 = 3 << 3, EPTP_WB_4 = 6 | 3 << 3, EPTP_AD = 1 << 6 };

/* The table that an entry leads to; made, with all rights, where the entry is 0. */
uint64_t *ept_table_at(uint64_t *entry);
/* The root of tables with the first 4 GiB as they are; *leaf becomes the entry of one further page, above them, which is 0. */
uint64_t *ept_build(uint64_t page, uint64_t **leaf);

#endif
