/*
 * virtio network device (VIRTIO 1.2 §5.1 "Network Device"): one receive and one transmit queue, mergeable receive
 * buffers, MAC address and link status, checksums left to the device, and frames larger than the network's in both directions
 * where the backend has them. Not modelled: the control queue, several queue pairs.
 */
#include "dev/virtio/devices.h"

#include <linux/virtio_net.h>
#include <string.h>

#include "backend/net.h"
#include "backend/net_checksum.h"

/* --- registers --- */

enum { RECEIVE = 0, TRANSMIT = 1, HEADER_SIZE = 12, BUFFERS_MAX = 64 };

/* Where a merged frame's TCP header and its checksum are: behind an Ethernet and an IPv4 header without options. */
enum { TCP_START = 34, TCP_DATA_OFFSET = TCP_START + 12, TCP_CHECKSUM = 16, ROOM_FOR_LARGE = 128 };

/* Frames larger than the network's, for backends that have them. */
static const uint64_t large_features = BIT(VIRTIO_NET_F_HOST_TSO4) | BIT(VIRTIO_NET_F_HOST_TSO6) | BIT(VIRTIO_NET_F_GUEST_TSO4);

/* --- helpers --- */

static void count(struct virtio_net *net, enum counter counter)
{
    if (net->virtio.pci.device.world.counters)
        counter_add_shared(net->virtio.pci.device.world.counters, counter, 1);
}

/* --- receive --- */

/* The buffers that a frame goes into, taken but not yet given back. */
struct landing {
    uint16_t id[BUFFERS_MAX], slots[BUFFERS_MAX];
    uint32_t written[BUFFERS_MAX];
    unsigned count;
};

/* VIRTIO §5.1.6.4 "Processing of Incoming Packets". */
static struct virtio_net_hdr_v1 header_of(const uint8_t *frame, uint16_t segment_size)
{
    if (!segment_size)
        return (struct virtio_net_hdr_v1){ .gso_type = VIRTIO_NET_HDR_GSO_NONE };
    return (struct virtio_net_hdr_v1){
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = segment_size,
        .hdr_len = (uint16_t)(TCP_START + (frame[TCP_DATA_OFFSET] >> 4) * 4), .csum_start = TCP_START, .csum_offset = TCP_CHECKSUM,
    };
}

/* Copies header and frame into as many buffers as they need; false: the driver has not provided enough. */
static bool land(struct virtio_queue *queue, struct landing *landing, struct virtio_chain *first, const uint8_t *frame,
                 uint32_t size)
{
    uint32_t done = 0;
    bool mergeable = virtio_has(queue->virtio, VIRTIO_NET_F_MRG_RXBUF);
    landing->count = 0;
    do {
        struct virtio_chain next, *chain = landing->count ? &next : first;
        uint32_t header = landing->count ? 0 : HEADER_SIZE;
        if (landing->count == (mergeable ? BUFFERS_MAX : 1) || !virtio_queue_pop(queue, chain))
            return false;
        if (chain->in_size <= header) {
            virtio_break(queue->virtio, "a receive buffer is smaller than its header");
            return false;
        }
        uint32_t piece = (uint32_t)min_u64(size - done, chain->in_size - header);
        if (!virtio_chain_write(queue, chain, header, frame + done, piece)) {
            virtio_break(queue->virtio, "a receive buffer lies where there is no memory");
            return false;
        }
        done += piece;
        landing->id[landing->count] = chain->id;
        landing->slots[landing->count] = chain->slots;
        landing->written[landing->count++] = header + piece;
    } while (done < size);
    return true;
}

