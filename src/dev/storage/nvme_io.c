/*
 * NVM commands (NVM Express 1.4 §6): from physical region pages to pinned guest memory, to the block backend and back. What the guest
 * can change meanwhile (lists of pages, ranges) is read once.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/block.h"
#include "dev/storage/nvme_internal.h"

enum io_opcode { FLUSH = 0x00, WRITE = 0x01, READ = 0x02, WRITE_ZEROES = 0x08, DATASET_MANAGEMENT = 0x09 };
enum { PSDT = 3 << 6, FUSE = 3, FORCE_UNIT_ACCESS = 1 << 30, DEALLOCATE_ZEROES = 1 << 25, DATASET_DEALLOCATE = 1 << 2 };
enum { DATASET_RANGES = 256, PIECES = 2 * NVME_TRANSFER_PAGES };

/* §6.7 figure 371 */
struct dataset_range {
    uint32_t attributes, sectors;
    uint64_t first;
};

struct nvme_request {
    struct nvme *nvme;
    unsigned queue;
    uint16_t id;
    bool then_flush;                    /* Force Unit Access: the write is followed by a flush */
    struct block *block;
    struct nvme_data data;              /* what is pinned */
    struct dataset_range *range;        /* Dataset Management: those still to be done */
    unsigned ranges;
    struct block_request request;
    struct iovec iov[PIECES];
};

/* --- data --- */

/* Pages that follow one another in memory become one range. */
static void add_range(struct nvme_data *data, uint64_t address, uint64_t size)
{
    struct nvme_range *last = data->count ? &data->range[data->count - 1] : NULL;
    if (last && last->address + last->size == address)
        last->size += size;
    else
        data->range[data->count++] = (struct nvme_range){ address, size };
}

/* Entries of one page of a list; *at follows the pointer to the next, if there is one. */
static uint32_t read_list_page(const struct nvme *nvme, uint64_t *at, uint64_t *left, struct nvme_data *data)
{
    uint64_t list[NVME_PAGE / 8];
    unsigned room = (unsigned)(NVME_PAGE - *at % NVME_PAGE) / 8;
    unsigned wanted = (unsigned)((*left + NVME_PAGE - 1) / NVME_PAGE), count = (unsigned)min_u64(wanted, room);
    bool more = wanted > room;
    if (!dma_read(&nvme->pci.device.dma, *at, list, count * 8))
        return NVME_DATA_TRANSFER_ERROR;
    for (unsigned i = 0; i < count - more; i++) {
        uint64_t size = min_u64(*left, NVME_PAGE);
        if (list[i] % NVME_PAGE)
            return NVME_PRP_OFFSET_INVALID | NVME_DO_NOT_RETRY;
        add_range(data, list[i], size);
        *left -= size;
    }
    if (more)
        *at = list[count - 1];
    return more && *at % NVME_PAGE ? NVME_PRP_OFFSET_INVALID | NVME_DO_NOT_RETRY : NVME_SUCCESS;
}

uint32_t nvme_find_data(const struct nvme *nvme, const struct nvme_command *command, uint64_t size, struct nvme_data *data)
{
    uint64_t first = min_u64(size, NVME_PAGE - command->prp1 % NVME_PAGE), left = size - first, at = command->prp2;
    data->count = 0;
    if (command->flags & PSDT || size > NVME_TRANSFER_PAGES * (uint64_t)NVME_PAGE)
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    if (command->prp1 % 4 || (left && at % (left <= NVME_PAGE ? NVME_PAGE : 8)))
        return NVME_PRP_OFFSET_INVALID | NVME_DO_NOT_RETRY;
    add_range(data, command->prp1, first);
    if (left && left <= NVME_PAGE) {
        add_range(data, at, left);
        return NVME_SUCCESS;
    }
    while (left) {
        uint32_t status = read_list_page(nvme, &at, &left, data);
        if (status)
            return status;
    }
    return NVME_SUCCESS;
}

static uint32_t copy_data(const struct nvme *nvme, const struct nvme_command *command, void *bytes, uint64_t size, bool to_guest)
{
    struct nvme_data data;
    uint32_t status = nvme_find_data(nvme, command, size, &data);
    uint8_t *at = bytes;
    for (unsigned i = 0; !status && i < data.count; i++) {
        const struct nvme_range *range = &data.range[i];
        bool ok = to_guest ? dma_write(&nvme->pci.device.dma, range->address, at, range->size)
                           : dma_read(&nvme->pci.device.dma, range->address, at, range->size);
        if (!ok)
            return NVME_DATA_TRANSFER_ERROR;
        at += range->size;
    }
    return status;
}

