/* The Ethernet card as its driver sees it: identity, EEPROM and PHY, rings, checksums, segmentation, filters. */
#include "dev/rig.h"

#include <unistd.h>

#include "backend/net.h"
#include "backend/net_internal.h"
#include "dev/net/e1000.h"

enum { SLOT = 4 << 3, TX_RING = 0x10000, RX_RING = 0x11000, RING = 16, BUFFERS = 0x20000, SENT_MAX = 64 };
enum { CTRL = 0x0, EECD = 0x10, EERD = 0x14, MDIC = 0x20, ICR = 0xC0, IMS = 0xD0, RCTL = 0x100, TCTL = 0x400, RDBAL = 0x2800, RDLEN = 0x2808,
       RDH = 0x2810, RDT = 0x2818, TDBAL = 0x3800, TDLEN = 0x3808, TDH = 0x3810, TDT = 0x3818, RXCSUM = 0x5000, RAL = 0x5400, GPTC = 0x4080 };

/* A network that keeps what is sent. */
struct fixture {
    struct rig rig;
    struct net net;
    struct e1000 *e1000;
    uint64_t bar;
    unsigned tail;
    uint8_t *sent[SENT_MAX];
    uint32_t size[SENT_MAX];
    unsigned count;
};
static struct fixture f;

static void keep(struct net *net, const uint8_t *frame, uint32_t size)
{
    assert_true(f.count < SENT_MAX);
    f.sent[f.count] = malloc(size);
    memcpy(f.sent[f.count], frame, size);
    f.size[f.count++] = size;
}

static const struct net_kind keeper = { .send = keep };

static void configure(struct device *device, void *opaque)
{
    struct e1000 *e1000 = (struct e1000 *)device;
    e1000->net = &f.net;
    memcpy(e1000->mac, "\x52\x54\x00\x12\x34\x56", 6);
}

static void reg_write(unsigned offset, uint32_t value) { rig_write(&f.rig, f.bar + offset, 4, value); }
static uint32_t reg_read(unsigned offset) { return (uint32_t)rig_read(&f.rig, f.bar + offset, 4); }

static int setup(void **state)
{
    memset(&f, 0, sizeof(f));
    rig_create(&f.rig);
    f.net = (struct net){ .kind = &keeper, .queue_tail = &f.net.queue };
    f.e1000 = (struct e1000 *)rig_add(&f.rig, &device_e1000, SLOT, configure, NULL);
    f.bar = rig_bar(&f.rig, SLOT, 0);
    reg_write(TDBAL, TX_RING);
    reg_write(TDLEN, RING * 16);
    reg_write(TCTL, 0x0A);
    reg_write(RDBAL, RX_RING);
    reg_write(RDLEN, RING * 16);
    for (uint64_t i = 0; i < RING; i++) {
        uint64_t descriptor[2] = { BUFFERS + 0x1000 * i, 0 };
        ram_write(f.rig.ram, RX_RING + 16 * i, descriptor, sizeof(descriptor));
    }
    reg_write(RCTL, 0x8002);            /* enabled, broadcasts accepted */
    reg_write(RDT, RING - 1);
    reg_write(IMS, 0x95);
    reg_read(ICR);
    return 0;
}

static int teardown(void **state)
{
    for (unsigned i = 0; i < f.count; i++)
        free(f.sent[i]);
    device_destroy(&f.e1000->pci.device);
    rig_destroy(&f.rig);
    return 0;
}

static void put_descriptor(uint64_t low, uint64_t high)
{
    uint64_t descriptor[2] = { low, high };
    ram_write(f.rig.ram, TX_RING + 16 * f.tail, descriptor, sizeof(descriptor));
    f.tail = (f.tail + 1) % RING;
}

static uint16_t sum(const uint8_t *data, size_t size, uint32_t start)
{
    uint32_t total = start;
    for (size_t i = 0; i < size; i++)
        total += i & 1 ? data[i] : data[i] << 8;
    while (total >> 16)
        total = (total & 0xFFFF) + (total >> 16);
    return (uint16_t)total;
}

/* Of TCP or UDP over IPv4 without options; right: 0xFFFF. */
static uint16_t transport_sum(const uint8_t *frame, uint32_t size) { return sum(frame + 34, size - 34, (uint32_t)(sum(frame + 26, 8, 0) + 6 + size - 34)); }

static void eeprom_pins(uint32_t pins) { reg_write(EECD, 0x40 | pins); }

static uint16_t microwire_read(unsigned word)
{
    uint32_t out = 6u << 6 | word;      /* start, read, address */
    uint16_t value = 0;
    eeprom_pins(0);
    eeprom_pins(2);
    for (int i = 8; i >= 0; i--) {
        uint32_t data = out >> i & 1 ? 4 : 0;
        eeprom_pins(2 | data);
        eeprom_pins(3 | data);
        eeprom_pins(2 | data);
    }
    assert_int_equal(reg_read(EECD) & 8, 0);
    for (unsigned i = 0; i < 16; i++) {
        eeprom_pins(3);
        value = (uint16_t)(value << 1 | (reg_read(EECD) >> 3 & 1));
        eeprom_pins(2);
    }
    return value;
}