static bool deliver(struct virtio_net *net, struct virtio_queue *queue, const uint8_t *frame, uint32_t size,
                    uint16_t segment_size)
{
    struct virtio_queue_mark mark = virtio_queue_mark(queue);
    struct virtio_net_hdr_v1 header = header_of(frame, segment_size);
    struct landing landing;
    struct virtio_chain first;
    if (!land(queue, &landing, &first, frame, size)) {
        virtio_queue_rewind(queue, mark);
        return false;
    }
    header.num_buffers = (uint16_t)landing.count;
    virtio_chain_write(queue, &first, 0, &header, HEADER_SIZE);
    for (unsigned i = 0; i < landing.count; i++)
        virtio_queue_fill(queue, landing.id[i], landing.slots[i], landing.written[i]);
    virtio_queue_publish(queue);
    virtio_queue_signal(queue);
    count(net, COUNTER_net_rx_frames);
    return true;
}
_Static_assert(sizeof(struct virtio_net_hdr_v1) == HEADER_SIZE, "VIRTIO §5.1.6");

/* The driver wants merged frames, and has room enough for them to fit. */
static bool takes_merged(const struct virtio_net *net)
{
    return virtio_has(&net->virtio, VIRTIO_NET_F_GUEST_TSO4) && net->virtio.queue[RECEIVE].size >= ROOM_FOR_LARGE;
}

/* A frame that will never fit is dropped: the backend must not keep offering it. */
static bool net_receive(void *owner, const void *frame, uint32_t size, uint16_t segment_size)
{
    struct virtio_net *net = owner;
    struct virtio_queue *queue = &net->virtio.queue[RECEIVE];
    if (!virtio_queue_live(queue) || (segment_size && !takes_merged(net))) {
        count(net, COUNTER_net_rx_dropped);
        return true;
    }
    virtio_queue_want_notify(queue, false);
    if (deliver(net, queue, frame, size, segment_size))
        return true;
    virtio_queue_want_notify(queue, true);
    if (virtio_queue_empty(queue))
        return false;
    if (deliver(net, queue, frame, size, segment_size))       /* buffers came in between */
        return true;
    if (virtio_has(&net->virtio, VIRTIO_NET_F_MRG_RXBUF))
        return false;
    count(net, COUNTER_net_rx_dropped);
    return true;
}

/* --- transmit --- */

/* VIRTIO §5.1.6.2 "Packet Transmission": the field holds a sum to begin with; the rest of the frame is added. */
static void finish_checksum(uint8_t *frame, uint64_t size, const struct virtio_net_hdr_v1 *header)
{
    uint64_t field = (uint64_t)header->csum_start + header->csum_offset;
    if (field + sizeof(uint16_t) > size)
        return;
    uint16_t sum = (uint16_t)~net_sum_fold(net_sum(0, frame + header->csum_start, size - header->csum_start));
    if (!sum)
        sum = 0xFFFF;           /* RFC 768: 0 would say that there is none */
    memcpy(frame + field, &sum, sizeof(sum));
}

