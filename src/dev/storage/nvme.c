/*
 * NVMe controller (NVM Express 1.4; section numbers are its) with the NVM command set. This file keeps the registers and the queues:
 * it fetches commands, hands them to nvme_admin.c or nvme_io.c, and writes their completions.
 *
 * A command is only fetched when its completion has a place: the entry is promised to it, so that a completion never waits. A
 * guest that reads no completions stops its own queues and nobody else's.
 *
 * Not modelled: queues in pieces, scatter-gather lists, fused commands, metadata, weighted arbitration, several power states, firmware
 * download, namespace management, reservations, the controller memory buffer.
 */
#include "dev/storage/nvme.h"

#include <string.h>

#include "backend/block.h"
#include "dev/storage/nvme_internal.h"

/* --- registers --- */

static const struct nvme_row {
    uint16_t offset;
    uint32_t reset, rw;
} nvme_row[NVME_REGISTERS] = {
#define NVME_REGISTER(name, offset, reset, rw, section) [NVME_##name] = { offset, reset, rw },
#include "dev/storage/nvme_registers.def"
};
static const uint32_t feature_reset[NVME_FEATURES] = {
#define NVME_FEATURE(name, id, reset, rw, section) [NVME_FEATURE_##name] = reset,
#include "dev/storage/nvme_features.def"
};

enum {
    NVME_VENDOR = 0x1AF4,
    NVME_DEVICE = 0x10F0,               /* of those for experiments */
    NVME_CLASS = 0x010802,
    NVME_BAR_SIZE = 0x4000,
    NVME_MSIX_BAR = 4,
    NVME_DOORBELLS = 0x1000,
    UNDER_WAY_MAX = 256,
};
enum { CC_EN = 1 << 0, CC_FIXED = 0x3FF0 /* CSS, MPS, AMS: one choice each, 0 */, CC_SHN = 3 << 14 };
enum { CSTS_RDY = 1 << 0, CSTS_CFS = 1 << 1, CSTS_SHST = 3 << 2, CSTS_SHST_OCCURRING = 1 << 2, CSTS_SHST_COMPLETE = 2 << 2 };
enum { EVENT_INVALID_DOORBELL = 0x0000, EVENT_INVALID_DOORBELL_VALUE = 0x0100 };

/* --- interrupts --- */

/* The pin stands for all queues: they share vector 0 (§7.5.1). */
static void update_line(struct nvme *nvme)
{
    bool level = false;
    for (unsigned i = 0; i < NVME_QUEUES; i++) {
        const struct nvme_completion_queue *queue = &nvme->completion[i];
        level |= queue->size && queue->interrupts && queue->head != queue->tail;
    }
    pci_intx(&nvme->pci, level && !(nvme->reg[NVME_INTMS] & 1) && !pci_msix_enabled(&nvme->pci));
}

/* While commands are started, one interrupt tells of all that the backends had at hand. */
static void interrupt(struct nvme *nvme, struct nvme_completion_queue *queue)
{
    queue->signal = nvme->running;
    if (queue->signal)
        return;
    if (queue->interrupts && pci_msix_enabled(&nvme->pci))
        pci_msix_send(&nvme->pci, queue->vector);
    update_line(nvme);
}

static void signal_all(struct nvme *nvme)
{
    for (unsigned i = 0; i < NVME_QUEUES; i++)
        if (nvme->completion[i].signal)
            interrupt(nvme, &nvme->completion[i]);
}

/* --- completions --- */

/* What the guest gave us to work with is not there: only a reset helps (§9.5). */
static void fatal(struct nvme *nvme, const char *what)
{
    guest_error(nvme->pci.device.world.log, "%s: %s is not in memory", nvme->pci.device.name, what);
    nvme->reg[NVME_CSTS] |= CSTS_CFS;
}

static unsigned used(const struct nvme_completion_queue *queue)
{
    return (unsigned)(queue->tail + queue->size - queue->head) % queue->size;
}