static void eeprom_says_what_the_card_is_by_both_ways(void **state)
{
    uint16_t total = 0;
    for (unsigned word = 0; word < 64; word++) {
        reg_write(EERD, word << 8 | 1);
        assert_int_equal(reg_read(EERD) & 0x10, 0x10);
        assert_int_equal(microwire_read(word), reg_read(EERD) >> 16);
        total += (uint16_t)(reg_read(EERD) >> 16);
    }
    assert_int_equal(total, 0xBABA);
    assert_int_equal(microwire_read(0), 0x5452);
    assert_int_equal(reg_read(EECD) & 0x80, 0x80);              /* granted */
    assert_int_equal(reg_read(RAL), 0x12005452);
}

static void phy_answers_at_its_address_alone(void **state)
{
    reg_write(MDIC, 2u << 26 | 1u << 21 | 2u << 16);
    assert_int_equal(reg_read(MDIC) & 0xFFFF, 0x0141);
    reg_write(MDIC, 2u << 26 | 1u << 21 | 1u << 16);
    assert_int_equal(reg_read(MDIC) & 0x24, 0x24);              /* link, negotiated */
    assert_true(reg_read(MDIC) & 1u << 28);
    reg_write(MDIC, 2u << 26 | 2u << 21 | 2u << 16);
    assert_true(reg_read(MDIC) & 1u << 30);
}

static void frames_go_out_padded_and_are_reported(void **state)
{
    static const uint8_t frame[20] = { 1, 2, 3, 4, 5, 6, 7 };
    ram_write(f.rig.ram, BUFFERS, frame, sizeof(frame));
    put_descriptor(BUFFERS, 10);                                /* in two parts */
    put_descriptor(BUFFERS + 10, 10 | 0x09ull << 24);           /* end, report */
    reg_write(TDT, f.tail);
    assert_int_equal(f.count, 1);
    assert_int_equal(f.size[0], 60);
    assert_memory_equal(f.sent[0], frame, sizeof(frame));
    assert_int_equal(reg_read(TDH), 2);
    uint8_t status[2];
    ram_read(f.rig.ram, TX_RING + 12, &status[0], 1);
    ram_read(f.rig.ram, TX_RING + 16 + 12, &status[1], 1);
    assert_int_equal(status[0] & 1, 0);
    assert_int_equal(status[1] & 1, 1);
    assert_true(f.rig.line[pci_intx_line(SLOT, 0)]);
    assert_int_equal(reg_read(ICR) & 1, 1);
    assert_false(f.rig.line[pci_intx_line(SLOT, 0)]);           /* reading clears */
    assert_int_equal(reg_read(GPTC), 1);
    assert_int_equal(reg_read(GPTC), 0);
}

/* An IPv4 and a TCP header; with the sum of the pseudo-header's addresses and protocol, as a driver leaves it for segmentation. */
static void tcp_frame(uint8_t *frame, uint32_t payload)
{
    memset(frame, 0, 54);
    memcpy(frame, "\x52\x54\x00\x12\x34\x56\x02\x00\x00\x00\x00\x01\x08\x00\x45", 15);
    frame[22] = 64;
    frame[23] = 6;
    memcpy(frame + 26, "\x0A\x00\x02\x0F\x0A\x00\x02\x02", 8);
    frame[46] = 0x50;
    frame[47] = 0x19;                   /* ACK, PSH, FIN */
    uint16_t pseudo = sum(frame + 26, 8, 6);
    frame[50] = (uint8_t)(pseudo >> 8);
    frame[51] = (uint8_t)pseudo;
    for (uint32_t i = 0; i < payload; i++)
        frame[54 + i] = (uint8_t)(i * 7);
}

static void large_frames_are_cut_into_segments(void **state)
{
    static uint8_t frame[54 + 3500];
    tcp_frame(frame, 3500);
    frame[41] = 100;                                            /* sequence number */
    ram_write(f.rig.ram, BUFFERS, frame, sizeof(frame));
    put_descriptor(14 | 24ull << 8 | 33ull << 16 | 34ull << 32 | 50ull << 40, 3500 | 0x27ull << 24 | 54ull << 40 | 1460ull << 48);
    put_descriptor(BUFFERS, sizeof(frame) | 1ull << 20 | 0x2Dull << 24 | 3ull << 40);
    reg_write(TDT, f.tail);
    assert_int_equal(f.count, 3);
    for (unsigned i = 0; i < 3; i++) {
        uint32_t part = i < 2 ? 1460 : 580;
        assert_int_equal(f.size[i], 54 + part);
        assert_int_equal(f.sent[i][16] << 8 | f.sent[i][17], 40 + part);
        assert_int_equal(f.sent[i][19], i);                     /* identification */
        assert_int_equal(f.sent[i][40] << 8 | f.sent[i][41], 100 + 1460 * i);
        assert_int_equal(f.sent[i][47], i < 2 ? 0x10 : 0x19);
        assert_int_equal(sum(f.sent[i] + 14, 20, 0), 0xFFFF);
        assert_int_equal(transport_sum(f.sent[i], f.size[i]), 0xFFFF);
        assert_memory_equal(f.sent[i] + 54, frame + 54 + 1460 * i, part);
    }
}

