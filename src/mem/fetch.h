/*
 * RAM that is fetched on demand. A slot's pages stay in files until they are touched; then a thread copies them into the slot's memfd
 * (userfaultfd(2)). So a machine begins at once and grows by what it touches only, as with a private mapping of the files, and yet
 * its memory has a descriptor: it can be mapped a second time. It is not shared with other machines.
 */
#ifndef DOPPEL_MEM_FETCH_H
#define DOPPEL_MEM_FETCH_H

#include "mem/ram.h"

struct ram_fetcher;

/*
 * NULL: the host does not allow it, err tells why. Linux lets a process handle the faults that the kernel itself meets, as in a read() into
 * guest memory, only with CAP_SYS_PTRACE, vm.unprivileged_userfaultfd = 1 or access to /dev/userfaultfd.
 */
struct ram_fetcher *ram_fetcher_create(struct error *err);
/* Nobody touches the slots any more. May be NULL. */
void ram_fetcher_destroy(struct ram_fetcher *fetcher);
/*
 * Before the machine runs: the slot becomes all zero, and parts of files can be put into it (ram_map_file, or bytes written to slot->source) until
 * it is first touched. If a file cannot be read when a page is wanted, the process gets SIGBUS.
 */
bool ram_fetcher_add(struct ram_fetcher *fetcher, struct ram_slot *slot, struct error *err);
/* All slots have been added, and may be touched from now on. */
bool ram_fetcher_start(struct ram_fetcher *fetcher, struct error *err);

#endif
