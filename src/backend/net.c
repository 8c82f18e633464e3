/* The front of the network backends: frames on their way to the guest wait here while it has no buffers. */
#include "backend/net_internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"

void net_board_lock(struct net *net)
{
    if (net->lock)
        pthread_mutex_lock(net->lock);
}

void net_board_unlock(struct net *net)
{
    if (net->lock)
        pthread_mutex_unlock(net->lock);
}

struct net *net_open(const char *text, struct loop *loop, struct clock *clock, pthread_mutex_t *lock, struct log *log,
                     struct error *err)
{
    struct net_options options;
    if (!net_options_parse(text, &options, err))
        return NULL;
    struct net *net = calloc(1, sizeof(*net));
    if (!net) {
        error_set(err, "out of memory");
        return NULL;
    }
    net->loop = loop;
    net->clock = clock;
    net->lock = lock;
    net->log = log;
    net->queue_tail = &net->queue;
    net->kind = options.kind == NET_USER ? &net_user : &net_tap;
    if (!net->kind->start(net, &options, err)) {
        free(net);
        return NULL;
    }
    return net;
}

static struct net_frame *take_first(struct net *net)
{
    struct net_frame *frame = net->queue;
    net->queue = frame->next;
    if (!net->queue)
        net->queue_tail = &net->queue;
    net->queued--;
    return frame;
}

void net_close(struct net *net)
{
    if (!net)
        return;
    net->kind->stop(net);
    while (net->queue)
        free(take_first(net));
    free(net);
}

void net_connect(struct net *net, const struct net_client *client)
{
    net->client = client ? *client : (struct net_client){ NULL };
}

bool net_takes_large(const struct net *net)
{
    return net->kind->takes_large;
}

void net_allow_merged(struct net *net, bool allowed)
{
    net->merged_allowed = allowed;
}

static bool hand_over(struct net *net, const void *frame, uint32_t size, uint16_t segment_size)
{
    return !net->client.receive || net->client.receive(net->client.owner, frame, size, segment_size);
}

bool net_deliver(struct net *net, const uint8_t *data, uint32_t size, uint16_t segment_size)
{
    trace(net->log, net, "to the guest: %u bytes", size);
    if (!net->queue && hand_over(net, data, size, segment_size))
        return true;
    struct net_frame *frame = net->queued < NET_QUEUE_MAX ? malloc(sizeof(*frame) + size) : NULL;
    if (!frame)
        return false;
    frame->next = NULL;
    frame->size = size;
    frame->segment_size = segment_size;
    memcpy(frame->data, data, size);
    *net->queue_tail = frame;
    net->queue_tail = &frame->next;
    net->queued++;
    return true;
}

void net_send(struct net *net, const struct iovec *iov, int count)
{
    uint32_t size = 0;
    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len > sizeof(net->frame) - size)
            return;             /* longer than any frame can be */
        memcpy(net->frame + size, iov[i].iov_base, iov[i].iov_len);
        size += (uint32_t)iov[i].iov_len;
    }
    trace(net->log, net, "from the guest: %u bytes", size);
    if (size >= 14)
        net->kind->send(net, net->frame, size);
}

void net_receive_ready(struct net *net)
{
    while (net->queue && hand_over(net, net->queue->data, net->queue->size, net->queue->segment_size))
        free(take_first(net));
    if (!net->queue && net->kind->ready)
        net->kind->ready(net);
}
