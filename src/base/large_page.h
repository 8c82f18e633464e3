/* Large pages of the host's. */
#ifndef DOPPEL_BASE_LARGE_PAGE_H
#define DOPPEL_BASE_LARGE_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>

/*
 * The mapping's memory becomes large pages now, which for shared memory is the only way that needs no setting of the host's. `at` and `size`
 * are multiples of 2 MiB. False: the host has none, or is older than Linux 6.1.
 */
static inline bool large_page_collapse(void *at, size_t size)
{
    enum { COLLAPSE = 25 };             /* MADV_COLLAPSE, which not all C libraries know */
    return !madvise(at, size, COLLAPSE);
}

#endif
