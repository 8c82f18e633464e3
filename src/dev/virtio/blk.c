/*
 * virtio block device (VIRTIO 1.2 §5.2 "Block Device"): read, write, flush, discard, write zeroes, identification.
 * Data move between the image and the guest's memory in place; only headers are copied. Without the flush feature a write
 * is complete when it is on stable storage (§5.2.6.2). Not modelled: geometry, topology, secure erase, several queues, zones.
 */
#include "dev/virtio/devices.h"

#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block.h"

/* --- registers --- */

enum {
    SECTOR = 512,
    HEADER_SIZE = 16,
    RANGE_SIZE = 16,                    /* struct virtio_blk_discard_write_zeroes */
    SPARE_MAX = 64,
    SEGMENTS = VIRTIO_SEGMENTS_MAX - 2, /* header and status take one each */
    RANGE_SECTORS_MAX = 1 << 21,        /* 1 GiB */
    LARGE = 64 * 1024,                  /* bytes; takes the host so long that the guest should go on meanwhile */
};

/* --- state --- */

/* One request of the driver, from its notification to its interrupt. */
struct virtio_blk_request {
    struct block_request block;
    struct virtio_blk *blk;
    struct virtio_blk_request *next;
    bool mapped_in, mapped_out, flush_after;
    uint64_t data_size;
    struct virtio_chain chain;
    struct iovec iov[VIRTIO_SEGMENTS_MAX + 8];
};

/* --- helpers --- */

static struct virtio_queue *queue_of(struct virtio_blk *blk) { return &blk->virtio.queue[0]; }

static struct virtio_blk_request *take_request(struct virtio_blk *blk)
{
    struct virtio_blk_request *request = blk->spare;
    if (request) {
        blk->spare = request->next;
        blk->spare_count--;
    } else {
        request = malloc(sizeof(*request));
    }
    if (!request)
        return NULL;
    memset(&request->block, 0, sizeof(request->block));
    request->blk = blk;
    request->mapped_in = request->mapped_out = request->flush_after = false;
    request->data_size = 0;
    return request;
}

static void drop_request(struct virtio_blk_request *request)
{
    struct virtio_blk *blk = request->blk;
    if (blk->spare_count == SPARE_MAX) {
        free(request);
        return;
    }
    request->next = blk->spare;
    blk->spare = request;
    blk->spare_count++;
}

/* The status byte is the last of the writable part. */
static void answer(struct virtio_blk_request *request, uint8_t status)
{
    struct virtio_queue *queue = queue_of(request->blk);
    struct virtio_chain *chain = &request->chain;
    if (request->mapped_in)
        virtio_chain_unmap(queue, chain, true, 0, request->data_size);
    if (request->mapped_out)
        virtio_chain_unmap(queue, chain, false, HEADER_SIZE, request->data_size);
    if (!virtio_chain_write(queue, chain, chain->in_size - 1, &status, 1))
        virtio_break(&request->blk->virtio, "the status of a request lies where there is no memory");
    virtio_queue_push(queue, chain, (uint32_t)chain->in_size);
    drop_request(request);
}

static void count(struct virtio_blk *blk, enum block_op op, int status)
{
    struct counters *counters = blk->virtio.pci.device.world.counters;
    if (!counters)
        return;
    if (status)
        counter_add_shared(counters, COUNTER_block_errors, 1);
    else if (op == BLOCK_READ)
        counter_add_shared(counters, COUNTER_block_reads, 1);
    else if (op == BLOCK_WRITE)
        counter_add_shared(counters, COUNTER_block_writes, 1);
}

