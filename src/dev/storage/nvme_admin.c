/* Administration commands (NVM Express 1.4 §5): queues, features, identification, logs, events. */
#include <string.h>

#include "dev/storage/nvme_internal.h"

enum admin_opcode {
    DELETE_SUBMISSION_QUEUE = 0x00,
    CREATE_SUBMISSION_QUEUE = 0x01,
    GET_LOG_PAGE = 0x02,
    DELETE_COMPLETION_QUEUE = 0x04,
    CREATE_COMPLETION_QUEUE = 0x05,
    IDENTIFY = 0x06,
    ABORT = 0x08,
    SET_FEATURES = 0x09,
    GET_FEATURES = 0x0A,
    ASYNCHRONOUS_EVENT_REQUEST = 0x0C,
};
enum { QUEUE_CONTIGUOUS = 1 << 0, QUEUE_INTERRUPTS = 1 << 1, QUEUE_SIZE_MAX = 1024 };

static const struct feature_row {
    uint8_t id;
    uint32_t reset, rw;
} feature_row[NVME_FEATURES] = {
#define NVME_FEATURE(name, id, reset, rw, section) [NVME_FEATURE_##name] = { id, reset, rw },
#include "dev/storage/nvme_features.def"
};

/* --- queues --- */

static bool is_data_queue(unsigned n) { return n >= 1 && n < NVME_QUEUES; }

/* §5.3, §5.4: what creating one of either kind has in common. */
static uint32_t check_queue(const struct nvme_command *command, bool there)
{
    unsigned size = (command->dword10 >> 16) + 1;
    if (!is_data_queue(command->dword10 & 0xFFFF) || there)
        return NVME_INVALID_QUEUE_IDENTIFIER | NVME_DO_NOT_RETRY;
    if (size < 2 || size > QUEUE_SIZE_MAX)
        return NVME_INVALID_QUEUE_SIZE | NVME_DO_NOT_RETRY;
    if (command->prp1 % NVME_PAGE)
        return NVME_PRP_OFFSET_INVALID | NVME_DO_NOT_RETRY;
    return command->dword11 & QUEUE_CONTIGUOUS ? NVME_SUCCESS : NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
}

static uint32_t create_completion_queue(struct nvme *nvme, const struct nvme_command *command)
{
    unsigned n = command->dword10 & 0xFFFF, vector = command->dword11 >> 16;
    uint32_t status = check_queue(command, is_data_queue(n) && nvme->completion[n].size);
    if (status)
        return status;
    if (vector >= NVME_QUEUES || (vector && !pci_msix_enabled(&nvme->pci)))
        return NVME_INVALID_INTERRUPT_VECTOR | NVME_DO_NOT_RETRY;
    nvme->completion[n] = (struct nvme_completion_queue){
        .base = command->prp1, .size = (uint16_t)((command->dword10 >> 16) + 1), .vector = (uint16_t)vector, .phase = true,
        .interrupts = command->dword11 & QUEUE_INTERRUPTS };
    return NVME_SUCCESS;
}

static uint32_t create_submission_queue(struct nvme *nvme, const struct nvme_command *command)
{
    unsigned n = command->dword10 & 0xFFFF, answers = command->dword11 >> 16;
    uint32_t status = check_queue(command, is_data_queue(n) && nvme->submission[n].size);
    if (status)
        return status;
    if (!is_data_queue(answers) || !nvme->completion[answers].size)
        return NVME_COMPLETION_QUEUE_INVALID | NVME_DO_NOT_RETRY;
    nvme->submission[n] = (struct nvme_submission_queue){
        .base = command->prp1, .size = (uint16_t)((command->dword10 >> 16) + 1), .completion_queue = (uint16_t)answers };
    return NVME_SUCCESS;
}

/* §5.6: commands that are under way end first. */
static uint32_t delete_submission_queue(struct nvme *nvme, const struct nvme_command *command)
{
    unsigned n = command->dword10 & 0xFFFF;
    if (!is_data_queue(n) || !nvme->submission[n].size)
        return NVME_INVALID_QUEUE_IDENTIFIER | NVME_DO_NOT_RETRY;
    nvme_drain(nvme);
    nvme->submission[n] = (struct nvme_submission_queue){ 0 };
    return NVME_SUCCESS;
}

