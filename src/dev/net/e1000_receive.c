/*
 * Receiving (§3.2 "Packet Reception"): is the frame for us, does it fit, where does it go, what do its checksums say. The driver gives buffers
 * between head and tail; a frame that finds too few waits with the network.
 */
#include <zlib.h>

#include "backend/net_checksum.h"
#include "dev/net/e1000_internal.h"

/* Receive descriptor, §3.2.3 */
enum { STATUS_DD = 1 << 0, STATUS_EOP = 1 << 1, STATUS_IXSM = 1 << 2, STATUS_VP = 1 << 3, STATUS_TCPCS = 1 << 5, STATUS_IPCS = 1 << 6,
       STATUS_PIF = 1 << 7, ERROR_TCPE = 1 << 5, ERROR_IPE = 1 << 6 };
/* RXCSUM, §13.4.45 */
enum { RXCSUM_START = 0xFF, RXCSUM_IP = 1 << 8, RXCSUM_TCP_UDP = 1 << 9 };
enum { ADDRESS_VALID = 1u << 31, TYPE_IPV4 = 0x0800, PROTOCOL_TCP = 6, PROTOCOL_UDP = 17 };

/* --- filters: §3.2.1 "Packet Address Filtering" --- */

static bool exact_match(const struct e1000 *e1000, const uint8_t *frame)
{
    for (unsigned i = 0; i < E1000_ADDRESSES; i += 2)
        if (e1000->address[i + 1] & ADDRESS_VALID && get32(frame) == e1000->address[i] && get16(frame + 4) == (e1000->address[i + 1] & 0xFFFF))
            return true;
    return false;
}

static bool multicast_match(const struct e1000 *e1000, const uint8_t *frame)
{
    static const uint8_t shift[4] = { 4, 3, 2, 0 };     /* by RCTL.MO */
    unsigned hash = get16(frame + 4) >> shift[bits(e1000->reg[E1000_RCTL], 13, 12)] & 0xFFF;
    return e1000->multicast[hash >> 5] >> (hash & 31) & 1;
}

static bool is_broadcast(const uint8_t *frame) { return get32(frame) == 0xFFFFFFFF && get16(frame + 4) == 0xFFFF; }

static bool address_passes(const struct e1000 *e1000, const uint8_t *frame, bool *inexact)
{
    uint32_t rctl = e1000->reg[E1000_RCTL];
    *inexact = false;
    if (exact_match(e1000, frame) || (is_broadcast(frame) && rctl & RCTL_BAM))
        return true;
    *inexact = true;
    if (frame[0] & 1)
        return rctl & RCTL_MPE || multicast_match(e1000, frame);
    return rctl & RCTL_UPE;
}

static bool is_tagged(const struct e1000 *e1000, const uint8_t *frame, uint32_t size)
{
    return size >= ETHERNET_HEADER + VLAN_TAG && e1000->reg[E1000_CTRL] & CTRL_VME && get16be(frame + 12) == e1000->reg[E1000_VET];
}

static bool vlan_passes(const struct e1000 *e1000, const uint8_t *frame, uint32_t size)
{
    unsigned id = size >= ETHERNET_HEADER + VLAN_TAG ? get16be(frame + 14) & 0xFFF : 0;
    bool tagged = size >= ETHERNET_HEADER + VLAN_TAG && get16be(frame + 12) == e1000->reg[E1000_VET];
    return !tagged || !(e1000->reg[E1000_RCTL] & RCTL_VFE) || e1000->vlan[id >> 5] >> (id & 31) & 1;
}

/* --- checksums: §3.2.9 "Receive Packet Checksum Offloading" --- */

static bool ip_sum_right(const uint8_t *ip, unsigned header) { return net_sum_fold(net_sum(0, ip, header)) == 0xFFFF; }

static bool transport_sum_right(const uint8_t *ip, unsigned header, unsigned total)
{
    uint8_t pseudo[12] = { 0 };
    memcpy(pseudo, ip + 12, 8);
    pseudo[9] = ip[9];
    put16be(pseudo + 10, (uint16_t)(total - header));
    return net_sum_fold(net_sum(net_sum(0, pseudo, sizeof(pseudo)), ip + header, total - header)) == 0xFFFF;
}

