/* virtio entropy device (VIRTIO 1.2 §5.4 "Entropy Device"): the host's random numbers. */
#include "dev/virtio/devices.h"

#include <sys/random.h>

/* --- registers --- */

enum { CHUNK = 1024 };      /* at most this for one buffer: the device may give less than asked for */

/* --- access --- */

static enum virtio_progress rng_handle(struct virtio *virtio, struct virtio_queue *queue)
{
    struct virtio_chain chain;
    uint8_t data[CHUNK];
    if (!virtio_queue_pop(queue, &chain))
        return VIRTIO_EMPTY;
    ssize_t got = getrandom(data, min_u64(chain.in_size, sizeof(data)), GRND_NONBLOCK);
    uint32_t size = got > 0 ? (uint32_t)got : 0;
    if (!virtio_chain_write(queue, &chain, 0, data, size))
        size = 0;
    virtio_queue_push(queue, &chain, size);
    return VIRTIO_TOOK;
}

/* --- reset, init --- */

static const struct virtio_ops rng_ops = {
    .id = 4,
    .class_code = 0x00FF00,
    .queues = 1,
    .handle = rng_handle,
};

static bool rng_init(struct device *device, struct error *err) { return virtio_init((struct virtio *)device, &rng_ops, err); }

static void rng_reset(struct device *device) { virtio_reset((struct virtio *)device); }

static void rng_resume(struct device *device) { virtio_resume((struct virtio *)device); }

static void rng_fini(struct device *device) { virtio_fini((struct virtio *)device); }

/* --- state, type --- */

static const struct state_field fields[] = {
    STATE_NESTED(struct virtio_rng, virtio, virtio_state),
};
static const struct state_list state = STATE_LIST("virtio_rng", 1, fields);

const struct device_type device_virtio_rng = {
    .name = "virtio-rng",
    .text = "virtio entropy source",
    .size = sizeof(struct virtio_rng),
    .state = &state,
    .init = rng_init,
    .reset = rng_reset,
    .accepts = virtio_accepts,
    .resume = rng_resume,
    .fini = rng_fini,
};