static void block_done(struct block_request *done, int status)
{
    struct virtio_blk_request *request = done->owner;
    struct virtio_queue *queue = queue_of(request->blk);
    count(request->blk, done->op, status);
    if (!status && request->flush_after) {
        request->flush_after = false;
        request->block.op = BLOCK_FLUSH;
        block_submit(request->blk->block, &request->block);
        return;
    }
    bool batch = request->blk->batch;
    answer(request, status ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
    if (!batch)
        virtio_queue_signal(queue);
}

static void submit(struct virtio_blk_request *request, enum block_op op, uint64_t offset, uint64_t size)
{
    request->block.op = op;
    request->block.offset = offset;
    request->block.size = size;
    request->block.done = block_done;
    request->block.owner = request;
    request->flush_after = op != BLOCK_READ && op != BLOCK_FLUSH && !virtio_has(&request->blk->virtio, VIRTIO_BLK_F_FLUSH);
    block_submit(request->blk->block, &request->block);
}

static bool range_ok(struct virtio_blk *blk, uint64_t sector, uint64_t size)
{
    uint64_t total = blk->block ? block_size(blk->block) : 0;
    return sector <= total / SECTOR && size <= total - sector * SECTOR;
}

/* --- the kinds of request: each returns the status to answer at once, or -1 when it is under way --- */

static int transfer(struct virtio_blk_request *request, bool read, uint64_t sector)
{
    struct virtio_blk *blk = request->blk;
    struct virtio_chain *chain = &request->chain;
    uint64_t size = read ? chain->in_size - 1 : chain->out_size - HEADER_SIZE;
    if (size % SECTOR || !range_ok(blk, sector, size) || (!read && block_read_only(blk->block)))
        return VIRTIO_BLK_S_IOERR;
    int count = virtio_chain_map(queue_of(blk), chain, read, read ? 0 : HEADER_SIZE, size, request->iov,
                                 ARRAY_SIZE(request->iov));
    if (count < 0)
        return VIRTIO_BLK_S_IOERR;
    request->data_size = size;
    if (size >= LARGE)
        virtio_queue_be_prompt(queue_of(blk));
    *(read ? &request->mapped_in : &request->mapped_out) = true;
    request->block.iov = request->iov;
    request->block.iov_count = count;
    submit(request, read ? BLOCK_READ : BLOCK_WRITE, sector * SECTOR, size);
    return -1;
}

/* §5.2.6: one range a request, as the configuration says. */
static int discard_or_zero(struct virtio_blk_request *request, bool zero)
{
    struct virtio_blk *blk = request->blk;
    struct virtio_blk_discard_write_zeroes range;
    if (request->chain.out_size != HEADER_SIZE + RANGE_SIZE)
        return VIRTIO_BLK_S_UNSUPP;
    if (!virtio_chain_read(queue_of(blk), &request->chain, HEADER_SIZE, &range, sizeof(range)))
        return VIRTIO_BLK_S_IOERR;
    if (range.flags & ~(zero ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0u))
        return VIRTIO_BLK_S_UNSUPP;
    uint64_t size = (uint64_t)range.num_sectors * SECTOR;
    if (range.num_sectors > RANGE_SECTORS_MAX || !range_ok(blk, range.sector, size) || block_read_only(blk->block))
        return VIRTIO_BLK_S_IOERR;
    request->block.unmap = range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    submit(request, zero ? BLOCK_WRITE_ZEROES : BLOCK_DISCARD, range.sector * SECTOR, size);
    return -1;
}
_Static_assert(sizeof(struct virtio_blk_discard_write_zeroes) == RANGE_SIZE, "VIRTIO §5.2.6");

static int flush(struct virtio_blk_request *request)
{
    if (!request->blk->block)
        return VIRTIO_BLK_S_IOERR;
    submit(request, BLOCK_FLUSH, 0, 0);
    return -1;
}

static int identify(struct virtio_blk_request *request)
{
    char id[VIRTIO_BLK_SERIAL] = { 0 };
    const char *serial = request->blk->serial;
    if (serial)
        memcpy(id, serial, strnlen(serial, sizeof(id)));
    uint64_t room = min_u64(request->chain.in_size - 1, sizeof(id));
    return virtio_chain_write(queue_of(request->blk), &request->chain, 0, id, room) ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
}

static int start_request(struct virtio_blk_request *request, const struct virtio_blk_outhdr *header)
{
    switch (header->type) {
    case VIRTIO_BLK_T_IN: return transfer(request, true, header->sector);
    case VIRTIO_BLK_T_OUT: return transfer(request, false, header->sector);
    case VIRTIO_BLK_T_FLUSH: return flush(request);
    case VIRTIO_BLK_T_GET_ID: return identify(request);
    case VIRTIO_BLK_T_DISCARD: return discard_or_zero(request, false);
    case VIRTIO_BLK_T_WRITE_ZEROES: return discard_or_zero(request, true);
    default: return VIRTIO_BLK_S_UNSUPP;
    }
}

static enum virtio_progress blk_handle(struct virtio *virtio, struct virtio_queue *queue)
{
    struct virtio_blk *blk = (struct virtio_blk *)virtio;
    struct virtio_blk_outhdr header;
    struct virtio_blk_request *request = take_request(blk);
    if (!request)
        return VIRTIO_STALLED;
    if (!virtio_queue_pop(queue, &request->chain)) {
        drop_request(request);
        return VIRTIO_EMPTY;
    }
    if (!request->chain.in_size || !virtio_chain_read(queue, &request->chain, 0, &header, sizeof(header))) {
        virtio_break(virtio, "a block request has no header or no place for its status");
        drop_request(request);
        return VIRTIO_EMPTY;
    }
    int status = start_request(request, &header);
    if (status >= 0)
        answer(request, (uint8_t)status);
    return VIRTIO_TOOK;
}
_Static_assert(sizeof(struct virtio_blk_outhdr) == HEADER_SIZE, "VIRTIO §5.2.6");

/* One interrupt tells of all that the host had at hand. */
static void blk_begin(struct virtio *virtio)
{
    struct virtio_blk *blk = (struct virtio_blk *)virtio;
    blk->batch = true;
    if (blk->block)
        block_plug(blk->block);
}

static void blk_end(struct virtio *virtio)
{
    struct virtio_blk *blk = (struct virtio_blk *)virtio;
    if (blk->block)
        block_unplug(blk->block);
    blk->batch = false;
}

/* --- reset, init --- */

static void blk_stop(struct virtio *virtio)
{
    struct virtio_blk *blk = (struct virtio_blk *)virtio;
    if (blk->block)
        block_drain(blk->block);
}

static void fill_config(struct virtio_blk *blk)
{
    struct virtio_blk_config config = { .capacity = blk->block ? block_size(blk->block) / SECTOR : 0,
                                        .seg_max = SEGMENTS, .blk_size = SECTOR, .num_queues = 1 };
    config.max_discard_sectors = config.max_write_zeroes_sectors = RANGE_SECTORS_MAX;
    config.max_discard_seg = config.max_write_zeroes_seg = 1;
    config.discard_sector_alignment = 8;
    config.write_zeroes_may_unmap = 1;
    memcpy(blk->virtio.config, &config, sizeof(config));
}
_Static_assert(sizeof(struct virtio_blk_config) <= VIRTIO_CONFIG_MAX, "the configuration fits");

static void blk_reset(struct device *device)
{
    struct virtio_blk *blk = (struct virtio_blk *)device;
    virtio_reset(&blk->virtio);
    fill_config(blk);
}

static const struct virtio_ops blk_ops = {
    .id = 2,
    .class_code = 0x018000,
    .queues = 1,
    .features = BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_BLK_SIZE) | BIT(VIRTIO_BLK_F_FLUSH),
    .config_size = sizeof(struct virtio_blk_config),
    .patient = true,
    .handle = blk_handle,
    .begin = blk_begin,
    .end = blk_end,
    .stop = blk_stop,
};