static unsigned room(const struct nvme_completion_queue *queue) { return queue->size - 1 - used(queue) - queue->promised; }

void nvme_complete(struct nvme *nvme, unsigned queue, uint16_t command_id, uint32_t status, uint32_t result)
{
    const struct nvme_submission_queue *from = &nvme->submission[queue];
    struct nvme_completion_queue *to = &nvme->completion[from->completion_queue];
    const uint32_t entry[4] = { result, 0, from->head | (uint32_t)queue << 16, command_id | (status << 1 | to->phase) << 16 };
    to->promised--;
    if (!dma_write(&nvme->pci.device.dma, to->base + to->tail * sizeof(entry), entry, sizeof(entry))) {
        fatal(nvme, "a completion queue");
        return;
    }
    if (++to->tail == to->size) {
        to->tail = 0;
        to->phase = !to->phase;
    }
    interrupt(nvme, to);
}

/* Events that nobody fetched yet are not counted: the first stays (§5.2). */
void nvme_report_event(struct nvme *nvme, uint32_t event)
{
    if (!nvme->event_happened) {
        nvme->event_happened = true;
        nvme->event = event;
    }
    nvme_send_event(nvme);
}

void nvme_send_event(struct nvme *nvme)
{
    struct nvme_completion_queue *queue = &nvme->completion[0];
    if (!nvme->event_happened || !nvme->event_commands || !queue->size || !room(queue))
        return;
    nvme->event_happened = false;
    queue->promised++;
    nvme_complete(nvme, 0, nvme->event_command[--nvme->event_commands], NVME_SUCCESS, nvme->event);
}

/* --- commands --- */

static bool can_start(const struct nvme *nvme, const struct nvme_submission_queue *queue)
{
    return nvme->reg[NVME_CSTS] & CSTS_RDY && !(nvme->reg[NVME_CSTS] & CSTS_CFS) && queue->size && queue->head != queue->tail &&
           room(&nvme->completion[queue->completion_queue]) && nvme->under_way < UNDER_WAY_MAX;
}

static void start(struct nvme *nvme, unsigned n)
{
    struct nvme_submission_queue *queue = &nvme->submission[n];
    struct nvme_completion_queue *answers = &nvme->completion[queue->completion_queue];
    struct nvme_command command;
    uint32_t result = 0;
    if (!dma_read(&nvme->pci.device.dma, queue->base + queue->head * sizeof(command), &command, sizeof(command))) {
        fatal(nvme, "a submission queue");
        return;
    }
    queue->head = (uint16_t)((queue->head + 1) % queue->size);
    answers->promised++;
    uint32_t status = n ? nvme_io(nvme, n, &command) : nvme_admin(nvme, &command, &result);
    trace(nvme->pci.device.world.log, block, "%s: queue %u command %#x, namespace %u, %#x %#x: %#x", nvme->pci.device.name, n,
          command.opcode, command.namespace_id, command.dword10, command.dword11, status);
    if (status != NVME_PENDING)
        nvme_complete(nvme, n, command.id, status, result);
}

/* Round robin, a command each (§4.13.1). */
static bool start_next(struct nvme *nvme)
{
    for (unsigned i = 0; i < NVME_QUEUES; i++) {
        unsigned n = nvme->next_queue++ % NVME_QUEUES;
        if (can_start(nvme, &nvme->submission[n])) {
            start(nvme, n);
            return true;
        }
    }
    return false;
}

static bool anything_waits(const struct nvme *nvme)
{
    for (unsigned i = 0; i < NVME_QUEUES; i++)
        if (can_start(nvme, &nvme->submission[i]))
            return true;
    return false;
}

static void plug(struct nvme *nvme, void (*turn)(struct block *block))
{
    for (unsigned i = 0; i < NVME_NAMESPACES && nvme->namespace[i]; i++)
        turn(nvme->namespace[i]);
}

