/*
 * Translations that are used again: between them and the store's entries (store.h).
 *
 * An entry is the code of one trace with the list of what depends on its surroundings (reloc.h), and the bytes of guest code that it was
 * made from, by their place in the page. It is looked for by the mode, the place in the page and the first bytes, wherever the interpreter
 * would begin a block; it is used only if all its bytes are the guest's now, at whatever linear and physical address. So the same code
 * in another process, at another address or on another vCPU is translated once, and what an earlier run translated not at all.
 *
 * A kernel that the loader moves (KASLR) has its own addresses in constants and displacements of 32 bits, so its code is not the same
 * in two boots but for those. What may be one is a *hole*: it is not compared, and put into the host's code as the guest has it now. An
 * emitter must use such a value as it is, or not at all. Displacements from RIP to per-CPU variables are holes as well; there the sum
 * must be what it was.
 *
 * Its sites come without the interpreter's ops: each is decoded, from the bytes that were compared, when it first runs.
 */
#ifndef DOPPEL_DBT_KEPT_H
#define DOPPEL_DBT_KEPT_H

#include "engine/dbt/dbt.h"
#include "engine/dbt/store.h"

struct work;
struct kept;

/* Opens the vCPU's store for what shapes the code of this engine; without one, or if it is of another shape, nothing is kept. */
void kept_attach(struct vcpu *vcpu, struct dbt *dbt);
/*
 * Is code of the present mode kept at all? 32-bit code is not: holes are looked for among 64-bit addresses. Nor is supervisor code that hardly
 * anybody would look for: there is one kernel, and its few processors translate it once each, unless they have thrown all of it away once.
 */
static inline bool kept_suits(const struct dbt *dbt)
{
    return dbt->store && !(dbt->mode & MODE_32) && (dbt->keeps_supervisor || (dbt->mode & (MODE_USER | MODE_VMX_GUEST)));
}
/* By what an entry is found. */
struct kept_find {
    const uint8_t *code;                /* the guest's bytes from the trace's first on, as many as are looked at at most */
    unsigned probed;                    /* by how many of them; 0: by nobody */
};
/*
 * Of a translation that has just been made, before any jump of it is patched: its entry, in w->entry; returns its size, 0: it can not be one. `shared`:
 * others may find it, unless find->probed says that they can not. Any thread that has such a `work`.
 */
size_t kept_make(struct work *w, bool shared, struct kept_find *find);
void kept_share(const struct work *w, const struct kept_find *find, size_t size);
/* Both, on the vCPU's thread, with the code at its RIP. */
void kept_add(struct work *w);
/*
 * The translation from an entry that has been made or checked, for the page of code that the host has at `page`, the guest at `gpa`, and linear address
 * rip. NULL: the code that is there is another one, or an address does not fit.
 */
struct translation *kept_install(struct vcpu *vcpu, struct dbt *dbt, const struct kept *k, const uint8_t *page, uint64_t gpa, uint64_t rip);
/* The translation at rip made from an entry, if the TLB knows the page and there is one; it may flush the cache. */
struct translation *kept_use(struct vcpu *vcpu, struct dbt *dbt);
/* Gives a site its op. False: no room; the interpreter's blocks and stubs were flushed, leave. */
bool kept_bind(struct vcpu *vcpu, struct site *site);
/* Is the entry, whose checksum is right, one whose parts fit together? For tests. */
bool kept_check(const void *bytes, size_t size);

#endif
