/* A small NVMe driver for tests: the administration queues and one pair for data, commands by hand. */
#ifndef DOPPEL_TESTS_DEV_NVME_DRIVER_H
#define DOPPEL_TESTS_DEV_NVME_DRIVER_H

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/block.h"
#include "dev/rig.h"
#include "dev/storage/nvme_internal.h"

enum { NVME_DEVFN = 3 << 3, NVME_ASQ_AT = 0x10000, NVME_ACQ_AT = 0x12000, NVME_SQ_AT = 0x20000, NVME_CQ_AT = 0x30000, NVME_LIST = 0x40000,
       NVME_BUFFER = 0x100000, NVME_QUEUE = 8, NVME_IMAGE_SECTORS = 4096 };
enum { R_CAP = 0x00, R_VS = 0x08, R_INTMS = 0x0C, R_INTMC = 0x10, R_CC = 0x14, R_CSTS = 0x1C, R_AQA = 0x24, R_ASQ = 0x28, R_ACQ = 0x30,
       R_DOORBELL = 0x1000, CC_ENABLE = 0x00460001, CC_SHUTDOWN = 1 << 14 };

struct nvme_rig {
    struct rig rig;
    struct block *disk, *read_only;
    struct nvme *nvme;
    uint64_t bar;
    int fd;                     /* both namespaces' image: sector n is filled with n */
    uint16_t sq_tail[NVME_QUEUES], cq_head[NVME_QUEUES];
    bool phase[NVME_QUEUES];
    uint16_t next_id;
};

struct nvme_answer {
    uint32_t result, reserved;
    uint16_t head, queue, id, status;
};

static inline int nvme_image(void)
{
    int fd = memfd_create("disk", MFD_CLOEXEC);
    uint8_t sector[512];
    for (unsigned i = 0; i < NVME_IMAGE_SECTORS; i++) {
        memset(sector, (int)i, sizeof(sector));
        assert_int_equal(pwrite(fd, sector, sizeof(sector), i * 512), 512);
    }
    return fd;
}

static inline struct block *nvme_open_image(struct nvme_rig *r, int fd, bool read_only)
{
    struct error err = { "" };
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    struct block_options options = { .path = path, .image = { .read_only = read_only } };
    struct block *block = block_open(&options, r->rig.loop, NULL, &r->rig.log, &err);
    if (!block)
        fail_msg("%s", err.text);
    return block;
}

static inline void nvme_configure(struct device *device, void *opaque)
{
    struct nvme_rig *r = opaque;
    ((struct nvme *)device)->namespace[0] = r->disk;
    ((struct nvme *)device)->namespace[1] = r->read_only;
    ((struct nvme *)device)->serial = "S1";
}

static inline uint32_t nvme_get(struct nvme_rig *r, unsigned reg) { return (uint32_t)rig_read(&r->rig, r->bar + reg, 4); }
static inline void nvme_set(struct nvme_rig *r, unsigned reg, uint32_t value) { rig_write(&r->rig, r->bar + reg, 4, value); }

static inline uint64_t nvme_sq(unsigned queue) { return queue ? NVME_SQ_AT + queue * 0x1000 : NVME_ASQ_AT; }
static inline uint64_t nvme_cq(unsigned queue) { return queue ? NVME_CQ_AT + queue * 0x1000 : NVME_ACQ_AT; }

static inline void nvme_start(struct nvme_rig *r)
{
    const uint8_t zero[NVME_QUEUE * 16] = { 0 };
    for (unsigned i = 0; i < NVME_QUEUES; i++) {
        r->sq_tail[i] = r->cq_head[i] = 0;
        r->phase[i] = true;
        ram_write(r->rig.ram, nvme_cq(i), zero, sizeof(zero));
    }
    nvme_set(r, R_AQA, (NVME_QUEUE - 1) << 16 | (NVME_QUEUE - 1));
    rig_write(&r->rig, r->bar + R_ASQ, 8, NVME_ASQ_AT);
    rig_write(&r->rig, r->bar + R_ACQ, 8, NVME_ACQ_AT);
    nvme_set(r, R_CC, CC_ENABLE);
}