/* Commands that end while others start come here again; the outer round sees to what they made possible. */
void nvme_run(struct nvme *nvme)
{
    if (nvme->running)
        return;
    nvme->running = true;
    do {
        plug(nvme, block_plug);
        while (start_next(nvme))
            ;
        plug(nvme, block_unplug);
    } while (anything_waits(nvme));
    nvme->running = false;
    signal_all(nvme);
}

void nvme_drain(struct nvme *nvme)
{
    while (nvme->under_way || nvme->flushing)
        for (unsigned i = 0; i < NVME_NAMESPACES && nvme->namespace[i]; i++)
            block_drain(nvme->namespace[i]);
}

/* --- enabling, shutdown --- */

static void stop(struct nvme *nvme)
{
    nvme->reg[NVME_CSTS] &= ~(uint32_t)CSTS_RDY;        /* what has not begun does not begin any more */
    nvme_drain(nvme);
    memset(nvme->submission, 0, sizeof(nvme->submission));
    memset(nvme->completion, 0, sizeof(nvme->completion));
    memcpy(nvme->feature, feature_reset, sizeof(nvme->feature));
    nvme->event_commands = 0;
    nvme->event = 0;
    nvme->event_happened = false;
    nvme->reg[NVME_INTMS] = nvme->reg[NVME_CSTS] = 0;
    update_line(nvme);
}

/* §7.3.1: queue sizes below two entries and page sizes that are not there are no way to start. */
static void enable(struct nvme *nvme)
{
    uint16_t submissions = (nvme->reg[NVME_AQA] & 0xFFF) + 1, completions = (nvme->reg[NVME_AQA] >> 16) + 1;
    if (nvme->reg[NVME_CC] & CC_FIXED || submissions < 2 || completions < 2) {
        guest_error(nvme->pci.device.world.log, "%s: enabled with CC %#x, AQA %#x", nvme->pci.device.name, nvme->reg[NVME_CC],
                    nvme->reg[NVME_AQA]);
        nvme->reg[NVME_CSTS] |= CSTS_CFS;
        return;
    }
    nvme->submission[0] = (struct nvme_submission_queue){
        .base = nvme->reg[NVME_ASQ] | (uint64_t)nvme->reg[NVME_ASQ_HIGH] << 32, .size = submissions };
    nvme->completion[0] = (struct nvme_completion_queue){
        .base = nvme->reg[NVME_ACQ] | (uint64_t)nvme->reg[NVME_ACQ_HIGH] << 32, .size = completions, .phase = true,
        .interrupts = true };
    nvme->reg[NVME_CSTS] |= CSTS_RDY;
}

void nvme_flushed(struct nvme *nvme)
{
    if (--nvme->flushing == 0)
        nvme->reg[NVME_CSTS] = (nvme->reg[NVME_CSTS] & ~(uint32_t)CSTS_SHST) | CSTS_SHST_COMPLETE;
}

/* §7.6.2: what is in the disks' caches is on stable storage before the shutdown is complete. */
static void shut_down(struct nvme *nvme)
{
    nvme->reg[NVME_CSTS] = (nvme->reg[NVME_CSTS] & ~(uint32_t)CSTS_SHST) | CSTS_SHST_OCCURRING;
    nvme->flushing++;
    nvme_flush_all(nvme);
    nvme_flushed(nvme);
}

static void control_written(struct nvme *nvme, uint32_t old)
{
    uint32_t now = nvme->reg[NVME_CC];
    if (now & CC_EN && !(old & CC_EN))
        enable(nvme);
    else if (old & CC_EN && !(now & CC_EN))
        stop(nvme);
    if (now & CC_SHN && !(old & CC_SHN) && !(nvme->reg[NVME_CSTS] & CSTS_SHST))
        shut_down(nvme);
}

/* --- access --- */

static void write_register(struct nvme *nvme, enum nvme_register n, uint32_t value)
{
    uint32_t old = nvme->reg[n], rw = nvme_row[n].rw;
    nvme->reg[n] = (old & ~rw) | (value & rw);
    switch (n) {
    case NVME_INTMS: nvme->reg[NVME_INTMS] |= value; break;
    case NVME_INTMC: nvme->reg[NVME_INTMS] &= ~value; break;
    case NVME_CC: control_written(nvme, old); break;
    default: break;
    }
    update_line(nvme);
}

