/*
 * Sending (§3.3 "Packet Transmission"). Descriptors between head and tail are taken one by one; their data is copied once, into the frame that is
 * being gathered. At the frame's end checksums are filled in, and a large TCP frame is cut into segments (§3.5 "TCP Segmentation"), unless the
 * network takes it whole. After FRAMES_AT_ONCE frames the processor goes on, and the rest follows from the clock's thread.
 */
#include "backend/net_checksum.h"
#include "dev/net/e1000_internal.h"

enum { FRAMES_AT_ONCE = 256, IP_TOTAL_MAX = 65535 };

/* The command byte of every kind of descriptor: §3.3.3.1, §3.3.7.1; TCP and IP are a context's. */
enum { COMMAND_EOP = 1 << 0, COMMAND_IC = 1 << 2, COMMAND_TSE = 1 << 2, COMMAND_RS = 1 << 3, COMMAND_EXTENSION = 1 << 5, COMMAND_VLE = 1 << 6,
       CONTEXT_TCP = 1 << 0, CONTEXT_IP = 1 << 1 };
enum { STATUS_DONE = 1 << 0, OPTION_IP = 1 << 0, OPTION_TCP_UDP = 1 << 1, TYPE_DATA = 1 };
enum { IPV4_LENGTH = 2, IPV4_ID = 4, IPV6_LENGTH = 4, IPV6_HEADER = 40, TCP_SEQUENCE = 4, TCP_FLAGS = 13, TCP_FIN_PSH = 9, TCP_CWR = 0x80,
       UDP_LENGTH = 4 };

struct descriptor {
    uint64_t buffer;
    uint32_t length;
    uint8_t command, checksum_start, checksum_field;
    bool data;                  /* of the extended form */
    uint16_t tag;
};

/* --- checksums --- */

/* Over [start, end], which is the frame's end if it is 0 or lies beyond; into the field, which holds a sum to begin with. */
static void fill_checksum(uint8_t *frame, uint32_t size, unsigned start, unsigned field, unsigned end)
{
    uint32_t stop = !end || end >= size ? size : end + 1;
    if (start >= stop || field + 2 > size)
        return;
    uint16_t sum = (uint16_t)~net_sum_fold(net_sum(0, frame + start, stop - start));
    memcpy(frame + field, &sum, sizeof(sum));
}

static void fill_ip_checksum(uint8_t *frame, uint32_t size, const struct e1000_context *context)
{
    if (context->ip_field + 2u > size)
        return;
    memset(frame + context->ip_field, 0, 2);
    fill_checksum(frame, size, context->ip_start, context->ip_field, context->ip_end);
}

/* --- to the network --- */

static void insert_tag(struct e1000 *e1000, uint8_t *frame, uint32_t *size, uint16_t tag)
{
    enum { ADDRESSES = 12 };
    memmove(frame + ADDRESSES + VLAN_TAG, frame + ADDRESSES, *size - ADDRESSES);
    put16be(frame + ADDRESSES, (uint16_t)e1000->reg[E1000_VET]);
    put16be(frame + ADDRESSES + 2, tag);
    *size += VLAN_TAG;
}

/* There is room for a tag behind the frame. */
static void send_frame(struct e1000 *e1000, uint8_t *frame, uint32_t size, const struct descriptor *last)
{
    if (!e1000->link_up || !e1000->net || size < ETHERNET_HEADER)
        return;
    if (last->command & COMMAND_VLE && e1000->reg[E1000_CTRL] & CTRL_VME)
        insert_tag(e1000, frame, &size, last->tag);
    if (size < ETHERNET_MIN && e1000->reg[E1000_TCTL] & TCTL_PSP) {
        memset(frame + size, 0, ETHERNET_MIN - size);
        size = ETHERNET_MIN;
    }
    struct iovec iov = { frame, size };
    e1000_count(e1000, STAT_GPTC, 1);
    e1000_count(e1000, STAT_TPT, 1);
    e1000_count_wide(e1000, STAT_GOTC, size + ETHERNET_CRC);
    e1000_count_wide(e1000, STAT_TOT, size + ETHERNET_CRC);
    if (e1000->pci.device.world.counters)
        counter_add_shared(e1000->pci.device.world.counters, COUNTER_net_tx_frames, 1);
    net_send(e1000->net, &iov, 1);
}

/* --- segmentation --- */

