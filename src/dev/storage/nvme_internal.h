/* What the files of the NVMe controller share with each other only. */
#ifndef DOPPEL_DEV_STORAGE_NVME_INTERNAL_H
#define DOPPEL_DEV_STORAGE_NVME_INTERNAL_H

#include "dev/storage/nvme.h"

enum { NVME_SECTOR = 512, NVME_PAGE = 4096, NVME_TRANSFER_PAGES = 128, NVME_ANSWER = 4096 };

/* Submission queue entry, §4.2; little-endian. */
struct nvme_command {
    uint8_t opcode, flags;
    uint16_t id;
    uint32_t namespace_id;
    uint64_t reserved, metadata, prp1, prp2;
    uint32_t dword10, dword11, dword12, dword13, dword14, dword15;
};
_Static_assert(sizeof(struct nvme_command) == 64, "as the guest writes it");

/* Status field without the phase: type << 8 | code (§4.6.1); NVME_DO_NOT_RETRY may be added. */
enum nvme_status {
    NVME_SUCCESS = 0x000,
    NVME_INVALID_OPCODE = 0x001,
    NVME_INVALID_FIELD = 0x002,
    NVME_DATA_TRANSFER_ERROR = 0x004,
    NVME_INTERNAL_ERROR = 0x006,
    NVME_INVALID_NAMESPACE = 0x00B,
    NVME_PRP_OFFSET_INVALID = 0x013,
    NVME_WRITE_PROTECTED = 0x020,
    NVME_LBA_OUT_OF_RANGE = 0x080,
    NVME_COMPLETION_QUEUE_INVALID = 0x100,
    NVME_INVALID_QUEUE_IDENTIFIER = 0x101,
    NVME_INVALID_QUEUE_SIZE = 0x102,
    NVME_EVENT_REQUEST_LIMIT = 0x105,
    NVME_INVALID_INTERRUPT_VECTOR = 0x108,
    NVME_INVALID_LOG_PAGE = 0x109,
    NVME_INVALID_QUEUE_DELETION = 0x10C,
    NVME_FEATURE_NOT_SAVEABLE = 0x10D,
    NVME_FEATURE_NOT_CHANGEABLE = 0x10E,
    NVME_WRITE_FAULT = 0x280,
    NVME_UNRECOVERED_READ_ERROR = 0x281,
    NVME_DO_NOT_RETRY = 1 << 14,
    NVME_PENDING = 1 << 16,             /* ours: the answer comes later */
};

/* Where a command's data lies in guest memory. */
struct nvme_data {
    unsigned count;
    struct nvme_range {
        uint64_t address, size;
    } range[NVME_TRANSFER_PAGES + 1];
};

static inline bool nvme_in_use(const struct nvme *nvme, unsigned namespace_id)
{
    return namespace_id >= 1 && namespace_id <= NVME_NAMESPACES && nvme->namespace[namespace_id - 1];
}

/* nvme.c: a command's end: its entry in the completion queue that was promised to it, and the interrupt. */
void nvme_complete(struct nvme *nvme, unsigned queue, uint16_t command_id, uint32_t status, uint32_t result);
/* Starts what waits in the submission queues, as far as there is room for answers. */
void nvme_run(struct nvme *nvme);
/* Waits until no command is under way with a backend; those that end are reported as ever. */
void nvme_drain(struct nvme *nvme);
/* An asynchronous event (§5.2), type | information << 8. */
void nvme_report_event(struct nvme *nvme, uint32_t event);

/* nvme_admin.c: returns a status, NVME_PENDING for a request that waits for an event. */
uint32_t nvme_admin(struct nvme *nvme, const struct nvme_command *command, uint32_t *result);
void nvme_send_event(struct nvme *nvme);

/* nvme_identify.c: fill NVME_ANSWER zeroed bytes. */
uint32_t nvme_identify(const struct nvme *nvme, const struct nvme_command *command, uint8_t *answer);
uint32_t nvme_log_page(const struct nvme *nvme, unsigned page, uint8_t *answer);

/* nvme_io.c */
uint32_t nvme_io(struct nvme *nvme, unsigned queue, const struct nvme_command *command);
/* Physical region pages (§4.3) for `size` bytes, at most NVME_TRANSFER_PAGES pages. Lists are read once. */
uint32_t nvme_find_data(const struct nvme *nvme, const struct nvme_command *command, uint64_t size, struct nvme_data *data);
uint32_t nvme_write_data(const struct nvme *nvme, const struct nvme_command *command, const void *from, uint64_t size);
/* Brings all disks' caches to stable storage; nvme_flushed is called at each one's end. */
void nvme_flush_all(struct nvme *nvme);
/* nvme.c */
void nvme_flushed(struct nvme *nvme);

#endif
