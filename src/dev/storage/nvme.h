/* An NVMe controller; each of its namespaces is a disk. */
#ifndef DOPPEL_DEV_STORAGE_NVME_H
#define DOPPEL_DEV_STORAGE_NVME_H

#include "dev/pci/pci.h"

/* A queue of each kind for administration, and up to 16 of each for data; as many interrupt vectors. */
enum { NVME_NAMESPACES = 16, NVME_QUEUES = 17, NVME_EVENT_COMMANDS = 4 };

enum nvme_register {
#define NVME_REGISTER(name, offset, reset, rw, section) NVME_##name,
#include "dev/storage/nvme_registers.def"
    NVME_REGISTERS
};
enum nvme_feature {
#define NVME_FEATURE(name, id, reset, rw, section) NVME_FEATURE_##name,
#include "dev/storage/nvme_features.def"
    NVME_FEATURES
};

struct block;

struct nvme_submission_queue {
    uint64_t base;
    uint16_t size;                      /* entries; 0: there is no such queue */
    uint16_t head, tail;                /* next to be fetched; one past the last that the guest wrote */
    uint16_t completion_queue;
};

struct nvme_completion_queue {
    uint64_t base;
    uint16_t size;                      /* entries; 0: there is no such queue */
    uint16_t head, tail;                /* next that the guest looks at; next to be written */
    uint16_t vector;
    bool phase, interrupts;
    /* --- not state --- */
    uint16_t promised;                  /* entries for commands that are under way; none are while the state is saved */
    bool signal;                        /* an interrupt is due when all commands have been started */
};

struct nvme {
    struct pci_function pci;
    /* --- configuration --- */
    struct block *namespace[NVME_NAMESPACES];   /* [0] has the identifier 1; those from the first NULL on are not there */
    const char *serial;                         /* NULL: one of ours */
    /* --- state --- */
    uint32_t reg[NVME_REGISTERS];
    uint32_t feature[NVME_FEATURES];
    struct nvme_submission_queue submission[NVME_QUEUES];
    struct nvme_completion_queue completion[NVME_QUEUES];
    uint16_t event_command[NVME_EVENT_COMMANDS];        /* identifiers of Asynchronous Event Requests that wait */
    uint8_t event_commands;
    uint32_t event;                     /* what the next of them answers; 0: nothing happened */
    bool event_happened;
    uint64_t sectors_read, sectors_written, reads, writes;
    /* --- not state --- */
    unsigned under_way;                 /* commands with the backends */
    unsigned flushing;                  /* namespaces that a shutdown waits for */
    unsigned next_queue;                /* whose turn it is */
    bool running;
};

/* How a namespace calls itself (EUI-64); from 1. */
uint64_t nvme_eui64(unsigned namespace_id);

#endif