/* Where the headers must lie for any of it to make sense. */
static bool segmentation_possible(const struct e1000 *e1000)
{
    const struct e1000_context *context = &e1000->segmentation;
    unsigned ip_needs = context->command & CONTEXT_IP ? 20 : IPV6_HEADER, transport_needs = context->command & CONTEXT_TCP ? 20 : 8;
    return context->segment && context->header <= e1000->frame_size && context->ip_start + ip_needs <= context->header &&
           context->tu_start + transport_needs <= context->header;
}

static void add32be(uint8_t *at, uint32_t amount)
{
    uint32_t value = ((uint32_t)get16be(at) << 16 | get16be(at + 2)) + amount;
    put16be(at, (uint16_t)(value >> 16));
    put16be(at + 2, (uint16_t)value);
}

/* The headers of the segment that begins `done` bytes into the payload: §3.5.7 "IP and TCP/UDP Headers". */
static void finish_headers(uint8_t *segment, uint32_t size, const struct e1000_context *context, uint32_t done, uint32_t number, bool last)
{
    uint8_t *ip = segment + context->ip_start, *transport = segment + context->tu_start;
    if (context->command & CONTEXT_IP) {
        put16be(ip + IPV4_LENGTH, (uint16_t)(size - context->ip_start));
        put16be(ip + IPV4_ID, (uint16_t)(get16be(ip + IPV4_ID) + number));
    } else {
        put16be(ip + IPV6_LENGTH, (uint16_t)(size - context->ip_start - IPV6_HEADER));
    }
    uint16_t length = (uint16_t)(size - context->tu_start);
    if (context->command & CONTEXT_TCP) {
        add32be(transport + TCP_SEQUENCE, done);
        if (!last)
            transport[TCP_FLAGS] &= (uint8_t)~TCP_FIN_PSH;
        if (number)
            transport[TCP_FLAGS] &= (uint8_t)~TCP_CWR;
    } else {
        put16be(transport + UDP_LENGTH, length);
    }
    /* The driver's sum of the pseudo-header lacks the length, which differs from segment to segment. */
    if (context->tu_field + 2u <= size) {
        uint8_t *field = segment + context->tu_field;
        put16be(field, (uint16_t)net_sum_fold((uint64_t)get16be(field) + length));
    }
}

/* How many there are. */
static unsigned send_segments(struct e1000 *e1000, const struct descriptor *last)
{
    const struct e1000_context *context = &e1000->segmentation;
    uint8_t segment[E1000_FRAME_MAX];
    uint32_t payload = e1000->frame_size - context->header, number = 0, most = context->segment;
    bool whole = e1000->net && net_takes_large(e1000->net) && context->command & CONTEXT_TCP && payload + context->header <= IP_TOTAL_MAX;
    if (whole)
        most = payload;
    for (uint32_t done = 0; done < payload; done += most, number++) {
        uint32_t part = (uint32_t)min_u64(most, payload - done), size = context->header + part;
        memcpy(segment, e1000->frame, context->header);
        memcpy(segment + context->header, e1000->frame + context->header + done, part);
        finish_headers(segment, size, context, done, number, done + part == payload);
        if (e1000->frame_options & OPTION_IP)
            fill_ip_checksum(segment, size, context);
        if (e1000->frame_options & OPTION_TCP_UDP)
            fill_checksum(segment, size, context->tu_start, context->tu_field, context->tu_end);
        send_frame(e1000, segment, size, last);
    }
    e1000_count(e1000, STAT_TSCTC, 1);
    return number;
}

/* --- frames --- */

/* At the end of a frame; how many went out. */
static unsigned end_frame(struct e1000 *e1000, const struct descriptor *last)
{
    bool segments = last->data && last->command & COMMAND_TSE;
    if (e1000->frame_lost || (segments && !segmentation_possible(e1000))) {
        guest_error(e1000->pci.device.world.log, "%s: a frame of %u bytes cannot be sent", e1000->pci.device.name, e1000->frame_size);
        return 1;
    }
    if (segments)
        return send_segments(e1000, last);
    const struct e1000_context *context = &e1000->checksum;
    if (last->data && e1000->frame_options & OPTION_IP)
        fill_ip_checksum(e1000->frame, e1000->frame_size, context);
    if (last->data && e1000->frame_options & OPTION_TCP_UDP)
        fill_checksum(e1000->frame, e1000->frame_size, context->tu_start, context->tu_field, context->tu_end);
    if (!last->data && last->command & COMMAND_IC)
        fill_checksum(e1000->frame, e1000->frame_size, last->checksum_start, last->checksum_field, 0);
    send_frame(e1000, e1000->frame, e1000->frame_size, last);
    return 1;
}