static void checksums_and_tags_are_filled_in(void **state)
{
    static uint8_t frame[54 + 100];
    tcp_frame(frame, 100);
    frame[17] = 140;
    uint16_t start = sum(frame + 26, 8, 6 + 120);
    frame[50] = (uint8_t)(start >> 8);
    frame[51] = (uint8_t)start;
    ram_write(f.rig.ram, BUFFERS, frame, sizeof(frame));
    reg_write(CTRL, reg_read(CTRL) | 1u << 30);
    reg_write(0x38, 0x8100);
    put_descriptor(14 | 24ull << 8 | 33ull << 16 | 34ull << 32 | 50ull << 40, 0x23ull << 24);
    put_descriptor(BUFFERS, sizeof(frame) | 1ull << 20 | 0x61ull << 24 | 3ull << 40 | 5ull << 48);
    reg_write(TDT, f.tail);
    assert_int_equal(f.count, 1);
    assert_int_equal(f.size[0], sizeof(frame) + 4);
    assert_memory_equal(f.sent[0] + 12, "\x81\x00\x00\x05", 4);
    memmove(f.sent[0] + 12, f.sent[0] + 16, sizeof(frame) - 12);
    assert_int_equal(sum(f.sent[0] + 14, 20, 0), 0xFFFF);
    assert_int_equal(transport_sum(f.sent[0], sizeof(frame)), 0xFFFF);
}

static uint64_t arrived(unsigned n)
{
    uint64_t word;
    ram_read(f.rig.ram, RX_RING + 16 * n + 8, &word, 8);
    return word;
}

static bool deliver(const uint8_t *frame, uint32_t size) { return f.net.client.receive(f.net.client.owner, frame, size, 0); }

static void frames_that_are_for_it_arrive_with_their_checksums_judged(void **state)
{
    uint8_t frame[100];
    tcp_frame(frame, 46);
    frame[17] = 86;
    uint16_t ip = (uint16_t)~sum(frame + 14, 20, 0), tcp;
    frame[24] = (uint8_t)(ip >> 8);
    frame[25] = (uint8_t)ip;
    frame[50] = frame[51] = 0;
    tcp = (uint16_t)~transport_sum(frame, sizeof(frame));
    frame[50] = (uint8_t)(tcp >> 8);
    frame[51] = (uint8_t)tcp;
    reg_write(RXCSUM, 0x300);
    assert_true(deliver(frame, sizeof(frame)));
    assert_int_equal(arrived(0) & 0xFFFF, 104);                 /* with the CRC */
    assert_int_equal(arrived(0) >> 32 & 0xFFFF, 0x0063);        /* done, end, TCP and IP looked at; no error */
    assert_true(reg_read(ICR) & 0x80);
    frame[99] ^= 1;
    assert_true(deliver(frame, sizeof(frame)));
    assert_int_equal(arrived(1) >> 32 & 0xFFFF, 0x2063);
    frame[0] = 0x50;                                            /* somebody else's */
    assert_true(deliver(frame, sizeof(frame)));
    assert_int_equal(reg_read(RDH), 2);
    memset(frame, 0xFF, 6);
    assert_true(deliver(frame, 60));
    assert_int_equal(reg_read(RDH), 3);
    assert_true(deliver(frame, 3000));                          /* longer than it takes */
    assert_int_equal(reg_read(RDH), 3);
}

static void frames_wait_while_there_are_no_buffers(void **state)
{
    uint8_t frame[60];
    memset(frame, 0xFF, sizeof(frame));
    for (unsigned i = 0; i < RING - 1; i++)
        assert_true(net_deliver(&f.net, frame, sizeof(frame), 0));
    assert_int_equal(reg_read(RDH), RING - 1);
    assert_true(net_deliver(&f.net, frame, sizeof(frame), 0));
    assert_int_equal(f.net.queued, 1);
    reg_write(RDT, 3);
    assert_int_equal(f.net.queued, 0);
    assert_int_equal(reg_read(RDH), 0);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(eeprom_says_what_the_card_is_by_both_ways),
        CASE(phy_answers_at_its_address_alone),
        CASE(frames_go_out_padded_and_are_reported),
        CASE(large_frames_are_cut_into_segments),
        CASE(checksums_and_tags_are_filled_in),
        CASE(frames_that_are_for_it_arrive_with_their_checksums_judged),
        CASE(frames_wait_while_there_are_no_buffers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