/* What of an IPv4 frame was looked at, and what was wrong. */
static void check_sums(const struct e1000 *e1000, const uint8_t *frame, uint32_t size, uint8_t *status, uint8_t *errors)
{
    const uint8_t *ip = frame + ETHERNET_HEADER;
    uint32_t rxcsum = e1000->reg[E1000_RXCSUM];
    unsigned header = size >= ETHERNET_HEADER + 20 && get16be(frame + 12) == TYPE_IPV4 ? (ip[0] & 15) * 4u : 0;
    unsigned total = header ? get16be(ip + 2) : 0;
    if (header < 20 || ip[0] >> 4 != 4 || total < header || ETHERNET_HEADER + total > size) {
        *status |= STATUS_IXSM;
        return;
    }
    if (rxcsum & RXCSUM_IP) {
        *status |= STATUS_IPCS;
        *errors |= ip_sum_right(ip, header) ? 0 : ERROR_IPE;
    }
    bool fragment = get16be(ip + 6) & 0x3FFF, tcp = ip[9] == PROTOCOL_TCP && total >= header + 20, udp = ip[9] == PROTOCOL_UDP && total >= header + 8;
    bool unsummed = udp && !get16be(ip + header + 6);           /* RFC 768: the sender made none */
    if (rxcsum & RXCSUM_TCP_UDP && !fragment && (tcp || udp) && !unsummed) {
        *status |= STATUS_TCPCS;
        *errors |= transport_sum_right(ip, header, total) ? 0 : ERROR_TCPE;
    }
}

/* --- into the guest's memory --- */

static uint32_t buffer_size(const struct e1000 *e1000)
{
    uint32_t rctl = e1000->reg[E1000_RCTL], size = 2048u >> bits(rctl, 17, 16);
    return rctl & RCTL_BSEX && bits(rctl, 17, 16) ? size * 16 : size;
}

static uint32_t ring_size(const struct e1000 *e1000) { return e1000->reg[E1000_RDLEN] / DESCRIPTOR_SIZE; }

/* Descriptors that the driver has given. */
static uint32_t available(const struct e1000 *e1000)
{
    uint32_t count = ring_size(e1000), head = e1000->reg[E1000_RDH], tail = e1000->reg[E1000_RDT];
    if (head >= count || tail >= count)
        return 0;
    return tail >= head ? tail - head : count - head + tail;
}

struct arrival {
    uint8_t data[E1000_FRAME_MAX + ETHERNET_CRC];
    uint32_t size;
    uint8_t status, errors;
    uint16_t tag, checksum;
};

/* §3.2.3: the frame, padded, without the tag if that is taken out, with its CRC unless that is stripped. */
static void prepare(const struct e1000 *e1000, struct arrival *arrival, const uint8_t *frame, uint32_t size)
{
    unsigned start = e1000->reg[E1000_RXCSUM] & RXCSUM_START;
    arrival->size = size;
    arrival->status = arrival->errors = 0;
    arrival->tag = arrival->checksum = 0;
    memcpy(arrival->data, frame, size);
    if (is_tagged(e1000, frame, size)) {
        arrival->status |= STATUS_VP;
        arrival->tag = get16be(frame + 14);
        arrival->size -= VLAN_TAG;
        memcpy(arrival->data + 12, frame + 12 + VLAN_TAG, size - 12 - VLAN_TAG);
    }
    check_sums(e1000, arrival->data, arrival->size, &arrival->status, &arrival->errors);
    if (start < arrival->size)
        arrival->checksum = net_sum_fold(net_sum(0, arrival->data + start, arrival->size - start));
    if (arrival->size < ETHERNET_MIN) {
        memset(arrival->data + arrival->size, 0, ETHERNET_MIN - arrival->size);
        arrival->size = ETHERNET_MIN;
    }
    if (!(e1000->reg[E1000_RCTL] & RCTL_SECRC)) {
        uint32_t crc = (uint32_t)crc32(0, arrival->data, arrival->size);
        memcpy(arrival->data + arrival->size, &crc, sizeof(crc));
        arrival->size += ETHERNET_CRC;
    }
}