static bool blk_init(struct device *device, struct error *err)
{
    struct virtio_blk *blk = (struct virtio_blk *)device;
    if (!virtio_init(&blk->virtio, &blk_ops, err))
        return false;
    if (blk->block && block_read_only(blk->block))
        blk->virtio.offered |= BIT(VIRTIO_BLK_F_RO);
    else if (blk->block && block_can_discard(blk->block))
        blk->virtio.offered |= BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_WRITE_ZEROES);
    return true;
}

static void blk_quiesce(struct device *device) { blk_stop((struct virtio *)device); }

static void blk_resume(struct device *device) { virtio_resume((struct virtio *)device); }

static void blk_fini(struct device *device)
{
    struct virtio_blk *blk = (struct virtio_blk *)device;
    virtio_fini(&blk->virtio);
    while (blk->spare) {
        struct virtio_blk_request *next = blk->spare->next;
        free(blk->spare);
        blk->spare = next;
    }
}

/* --- state, type --- */

static const struct state_field fields[] = {
    STATE_NESTED(struct virtio_blk, virtio, virtio_state),
};
static const struct state_list state = STATE_LIST("virtio_blk", 1, fields);

const struct device_type device_virtio_blk = {
    .name = "virtio-blk",
    .text = "virtio disk",
    .size = sizeof(struct virtio_blk),
    .state = &state,
    .init = blk_init,
    .reset = blk_reset,
    .accepts = virtio_accepts,
    .quiesce = blk_quiesce,
    .resume = blk_resume,
    .fini = blk_fini,
};
