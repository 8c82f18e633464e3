#include "backend/net_merge.h"

#include <string.h>

#include "backend/net_checksum.h"

/* Offsets in an Ethernet frame with an IPv4 header without options and a TCP header. */
enum {
    ETHER_TYPE = 12, IP = 14, IP_SIZE = 16, IP_FRAGMENT = 20, IP_PROTOCOL = 23, IP_SUM = 24, IP_SOURCE = 26, TCP = 34,
    TCP_SEQUENCE = 38, TCP_ACK = 42, TCP_HEADER = 46, TCP_FLAGS = 47, TCP_SUM = 50, TCP_URGENT = 52, TCP_BODY = 54,
    IPV4 = 0x0800, PROTOCOL_TCP = 6, FLAG_PUSH = 0x08, FLAG_ACK = 0x10, IP_SIZE_MAX = 65535,
};

static uint32_t get16(const uint8_t *at) { return (uint32_t)at[0] << 8 | at[1]; }
static uint32_t get32(const uint8_t *at) { return get16(at) << 16 | get16(at + 2); }

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static uint32_t header_size(const uint8_t *frame) { return TCP + (frame[TCP_HEADER] >> 4) * 4u; }

/* A segment that carries data and nothing out of the ordinary. */
static bool plain_data(const uint8_t *frame, uint32_t size)
{
    return size > TCP_BODY && get16(frame + ETHER_TYPE) == IPV4 && frame[IP] == 0x45 && frame[IP_PROTOCOL] == PROTOCOL_TCP &&
           (get16(frame + IP_FRAGMENT) & 0x3FFF) == 0 && IP + get16(frame + IP_SIZE) == size &&
           (frame[TCP_FLAGS] & ~FLAG_PUSH) == FLAG_ACK && header_size(frame) >= TCP_BODY && header_size(frame) < size;
}

static bool same(const uint8_t *a, const uint8_t *b, uint32_t from, uint32_t to) { return memcmp(a + from, b + from, to - from) == 0; }

/* The segment goes on where the kept frame ends, and only sequence, size and checksums tell their headers apart. */
static bool joins(const struct net_merge *merge, const uint8_t *frame, uint32_t size)
{
    const uint8_t *kept = merge->frame;
    uint32_t payload = size - header_size(frame);
    return merge->size && get32(frame + TCP_SEQUENCE) == merge->next_sequence && payload <= merge->segment_size &&
           merge->size - IP + payload <= IP_SIZE_MAX && same(kept, frame, 0, IP_SIZE) && same(kept, frame, IP_FRAGMENT, IP_SUM) &&
           same(kept, frame, IP_SOURCE, TCP_SEQUENCE) && same(kept, frame, TCP_ACK, TCP_FLAGS) &&
           same(kept, frame, TCP_FLAGS + 1, TCP_SUM) && same(kept, frame, TCP_URGENT, header_size(kept));
}

static void keep(struct net_merge *merge, const uint8_t *frame, uint32_t size)
{
    memcpy(merge->frame, frame, size);
    merge->size = size;
    merge->segment_size = (uint16_t)(size - header_size(frame));
    merge->segments = 1;
    merge->next_sequence = get32(frame + TCP_SEQUENCE) + merge->segment_size;
}

static void append(struct net_merge *merge, const uint8_t *frame, uint32_t size)
{
    uint32_t header = header_size(frame), payload = size - header;
    memcpy(merge->frame + merge->size, frame + header, payload);
    merge->frame[TCP_FLAGS] |= frame[TCP_FLAGS];
    merge->size += payload;
    merge->segments++;
    merge->next_sequence += payload;
}

void net_merge_add(struct net_merge *merge, const uint8_t *frame, uint32_t size)
{
    bool plain = plain_data(frame, size);
    if (plain && joins(merge, frame, size)) {
        append(merge, frame, size);
    } else {
        net_merge_flush(merge);
        if (!plain || size > sizeof(merge->frame)) {
            merge->deliver(merge->owner, frame, size, 0);
            return;
        }
        keep(merge, frame, size);
    }
    /* A segment that is shorter than the first, or that wants to be pushed, is the last. */
    if (frame[TCP_FLAGS] & FLAG_PUSH || size - header_size(frame) < merge->segment_size)
        net_merge_flush(merge);
}

/* The headers of the whole. The TCP checksum is left at the sum of the pseudo-header, as VIRTIO §5.1.6.4 has it. */
static void finish(struct net_merge *merge)
{
    uint8_t *frame = merge->frame, pseudo[4] = { 0, PROTOCOL_TCP };
    uint16_t sum;
    put16(frame + IP_SIZE, merge->size - IP);
    put16(frame + IP_SUM, 0);
    sum = (uint16_t)~net_sum_fold(net_sum(0, frame + IP, TCP - IP));
    memcpy(frame + IP_SUM, &sum, sizeof(sum));
    put16(pseudo + 2, merge->size - TCP);
    sum = net_sum_fold(net_sum(net_sum(0, pseudo, sizeof(pseudo)), frame + IP_SOURCE, TCP - IP_SOURCE));
    memcpy(frame + TCP_SUM, &sum, sizeof(sum));
}

void net_merge_flush(struct net_merge *merge)
{
    uint32_t size = merge->size;
    if (!size)
        return;
    if (merge->segments > 1)
        finish(merge);
    merge->size = 0;
    merge->deliver(merge->owner, merge->frame, size, merge->segments > 1 ? merge->segment_size : 0);
}