static inline void nvme_rig_create(struct nvme_rig *r)
{
    rig_create(&r->rig);
    r->fd = nvme_image();
    r->disk = nvme_open_image(r, r->fd, false);
    int second = nvme_image();
    r->read_only = nvme_open_image(r, second, true);
    close(second);
    r->nvme = (struct nvme *)rig_add(&r->rig, &device_nvme, NVME_DEVFN, nvme_configure, r);
    r->bar = rig_bar(&r->rig, NVME_DEVFN, 0);
    nvme_start(r);
}

static inline void nvme_rig_destroy(struct nvme_rig *r)
{
    device_destroy(&r->nvme->pci.device);
    block_close(r->disk);
    block_close(r->read_only);
    close(r->fd);
    rig_destroy(&r->rig);
}

/* Writes the command into the queue's next entry; the caller rings. */
static inline uint16_t nvme_put(struct nvme_rig *r, unsigned queue, struct nvme_command command)
{
    command.id = r->next_id++;
    assert_true(ram_write(r->rig.ram, nvme_sq(queue) + r->sq_tail[queue] * sizeof(command), &command, sizeof(command)));
    r->sq_tail[queue] = (uint16_t)((r->sq_tail[queue] + 1) % NVME_QUEUE);
    return command.id;
}

static inline void nvme_ring(struct nvme_rig *r, unsigned queue) { nvme_set(r, R_DOORBELL + 8 * queue, r->sq_tail[queue]); }

/* The next answer in a completion queue, if there is one. */
static inline bool nvme_next(struct nvme_rig *r, unsigned queue, struct nvme_answer *answer)
{
    assert_true(ram_read(r->rig.ram, nvme_cq(queue) + r->cq_head[queue] * sizeof(*answer), answer, sizeof(*answer)));
    if ((answer->status & 1) != r->phase[queue])
        return false;
    r->cq_head[queue] = (uint16_t)((r->cq_head[queue] + 1) % NVME_QUEUE);
    r->phase[queue] ^= r->cq_head[queue] == 0;
    nvme_set(r, R_DOORBELL + 8 * queue + 4, r->cq_head[queue]);
    return true;
}

static inline struct nvme_answer nvme_wait(struct nvme_rig *r, unsigned queue)
{
    struct nvme_answer answer;
    for (unsigned i = 0; i < 20000; i++) {
        if (nvme_next(r, queue, &answer))
            return answer;
        loop_run_once(r->rig.loop, 10);
    }
    fail_msg("the command does not end");
    return answer;
}

/* Runs a command; returns its status without phase and "do not retry". */
static inline unsigned nvme_do(struct nvme_rig *r, unsigned queue, struct nvme_command command)
{
    uint16_t id = nvme_put(r, queue, command);
    nvme_ring(r, queue);
    struct nvme_answer answer = nvme_wait(r, queue);
    assert_int_equal(answer.id, id);
    assert_int_equal(answer.queue, queue);
    return answer.status >> 1 & 0x7FF;
}

/* A pair of queues with the number, and the completion queue's vector. */
static inline void nvme_make_queues(struct nvme_rig *r, unsigned n, unsigned vector)
{
    assert_int_equal(nvme_do(r, 0, (struct nvme_command){ .opcode = 0x05, .prp1 = nvme_cq(n), .dword10 = (NVME_QUEUE - 1) << 16 | n,
                                                         .dword11 = vector << 16 | 3 }), 0);
    assert_int_equal(nvme_do(r, 0, (struct nvme_command){ .opcode = 0x01, .prp1 = nvme_sq(n), .dword10 = (NVME_QUEUE - 1) << 16 | n,
                                                         .dword11 = n << 16 | 1 }), 0);
}

#endif