static uint32_t delete_completion_queue(struct nvme *nvme, const struct nvme_command *command)
{
    unsigned n = command->dword10 & 0xFFFF;
    if (!is_data_queue(n) || !nvme->completion[n].size)
        return NVME_INVALID_QUEUE_IDENTIFIER | NVME_DO_NOT_RETRY;
    for (unsigned i = 1; i < NVME_QUEUES; i++)
        if (nvme->submission[i].size && nvme->submission[i].completion_queue == n)
            return NVME_INVALID_QUEUE_DELETION | NVME_DO_NOT_RETRY;
    nvme->completion[n] = (struct nvme_completion_queue){ 0 };
    return NVME_SUCCESS;
}

/* --- features --- */

static const struct feature_row *find_feature(uint8_t id, unsigned *n)
{
    for (*n = 0; *n < NVME_FEATURES; ++*n)
        if (feature_row[*n].id == id)
            return &feature_row[*n];
    return NULL;
}

static uint32_t get_features(const struct nvme *nvme, const struct nvme_command *command, uint32_t *result)
{
    enum { SELECT_CURRENT, SELECT_DEFAULT, SELECT_SAVED, SELECT_CAPABILITIES, CHANGEABLE = 1 << 2 };
    unsigned n;
    const struct feature_row *row = find_feature((uint8_t)command->dword10, &n);
    if (!row)
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    switch (command->dword10 >> 8 & 7) {
    case SELECT_CURRENT: *result = nvme->feature[n]; break;
    case SELECT_DEFAULT: case SELECT_SAVED: *result = row->reset; break;
    case SELECT_CAPABILITIES: *result = row->rw ? CHANGEABLE : 0; break;
    default: return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    }
    return NVME_SUCCESS;
}

static uint32_t set_features(struct nvme *nvme, const struct nvme_command *command, uint32_t *result)
{
    enum { SAVE = 1u << 31 };
    unsigned n;
    const struct feature_row *row = find_feature((uint8_t)command->dword10, &n);
    if (!row)
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    if (command->dword10 & SAVE)
        return NVME_FEATURE_NOT_SAVEABLE | NVME_DO_NOT_RETRY;
    nvme->feature[n] = (nvme->feature[n] & ~row->rw) | (command->dword11 & row->rw);
    if (n == NVME_FEATURE_NUMBER_OF_QUEUES)
        *result = nvme->feature[n];
    return NVME_SUCCESS;
}

/* --- what is asked for --- */

static uint32_t identify(struct nvme *nvme, const struct nvme_command *command)
{
    uint8_t answer[NVME_ANSWER] = { 0 };
    uint32_t status = nvme_identify(nvme, command, answer);
    return status ? status : nvme_write_data(nvme, command, answer, sizeof(answer));
}

static uint32_t get_log_page(struct nvme *nvme, const struct nvme_command *command)
{
    uint8_t answer[NVME_ANSWER] = { 0 };
    uint64_t size = 4 * ((command->dword10 >> 16 | (uint64_t)(command->dword11 & 0xFFFF) << 16) + 1);
    uint32_t status = nvme_log_page(nvme, command->dword10 & 0xFF, answer);
    if (!status && (size > sizeof(answer) || command->dword12 || command->dword13))
        status = NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;        /* no offsets: LPA says so */
    return status ? status : nvme_write_data(nvme, command, answer, size);
}

static uint32_t wait_for_event(struct nvme *nvme, const struct nvme_command *command)
{
    if (nvme->event_commands == NVME_EVENT_COMMANDS)
        return NVME_EVENT_REQUEST_LIMIT | NVME_DO_NOT_RETRY;
    nvme->completion[0].promised--;     /* it may wait for ever: no place is kept for its answer */
    nvme->event_command[nvme->event_commands++] = command->id;
    nvme_send_event(nvme);
    return NVME_PENDING;
}

uint32_t nvme_admin(struct nvme *nvme, const struct nvme_command *command, uint32_t *result)
{
    switch ((enum admin_opcode)command->opcode) {
    case DELETE_SUBMISSION_QUEUE: return delete_submission_queue(nvme, command);
    case CREATE_SUBMISSION_QUEUE: return create_submission_queue(nvme, command);
    case GET_LOG_PAGE: return get_log_page(nvme, command);
    case DELETE_COMPLETION_QUEUE: return delete_completion_queue(nvme, command);
    case CREATE_COMPLETION_QUEUE: return create_completion_queue(nvme, command);
    case IDENTIFY: return identify(nvme, command);
    case ABORT:
        *result = 1;                    /* §5.1: commands end soon; none is aborted */
        return NVME_SUCCESS;
    case SET_FEATURES: return set_features(nvme, command, result);
    case GET_FEATURES: return get_features(nvme, command, result);
    case ASYNCHRONOUS_EVENT_REQUEST: return wait_for_event(nvme, command);
    }
    return NVME_INVALID_OPCODE | NVME_DO_NOT_RETRY;
}