/* Part of a frame into the buffer at the head. False: the descriptor cannot be read or written. */
static bool land_part(struct e1000 *e1000, const struct arrival *arrival, uint32_t done, uint32_t part)
{
    const struct dma *dma = &e1000->pci.device.dma;
    uint64_t at = (e1000->reg[E1000_RDBAL] | (uint64_t)e1000->reg[E1000_RDBAH] << 32) + (uint64_t)e1000->reg[E1000_RDH] * DESCRIPTOR_SIZE;
    uint8_t raw[DESCRIPTOR_SIZE];
    bool last = done + part == arrival->size;
    if (!dma_read(dma, at, raw, sizeof(raw)))
        return false;
    if (get64(raw))             /* an empty descriptor takes its part and keeps nothing: §3.2.3.1 */
        dma_write(dma, get64(raw), arrival->data + done, part);
    raw[8] = (uint8_t)part;
    raw[9] = (uint8_t)(part >> 8);
    memcpy(raw + 10, &arrival->checksum, 2);
    raw[12] = STATUS_DD | (last ? STATUS_EOP | arrival->status : 0);
    raw[13] = last ? arrival->errors : 0;
    memcpy(raw + 14, &arrival->tag, 2);
    /* The status last: the driver looks at it first. */
    return dma_write(dma, at + 8, raw + 8, 4) && dma_write(dma, at + 12, raw + 12, 4);
}

static void land(struct e1000 *e1000, const struct arrival *arrival)
{
    uint32_t most = buffer_size(e1000), count = ring_size(e1000), causes = ICR_RXT0;
    for (uint32_t done = 0; done < arrival->size; done += most) {
        if (!land_part(e1000, arrival, done, (uint32_t)min_u64(most, arrival->size - done)))
            guest_error(e1000->pci.device.world.log, "%s: a receive descriptor lies where there is no memory", e1000->pci.device.name);
        e1000->reg[E1000_RDH] = e1000->reg[E1000_RDH] + 1 == count ? 0 : e1000->reg[E1000_RDH] + 1;
    }
    if (available(e1000) <= count >> (1 + bits(e1000->reg[E1000_RCTL], 9, 8)))
        causes |= ICR_RXDMT0;
    e1000_raise(e1000, causes);
}

static void count_arrival(struct e1000 *e1000, const uint8_t *frame, uint32_t size)
{
    e1000_count(e1000, STAT_GPRC, 1);
    e1000_count(e1000, STAT_TPR, 1);
    e1000_count_wide(e1000, STAT_GORC, size + ETHERNET_CRC);
    e1000_count_wide(e1000, STAT_TOR, size + ETHERNET_CRC);
    if (is_broadcast(frame))
        e1000_count(e1000, STAT_BPRC, 1);
    else if (frame[0] & 1)
        e1000_count(e1000, STAT_MPRC, 1);
}

static void count_host(const struct e1000 *e1000, enum counter counter)
{
    if (e1000->pci.device.world.counters)
        counter_add_shared(e1000->pci.device.world.counters, counter, 1);
}

/* False: it may come again when there are more buffers. What is not for us, or can never fit, is taken and dropped. */
bool e1000_receive(void *owner, const void *frame, uint32_t size, uint16_t segment_size)
{
    struct e1000 *e1000 = owner;
    uint32_t rctl = e1000->reg[E1000_RCTL], tag = is_tagged(e1000, frame, size) ? VLAN_TAG : 0;
    bool inexact;
    if (!(rctl & RCTL_EN) || !e1000->link_up || !pci_bus_master(&e1000->pci) || size < ETHERNET_HEADER || size > E1000_FRAME_MAX ||
        (size + ETHERNET_CRC > ETHERNET_MAX && !(rctl & RCTL_LPE)) || !address_passes(e1000, frame, &inexact) ||
        !vlan_passes(e1000, frame, size))
        return true;
    uint32_t needs = (uint32_t)(max_u64(size - tag, ETHERNET_MIN) + (rctl & RCTL_SECRC ? 0 : ETHERNET_CRC));
    uint32_t buffers = (needs + buffer_size(e1000) - 1) / buffer_size(e1000);
    if (buffers >= ring_size(e1000)) {
        e1000_count(e1000, STAT_MPC, 1);
        count_host(e1000, COUNTER_net_rx_dropped);
        return true;
    }
    if (buffers > available(e1000)) {
        e1000_count(e1000, STAT_RNBC, 1);
        return false;
    }
    struct arrival arrival;
    prepare(e1000, &arrival, frame, size);
    if (inexact)
        arrival.status |= STATUS_PIF;
    land(e1000, &arrival);
    count_arrival(e1000, frame, size);
    count_host(e1000, COUNTER_net_rx_frames);
    return true;
}
