/* The watchdog timer of Intel's 6300ESB I/O controller hub. */
#ifndef DOPPEL_DEV_PCI_WATCHDOG_H
#define DOPPEL_DEV_PCI_WATCHDOG_H

#include "dev/pci/pci.h"
#include "dev/system_signal.h"

struct watchdog {
    struct pci_function pci;
    /* --- configuration --- */
    struct system_signal signal;
    /* --- state --- */
    uint32_t preload[2];        /* of the two stages */
    bool interrupt;             /* the first stage ran out: GISR */
    bool timed_out;             /* the second did */
    uint8_t unlock;             /* how far the sequence is that makes a register writable */
    uint8_t stage;              /* that is running: 1 or 2; 0: none */
    uint64_t deadline_ns;       /* when it runs out */
    /* --- not state --- */
    struct timer timer;
};

#endif
