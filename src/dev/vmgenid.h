/* Generation id: sixteen bytes that change when a machine may have become two. */
#ifndef DOPPEL_DEV_VMGENID_H
#define DOPPEL_DEV_VMGENID_H

#include "dev/device.h"

enum { VMGENID_BYTES = 16 };

struct vmgenid {
    struct device device;
    /* --- configuration --- */
    uint64_t base;
    struct irq_line changed;            /* rises when the id has changed; edge-triggered */
    /* --- state --- */
    uint8_t id[VMGENID_BYTES];
    /* --- not state --- */
    struct region region;
};

/* Board lock held. Gives the machine a new id, and tells the guest. */
void vmgenid_renew(struct vmgenid *vmgenid);

#endif
