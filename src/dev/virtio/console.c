/* virtio console (VIRTIO 1.2 §5.3 "Console Device"): one port. Not modelled: several ports, size, emergency write. */
#include "dev/virtio/devices.h"

#include <linux/virtio_console.h>
#include <string.h>

#include "backend/chardev.h"

/* --- registers --- */

enum {
    RECEIVE = 0, TRANSMIT = 1, CHUNK = 4096,
    BUDGET = 64 * 1024,                 /* bytes written at one go: a buffer may claim to have 4 GiB */
    RETRY_NS = 2 * 1000 * 1000,
};

/* --- input --- */

static bool give_pending(struct virtio_console *console)
{
    struct virtio_queue *queue = &console->virtio.queue[RECEIVE];
    struct virtio_chain chain;
    if (!console->pending_size || !virtio_queue_pop(queue, &chain))
        return false;
    uint16_t size = (uint16_t)min_u64(console->pending_size, chain.in_size);
    if (!size || !virtio_chain_write(queue, &chain, 0, console->pending, size)) {
        virtio_break(&console->virtio, "an input buffer cannot be written");
        return false;
    }
    virtio_queue_push(queue, &chain, size);
    console->pending_size -= size;
    memmove(console->pending, console->pending + size, console->pending_size);
    return true;
}

/* Gives the guest what was typed, as far as it has buffers; asks for a notification when it has not. */
static void give_input(struct virtio_console *console)
{
    struct virtio_queue *queue = &console->virtio.queue[RECEIVE];
    do {
        while (give_pending(console))
            ;
        virtio_queue_want_notify(queue, true);
    } while (console->pending_size && !virtio_queue_empty(queue));
    virtio_queue_signal(queue);
}

static size_t console_room(void *owner)
{
    struct virtio_console *console = owner;
    return virtio_queue_live(&console->virtio.queue[RECEIVE]) ? sizeof(console->pending) - console->pending_size : 0;
}

static void console_receive(void *owner, const uint8_t *data, size_t size)
{
    struct virtio_console *console = owner;
    size_t taken = min_u64(size, sizeof(console->pending) - console->pending_size);
    memcpy(console->pending + console->pending_size, data, taken);
    console->pending_size = (uint16_t)(console->pending_size + taken);
    give_input(console);
}

/* --- output --- */

static void retry(void *owner)
{
    struct virtio_console *console = owner;
    virtio_run_queue(&console->virtio.queue[TRANSMIT]);
}

/* Writes from output_done on; false if the backend is full, or enough was written for now, before the end. */
static bool write_out(struct virtio_console *console, struct virtio_queue *queue, const struct virtio_chain *chain)
{
    uint8_t data[CHUNK];
    for (size_t total = 0; console->output_done < chain->out_size; total += CHUNK) {
        if (total == BUDGET)
            return false;
        size_t size = min_u64(chain->out_size - console->output_done, sizeof(data));
        if (!console->chardev || !virtio_chain_read(queue, chain, console->output_done, data, size))
            break;
        size_t taken = chardev_write(console->chardev, data, size);
        console->output_done += (uint32_t)taken;
        if (taken < size)
            return false;
    }
    return true;
}

static enum virtio_progress transmit(struct virtio_console *console, struct virtio_queue *queue)
{
    struct virtio_queue_mark mark = virtio_queue_mark(queue);
    struct virtio_chain chain;
    if (!virtio_queue_pop(queue, &chain))
        return VIRTIO_EMPTY;
    if (!write_out(console, queue, &chain)) {
        virtio_queue_rewind(queue, mark);
        timer_arm(&console->retry, clock_ns(console->virtio.pci.device.world.clock) + RETRY_NS);
        return VIRTIO_STALLED;
    }
    console->output_done = 0;
    virtio_queue_push(queue, &chain, 0);
    return VIRTIO_TOOK;
}

static enum virtio_progress console_handle(struct virtio *virtio, struct virtio_queue *queue)
{
    struct virtio_console *console = (struct virtio_console *)virtio;
    if (queue->index == TRANSMIT)
        return transmit(console, queue);
    give_input(console);
    if (console->chardev && console_room(console))
        chardev_accept_input(console->chardev);
    return VIRTIO_STALLED;
}

/* --- reset, init --- */

static void console_stop(struct virtio *virtio)
{
    struct virtio_console *console = (struct virtio_console *)virtio;
    timer_disarm(&console->retry);
    console->output_done = 0;
    console->pending_size = 0;
}

static void console_start(struct virtio *virtio)
{
    struct virtio_console *console = (struct virtio_console *)virtio;
    if (console->chardev)
        chardev_accept_input(console->chardev);
}

static const struct virtio_ops console_ops = {
    .id = 3,
    .class_code = 0x078000,
    .queues = 2,
    .config_size = sizeof(struct virtio_console_config),
    .handle = console_handle,
    .stop = console_stop,
    .start = console_start,
};

static void console_reset(struct device *device)
{
    struct virtio_console *console = (struct virtio_console *)device;
    virtio_reset(&console->virtio);
    memset(console->pending, 0, sizeof(console->pending));
}

static bool console_init(struct device *device, struct error *err)
{
    struct virtio_console *console = (struct virtio_console *)device;
    timer_init(&console->retry, device->world.clock, retry, console);
    if (!virtio_init(&console->virtio, &console_ops, err))
        return false;
    if (console->chardev)
        chardev_connect(console->chardev, &(struct chardev_client){ console_room, console_receive, console });
    return true;
}

/* A loaded state may lie about how much was typed. */
static void console_resume(struct device *device)
{
    struct virtio_console *console = (struct virtio_console *)device;
    console->pending_size = (uint16_t)min_u64(console->pending_size, sizeof(console->pending));
    virtio_resume(&console->virtio);
}

static void console_fini(struct device *device)
{
    struct virtio_console *console = (struct virtio_console *)device;
    if (console->chardev)
        chardev_connect(console->chardev, NULL);
    virtio_fini(&console->virtio);
}

/* --- state, type --- */

static const struct state_field fields[] = {
    STATE_NESTED(struct virtio_console, virtio, virtio_state),
    STATE_BLOB(struct virtio_console, pending),
    STATE_SCALAR(struct virtio_console, pending_size),
    STATE_SCALAR(struct virtio_console, output_done),
};
static const struct state_list state = STATE_LIST("virtio_console", 1, fields);

const struct device_type device_virtio_console = {
    .name = "virtio-console",
    .text = "virtio console",
    .size = sizeof(struct virtio_console),
    .state = &state,
    .init = console_init,
    .reset = console_reset,
    .accepts = virtio_accepts,
    .resume = console_resume,
    .fini = console_fini,
};