static void bad_doorbell(struct nvme *nvme, unsigned n, uint32_t value, uint32_t event)
{
    guest_error(nvme->pci.device.world.log, "%s: doorbell %u written with %#x", nvme->pci.device.name, n, value);
    if (nvme->reg[NVME_CSTS] & CSTS_RDY)
        nvme_report_event(nvme, event);
}

static void ring_submission(struct nvme *nvme, unsigned n, uint32_t value)
{
    struct nvme_submission_queue *queue = &nvme->submission[n / 2];
    if (!queue->size)
        bad_doorbell(nvme, n, value, EVENT_INVALID_DOORBELL);
    else if (value >= queue->size)
        bad_doorbell(nvme, n, value, EVENT_INVALID_DOORBELL_VALUE);
    else
        queue->tail = (uint16_t)value;
}

/* A head moves over entries that are there, no further (§3.1.17). */
static void ring_completion(struct nvme *nvme, unsigned n, uint32_t value)
{
    struct nvme_completion_queue *queue = &nvme->completion[n / 2];
    if (!queue->size)
        bad_doorbell(nvme, n, value, EVENT_INVALID_DOORBELL);
    else if (value >= queue->size || (value + queue->size - queue->head) % queue->size > used(queue))
        bad_doorbell(nvme, n, value, EVENT_INVALID_DOORBELL_VALUE);
    else
        queue->head = (uint16_t)value;
}

/* Submission and completion queues take turns (§3.1.16). */
static void ring(struct nvme *nvme, unsigned n, uint32_t value)
{
    if (n / 2 >= NVME_QUEUES)
        bad_doorbell(nvme, n, value, EVENT_INVALID_DOORBELL);
    else if (n % 2)
        ring_completion(nvme, n, value);
    else
        ring_submission(nvme, n, value);
    nvme_send_event(nvme);
    nvme_run(nvme);
    update_line(nvme);
}

/* The bus hands over aligned accesses of four bytes only. Doorbells read as 0. */
static enum access_result nvme_access(void *owner, struct access *access)
{
    struct nvme *nvme = owner;
    if (!access->write)
        access->value = 0;
    else if (access->address >= NVME_DOORBELLS)
        ring(nvme, (unsigned)(access->address - NVME_DOORBELLS) / 4, (uint32_t)access->value);
    for (unsigned i = 0; i < NVME_REGISTERS; i++) {
        if (nvme_row[i].offset != access->address)
            continue;
        if (access->write)
            write_register(nvme, (enum nvme_register)i, (uint32_t)access->value);
        else
            access->value = nvme->reg[i == NVME_INTMC ? NVME_INTMS : i];
    }
    return ACCESS_OK;
}

static void config_written(struct pci_function *function, unsigned offset, unsigned size) { update_line((struct nvme *)function); }

/* --- reset, init --- */

static void nvme_reset(struct device *device)
{
    struct nvme *nvme = (struct nvme *)device;
    stop(nvme);
    pci_function_reset(&nvme->pci);
    for (unsigned i = 0; i < NVME_REGISTERS; i++)
        nvme->reg[i] = nvme_row[i].reset;
    nvme->sectors_read = nvme->sectors_written = nvme->reads = nvme->writes = 0;
    nvme->next_queue = 0;
    update_line(nvme);
}

static bool nvme_init(struct device *device, struct error *err)
{
    struct nvme *nvme = (struct nvme *)device;
    static const struct pci_identity identity = { NVME_VENDOR, NVME_DEVICE, NVME_VENDOR, 0x1100, NVME_CLASS, 1 };
    if (!pci_function_init(&nvme->pci, &identity, err))
        return false;
    pci_bar_init(&nvme->pci, 0, "nvme", NVME_BAR_SIZE, true, false, nvme_access, nvme);
    nvme->pci.bar[0].region.access_min = nvme->pci.bar[0].region.access_max = 4;
    pci_add_msix(&nvme->pci, NVME_MSIX_BAR, NVME_QUEUES);
    nvme->pci.config_written = config_written;
    return true;
}