static enum virtio_progress transmit(struct virtio_net *net, struct virtio_queue *queue)
{
    struct virtio_chain chain;
    struct virtio_net_hdr_v1 header;
    if (!virtio_queue_pop(queue, &chain))
        return VIRTIO_EMPTY;
    if (chain.out_size < HEADER_SIZE) {
        virtio_break(&net->virtio, "a frame to send is smaller than its header");
        return VIRTIO_EMPTY;
    }
    uint64_t size = chain.out_size - HEADER_SIZE;
    if (size <= sizeof(net->frame) && virtio_chain_read(queue, &chain, 0, &header, HEADER_SIZE) &&
        virtio_chain_read(queue, &chain, HEADER_SIZE, net->frame, size) && net->net) {
        if (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
            finish_checksum(net->frame, size, &header);
        struct iovec iov = { net->frame, size };
        net_send(net->net, &iov, 1);
        count(net, COUNTER_net_tx_frames);
    }
    virtio_queue_push(queue, &chain, 0);
    return VIRTIO_TOOK;
}

static enum virtio_progress net_handle(struct virtio *virtio, struct virtio_queue *queue)
{
    struct virtio_net *net = (struct virtio_net *)virtio;
    if (queue->index == TRANSMIT)
        return transmit(net, queue);
    if (net->net)
        net_receive_ready(net->net);
    return VIRTIO_STALLED;
}

/* --- reset, init --- */

static void fill_config(struct virtio_net *net)
{
    struct virtio_net_config config = { .status = net->link_up ? VIRTIO_NET_S_LINK_UP : 0, .max_virtqueue_pairs = 1 };
    memcpy(config.mac, net->mac, sizeof(net->mac));
    memcpy(net->virtio.config, &config, sizeof(config));
}
_Static_assert(sizeof(struct virtio_net_config) <= VIRTIO_CONFIG_MAX, "the configuration fits");

static void net_link(void *owner, bool up)
{
    struct virtio_net *net = owner;
    net->link_up = up;
    fill_config(net);
    virtio_config_changed(&net->virtio);
}

/* Frames that waited while the driver was away are of no use to it. */
static void net_start(struct virtio *virtio)
{
    struct virtio_net *net = (struct virtio_net *)virtio;
    virtio_queue_want_notify(&virtio->queue[RECEIVE], true);
    if (net->net) {
        net_allow_merged(net->net, takes_merged(net));
        net_receive_ready(net->net);
    }
}

static void net_stop(struct virtio *virtio)
{
    struct virtio_net *net = (struct virtio_net *)virtio;
    if (net->net)
        net_allow_merged(net->net, false);
}

static const struct virtio_ops net_ops = {
    .id = 1,
    .class_code = 0x020000,
    .queues = 2,
    .features = BIT(VIRTIO_NET_F_MAC) | BIT(VIRTIO_NET_F_STATUS) | BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_NET_F_CSUM) |
                BIT(VIRTIO_NET_F_GUEST_CSUM) | BIT(VIRTIO_NET_F_HOST_TSO4) |
                BIT(VIRTIO_NET_F_HOST_TSO6) | BIT(VIRTIO_NET_F_GUEST_TSO4),
    .config_size = sizeof(struct virtio_net_config),
    .handle = net_handle,
    .stop = net_stop,
    .start = net_start,
};

static void net_reset(struct device *device)
{
    struct virtio_net *net = (struct virtio_net *)device;
    virtio_reset(&net->virtio);
    net->link_up = net->net != NULL;
    fill_config(net);
}

static bool net_init(struct device *device, struct error *err)
{
    struct virtio_net *net = (struct virtio_net *)device;
    if (!net->net || !net_takes_large(net->net))
        net->virtio.features_off |= large_features;
    if (!virtio_init(&net->virtio, &net_ops, err))
        return false;
    if (net->net)
        net_connect(net->net, &(struct net_client){ net_receive, net_link, net });
    return true;
}

/* The address is this machine's configuration, which may not be that of the machine that the state comes from. */
static void net_resume(struct device *device)
{
    struct virtio_net *net = (struct virtio_net *)device;
    fill_config(net);
    virtio_resume((struct virtio *)device);
    if (net->net)
        net_allow_merged(net->net, takes_merged(net));
}

static void net_fini(struct device *device)
{
    struct virtio_net *net = (struct virtio_net *)device;
    if (net->net)
        net_connect(net->net, NULL);
    virtio_fini(&net->virtio);
}

/* --- state, type --- */

static const struct state_field fields[] = {
    STATE_NESTED(struct virtio_net, virtio, virtio_state),
    STATE_SCALAR(struct virtio_net, link_up),
};
static const struct state_list state = STATE_LIST("virtio_net", 1, fields);

const struct device_type device_virtio_net = {
    .name = "virtio-net",
    .text = "virtio network card",
    .size = sizeof(struct virtio_net),
    .state = &state,
    .init = net_init,
    .reset = net_reset,
    .accepts = virtio_accepts,
    .resume = net_resume,
    .fini = net_fini,
};
