/* Within mmu/: copies between a host page and a value. Sizes that instructions use are single moves, so that they are as atomic as the processor's. */
#ifndef DOPPEL_MMU_COPY_H
#define DOPPEL_MMU_COPY_H

#include <string.h>

static inline void copy_operand(void *to, const void *from, unsigned size)
{
    switch (size) {
    case 1: memcpy(to, from, 1); break;
    case 2: memcpy(to, from, 2); break;
    case 4: memcpy(to, from, 4); break;
    case 8: memcpy(to, from, 8); break;
    case 16: memcpy(to, from, 16); break;
    default: memcpy(to, from, size); break;
    }
}

#endif