/* Adds the descriptor's data to the frame. */
static void gather(struct e1000 *e1000, const struct descriptor *descriptor)
{
    uint32_t room = E1000_FRAME_MAX - VLAN_TAG - e1000->frame_size;
    if (descriptor->length > room ||
        (descriptor->length &&
         !dma_read(&e1000->pci.device.dma, descriptor->buffer, e1000->frame + e1000->frame_size, descriptor->length)))
        e1000->frame_lost = true;
    else
        e1000->frame_size += descriptor->length;
}

static void take_context(struct e1000 *e1000, const uint8_t *raw)
{
    uint8_t command = raw[11];
    struct e1000_context *context = command & COMMAND_TSE ? &e1000->segmentation : &e1000->checksum;
    *context = (struct e1000_context){ .ip_start = raw[0], .ip_field = raw[1], .ip_end = get16(raw + 2), .tu_start = raw[4], .tu_field = raw[5],
                                       .tu_end = get16(raw + 6), .payload = get32(raw + 8) & 0xFFFFF, .command = command,
                                       .header = raw[13], .segment = get16(raw + 14) };
}

static struct descriptor decode(const uint8_t *raw)
{
    struct descriptor descriptor = { .buffer = get64(raw), .command = raw[11], .tag = get16(raw + 14) };
    descriptor.data = descriptor.command & COMMAND_EXTENSION;
    descriptor.length = descriptor.data ? get32(raw + 8) & 0xFFFFF : get16(raw + 8);
    descriptor.checksum_field = raw[10];
    descriptor.checksum_start = raw[13];
    return descriptor;
}

/* One descriptor; how many frames went out. */
static unsigned take_descriptor(struct e1000 *e1000, uint64_t at, const uint8_t *raw)
{
    struct descriptor descriptor = decode(raw);
    unsigned sent = 0;
    if (descriptor.data && (raw[10] >> 4) != TYPE_DATA) {
        take_context(e1000, raw);
    } else {
        if (!e1000->frame_size)
            e1000->frame_options = descriptor.data ? raw[13] : 0;
        gather(e1000, &descriptor);
        if (descriptor.command & COMMAND_EOP) {
            sent = end_frame(e1000, &descriptor);
            e1000->frame_size = 0;
            e1000->frame_lost = false;
        }
    }
    if (descriptor.command & COMMAND_RS) {
        uint8_t status = raw[12] | STATUS_DONE;
        dma_write(&e1000->pci.device.dma, at + 12, &status, sizeof(status));
    }
    return sent + !(descriptor.command & COMMAND_EOP);
}

void e1000_transmit(struct e1000 *e1000)
{
    uint32_t *reg = e1000->reg, count = reg[E1000_TDLEN] / DESCRIPTOR_SIZE, causes = 0;
    uint64_t base = reg[E1000_TDBAL] | (uint64_t)reg[E1000_TDBAH] << 32;
    unsigned budget = FRAMES_AT_ONCE;
    bool any = false;
    while (reg[E1000_TCTL] & TCTL_EN && reg[E1000_TDH] != reg[E1000_TDT] && reg[E1000_TDH] < count && reg[E1000_TDT] < count) {
        uint8_t raw[DESCRIPTOR_SIZE];
        uint64_t at = base + (uint64_t)reg[E1000_TDH] * DESCRIPTOR_SIZE;
        if (!budget) {
            timer_arm(&e1000->more, clock_ns(e1000->pci.device.world.clock));
            break;
        }
        if (!dma_read(&e1000->pci.device.dma, at, raw, sizeof(raw))) {
            guest_error(e1000->pci.device.world.log, "%s: the descriptor at %#lx cannot be read", e1000->pci.device.name, (unsigned long)at);
            reg[E1000_TDH] = reg[E1000_TDT];
            break;
        }
        unsigned sent = take_descriptor(e1000, at, raw);
        any = true;
        budget -= (unsigned)min_u64(budget, sent);
        causes |= raw[11] & COMMAND_RS ? ICR_TXDW : 0;
        reg[E1000_TDH] = reg[E1000_TDH] + 1 == count ? 0 : reg[E1000_TDH] + 1;
    }
    if (any && reg[E1000_TDH] == reg[E1000_TDT])
        causes |= ICR_TXQE;
    e1000_raise(e1000, causes);
}