uint32_t nvme_write_data(const struct nvme *nvme, const struct nvme_command *command, const void *from, uint64_t size)
{
    return copy_data(nvme, command, (void *)from, size, true);
}

static void unpin(struct nvme_request *request)
{
    for (unsigned i = 0; i < request->data.count; i++)
        dma_unmap(&request->nvme->pci.device.dma, request->data.range[i].address, request->data.range[i].size,
                  request->request.op == BLOCK_READ);
    request->data.count = 0;
}

static bool pin(struct nvme_request *request, const struct nvme_data *data)
{
    for (unsigned i = 0; i < data->count; i++) {
        struct block_request *to = &request->request;
        int used = dma_map(&request->nvme->pci.device.dma, data->range[i].address, data->range[i].size, to->op == BLOCK_READ,
                           request->iov + to->iov_count, PIECES - to->iov_count);
        if (used < 0)
            return false;
        to->iov_count += used;
        request->data.range[request->data.count++] = data->range[i];
    }
    return true;
}

/* --- requests to the backend --- */

static void submit(struct nvme_request *request, enum block_op op, uint64_t offset, uint64_t size);

static void end(struct nvme_request *request, uint32_t status)
{
    struct nvme *nvme = request->nvme;
    nvme->under_way--;
    nvme_complete(nvme, request->queue, request->id, status, 0);
    free(request->range);
    free(request);
}

static void next_range(struct nvme_request *request)
{
    const struct dataset_range *range = &request->range[--request->ranges];
    submit(request, BLOCK_DISCARD, range->first * NVME_SECTOR, (uint64_t)range->sectors * NVME_SECTOR);
}

static void request_done(struct block_request *block_request, int error)
{
    struct nvme_request *request = block_request->owner;
    struct nvme *nvme = request->nvme;
    unpin(request);
    if (!error && request->ranges) {
        next_range(request);
        return;
    }
    if (!error && request->then_flush) {
        request->then_flush = false;
        submit(request, BLOCK_FLUSH, 0, 0);
        return;
    }
    end(request, !error ? NVME_SUCCESS : block_request->op == BLOCK_READ ? NVME_UNRECOVERED_READ_ERROR : NVME_WRITE_FAULT);
    nvme_run(nvme);
}

static void submit(struct nvme_request *request, enum block_op op, uint64_t offset, uint64_t size)
{
    struct block_request *to = &request->request;
    *to = (struct block_request){ .op = op, .offset = offset, .size = size, .iov = request->iov,
                                  .iov_count = op == BLOCK_READ || op == BLOCK_WRITE ? to->iov_count : 0, .unmap = to->unmap,
                                  .done = request_done, .owner = request };
    block_submit(request->block, to);
}

static struct nvme_request *make_request(struct nvme *nvme, unsigned queue, const struct nvme_command *command)
{
    struct nvme_request *request = calloc(1, sizeof(*request));
    if (!request)
        return NULL;
    request->nvme = nvme;
    request->queue = queue;
    request->id = command->id;
    request->block = nvme->namespace[command->namespace_id - 1];
    nvme->under_way++;
    return request;
}

static uint32_t give_up(struct nvme_request *request, uint32_t status)
{
    unpin(request);
    request->nvme->under_way--;
    free(request->range);
    free(request);
    return status;
}

/* --- commands --- */

static bool in_bounds(const struct block *block, uint64_t first, uint64_t sectors)
{
    uint64_t size = block_size(block) / NVME_SECTOR;
    return first <= size && sectors <= size - first;
}

static uint32_t read_write(struct nvme *nvme, unsigned queue, const struct nvme_command *command)
{
    bool write = command->opcode == WRITE;
    uint64_t first = command->dword10 | (uint64_t)command->dword11 << 32, sectors = (command->dword12 & 0xFFFF) + 1;
    struct block *block = nvme->namespace[command->namespace_id - 1];
    struct nvme_data data;
    if (!in_bounds(block, first, sectors))
        return NVME_LBA_OUT_OF_RANGE | NVME_DO_NOT_RETRY;
    if (write && block_read_only(block))
        return NVME_WRITE_PROTECTED | NVME_DO_NOT_RETRY;
    uint32_t status = nvme_find_data(nvme, command, sectors * NVME_SECTOR, &data);
    if (status)
        return status;
    struct nvme_request *request = make_request(nvme, queue, command);
    if (!request)
        return NVME_INTERNAL_ERROR;
    request->request.op = write ? BLOCK_WRITE : BLOCK_READ;
    if (!pin(request, &data))
        return give_up(request, NVME_DATA_TRANSFER_ERROR);
    *(write ? &nvme->writes : &nvme->reads) += 1;
    *(write ? &nvme->sectors_written : &nvme->sectors_read) += sectors;
    request->then_flush = write && (command->dword12 & FORCE_UNIT_ACCESS || !nvme->feature[NVME_FEATURE_VOLATILE_WRITE_CACHE]);
    submit(request, request->request.op, first * NVME_SECTOR, sectors * NVME_SECTOR);
    return NVME_PENDING;
}