static void nvme_quiesce(struct device *device) { nvme_drain((struct nvme *)device); }

/* What was loaded may be anything: queues that cannot be are not there. */
static void nvme_resume(struct device *device)
{
    struct nvme *nvme = (struct nvme *)device;
    pci_function_resume(&nvme->pci);
    nvme->event_commands %= NVME_EVENT_COMMANDS + 1;
    for (unsigned i = 0; i < NVME_QUEUES; i++) {
        struct nvme_submission_queue *submission = &nvme->submission[i];
        struct nvme_completion_queue *completion = &nvme->completion[i];
        if (completion->size < 2 || completion->head >= completion->size || completion->tail >= completion->size ||
            completion->vector >= NVME_QUEUES)
            completion->size = 0;
        completion->promised = 0;
        if (submission->head >= submission->size || submission->tail >= submission->size)
            submission->size = 0;
    }
    for (unsigned i = 0; i < NVME_QUEUES; i++)
        if (nvme->submission[i].completion_queue >= NVME_QUEUES || !nvme->completion[nvme->submission[i].completion_queue].size)
            nvme->submission[i].size = 0;
    nvme_run(nvme);
    update_line(nvme);
}

static void nvme_fini(struct device *device)
{
    nvme_quiesce(device);
    pci_function_fini((struct pci_function *)device);
}

/* --- state list, type --- */

static const struct state_field submission_fields[] = {
    STATE_SCALAR(struct nvme_submission_queue, base), STATE_SCALAR(struct nvme_submission_queue, size),
    STATE_SCALAR(struct nvme_submission_queue, head), STATE_SCALAR(struct nvme_submission_queue, tail),
    STATE_SCALAR(struct nvme_submission_queue, completion_queue),
};
static const struct state_list submission_state = STATE_LIST("nvme-submission-queue", 1, submission_fields);

static const struct state_field completion_fields[] = {
    STATE_SCALAR(struct nvme_completion_queue, base),   STATE_SCALAR(struct nvme_completion_queue, size),
    STATE_SCALAR(struct nvme_completion_queue, head),   STATE_SCALAR(struct nvme_completion_queue, tail),
    STATE_SCALAR(struct nvme_completion_queue, vector), STATE_SCALAR(struct nvme_completion_queue, phase),
    STATE_SCALAR(struct nvme_completion_queue, interrupts),
};
static const struct state_list completion_state = STATE_LIST("nvme-completion-queue", 1, completion_fields);

static const struct state_field fields[] = {
    STATE_NESTED(struct nvme, pci, pci_function_state),
    STATE_ARRAY(struct nvme, reg),
    STATE_ARRAY(struct nvme, feature),
    STATE_NESTED_ARRAY(struct nvme, submission, submission_state),
    STATE_NESTED_ARRAY(struct nvme, completion, completion_state),
    STATE_ARRAY(struct nvme, event_command),
    STATE_SCALAR(struct nvme, event_commands),
    STATE_SCALAR(struct nvme, event),
    STATE_SCALAR(struct nvme, event_happened),
    STATE_SCALAR(struct nvme, sectors_read),
    STATE_SCALAR(struct nvme, sectors_written),
    STATE_SCALAR(struct nvme, reads),
    STATE_SCALAR(struct nvme, writes),
};
static const struct state_list nvme_state = STATE_LIST("nvme", 1, fields);

const struct device_type device_nvme = {
    .name = "nvme",
    .text = "NVMe controller",
    .size = sizeof(struct nvme),
    .state = &nvme_state,
    .init = nvme_init,
    .reset = nvme_reset,
    .quiesce = nvme_quiesce,
    .resume = nvme_resume,
    .fini = nvme_fini,
};
