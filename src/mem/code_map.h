/*
 * Which bytes of a page hold decoded or translated code: one bit for each 64 bytes, so that data beside code can be
 * written without dropping it. Shared by all vCPUs; a bit is set by whoever decodes; a page that is
 * written often loses its bits together with its code.
 *
 * The protocol, in order:
 *   decode:  code_map_add(gpa, size)  sets the bits and PAGE_CODE; if the page word then has PAGE_WRITE_CACHED, the
 *            caller makes every vCPU drop its direct-write TLB entries for the page (mmu_unshare_writes) before
 *            it may read the bytes for decoding.
 *   write:   a software TLB never installs a direct-write entry for a page with PAGE_CODE; the slow path asks
 *            code_map_hit(gpa, size) and, if true, tells the watcher, which makes every vCPU drop all code of the granules.
 * PAGE_CODE and PAGE_WRITE_CACHED are bits of one word, set by atomic read-modify-writes that return its old value. One of
 * the two comes first in the word's modification order: either code_map_add sees the writer, or the writer sees the
 * code and installs nothing. A slow-path write stores first, then (after a full fence) looks at the map, while
 * decoding marks the map first and then reads: again one of the two sees the other.
 *
 * Cross-modifying code is asynchronous on real processors too (SDM3 §9.1.3 "Handling Self- and Cross-Modifying Code"):
 * another vCPU may run the old code until its next block border.
 */
#ifndef DOPPEL_MEM_CODE_MAP_H
#define DOPPEL_MEM_CODE_MAP_H

#include "mem/ram.h"

enum { CODE_GRANULE_SHIFT = 6, CODE_GRANULE = 1 << CODE_GRANULE_SHIFT };

/* Any thread. Returns true if direct-write TLB entries for the page may exist and must be dropped first. */
bool code_map_add(struct ram *ram, uint64_t gpa, uint64_t size);
bool code_map_hit(struct ram *ram, uint64_t gpa, uint64_t size);
/*
 * Counts a write to a marked granule of the page, and one of many to another. Marks outlive the code that they stand for: a page whose code is changed
 * again and again keeps them, and so does one that has become data. True once in a while: the marks of the whole
 * page are to be removed and all its code dropped; what is still run from it is marked anew.
 */
bool code_map_wear(struct ram_slot *slot, uint64_t gpa);
/*
 * All code of these granules is about to be dropped by every vCPU at its next block border. ram_written does this, before it
 * tells the watcher, and nobody else needs to: an engine that dropped code on its own account must not, since
 * other vCPUs may hold code of the same granules. Being done before the vCPUs are told, it may leave marks on code
 * that is dropped without need, but never unmarked code.
 */
void code_map_remove(struct ram *ram, uint64_t gpa, uint64_t size);

#endif