static uint32_t write_zeroes(struct nvme *nvme, unsigned queue, const struct nvme_command *command)
{
    uint64_t first = command->dword10 | (uint64_t)command->dword11 << 32, sectors = (command->dword12 & 0xFFFF) + 1;
    struct block *block = nvme->namespace[command->namespace_id - 1];
    if (!in_bounds(block, first, sectors))
        return NVME_LBA_OUT_OF_RANGE | NVME_DO_NOT_RETRY;
    if (block_read_only(block))
        return NVME_WRITE_PROTECTED | NVME_DO_NOT_RETRY;
    struct nvme_request *request = make_request(nvme, queue, command);
    if (!request)
        return NVME_INTERNAL_ERROR;
    request->request.unmap = command->dword12 & DEALLOCATE_ZEROES;
    request->then_flush = command->dword12 & FORCE_UNIT_ACCESS;
    submit(request, BLOCK_WRITE_ZEROES, first * NVME_SECTOR, sectors * NVME_SECTOR);
    return NVME_PENDING;
}

static uint32_t flush(struct nvme *nvme, unsigned queue, const struct nvme_command *command)
{
    struct nvme_request *request = make_request(nvme, queue, command);
    if (!request)
        return NVME_INTERNAL_ERROR;
    submit(request, BLOCK_FLUSH, 0, 0);
    return NVME_PENDING;
}

/* Advice that need not be followed (§6.7); ranges outside of the disk are an error all the same. */
static uint32_t dataset_management(struct nvme *nvme, unsigned queue, const struct nvme_command *command)
{
    struct dataset_range range[DATASET_RANGES];
    struct block *block = nvme->namespace[command->namespace_id - 1];
    unsigned count = (command->dword10 & 0xFF) + 1, kept = 0;
    uint32_t status = copy_data(nvme, command, range, count * sizeof(range[0]), false);
    if (status)
        return status;
    for (unsigned i = 0; i < count; i++) {
        if (!in_bounds(block, range[i].first, range[i].sectors))
            return NVME_LBA_OUT_OF_RANGE | NVME_DO_NOT_RETRY;
        if (range[i].sectors)
            range[kept++] = range[i];
    }
    if (!(command->dword11 & DATASET_DEALLOCATE) || !block_can_discard(block) || !kept)
        return NVME_SUCCESS;
    if (block_read_only(block))
        return NVME_WRITE_PROTECTED | NVME_DO_NOT_RETRY;
    struct nvme_request *request = make_request(nvme, queue, command);
    if (!request)
        return NVME_INTERNAL_ERROR;
    if (!(request->range = malloc(kept * sizeof(range[0]))))
        return give_up(request, NVME_INTERNAL_ERROR);
    memcpy(request->range, range, kept * sizeof(range[0]));
    request->ranges = kept;
    next_range(request);
    return NVME_PENDING;
}

uint32_t nvme_io(struct nvme *nvme, unsigned queue, const struct nvme_command *command)
{
    if (command->flags & FUSE)
        return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    if (!nvme_in_use(nvme, command->namespace_id))
        return NVME_INVALID_NAMESPACE | NVME_DO_NOT_RETRY;
    switch ((enum io_opcode)command->opcode) {
    case FLUSH: return flush(nvme, queue, command);
    case WRITE: case READ: return read_write(nvme, queue, command);
    case WRITE_ZEROES: return write_zeroes(nvme, queue, command);
    case DATASET_MANAGEMENT: return dataset_management(nvme, queue, command);
    }
    return NVME_INVALID_OPCODE | NVME_DO_NOT_RETRY;
}

/* --- shutdown --- */

static void flush_done(struct block_request *request, int error)
{
    struct nvme *nvme = request->owner;
    free(request);
    nvme_flushed(nvme);
}

void nvme_flush_all(struct nvme *nvme)
{
    for (unsigned i = 0; i < NVME_NAMESPACES && nvme->namespace[i]; i++) {
        struct block_request *request = block_read_only(nvme->namespace[i]) ? NULL : calloc(1, sizeof(*request));
        if (!request)
            continue;
        *request = (struct block_request){ .op = BLOCK_FLUSH, .done = flush_done, .owner = nvme };
        nvme->flushing++;
        block_submit(nvme->namespace[i], request);
    }
}
