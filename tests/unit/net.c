/* The network's options: good ones work, bad ones are named; a forwarded port reaches the guest as a TCP SYN. */
#include <arpa/inet.h>
#include <stdio.h>
#include <linux/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/net_checksum.h"
#include "backend/net_merge.h"
#include "base/clock.h"
#include "unit/cmocka_all.h"

static void options_are_parsed(void **state)
{
    struct net_options options;
    assert_true(net_options_parse("user", &options, NULL));
    assert_true(net_options_parse("user,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-10.0.2.16:5353,restrict=on", &options, NULL));
    assert_int_equal(options.hostfwd_count, 2);
    assert_int_equal(options.hostfwd[0].host_port, 2222);
    assert_int_equal(options.hostfwd[0].guest_port, 22);
    assert_int_equal(options.hostfwd[0].host.s_addr, 0);
    assert_true(options.hostfwd[1].udp);
    assert_int_equal(ntohl(options.hostfwd[1].host.s_addr), 0x7F000001);
    assert_int_equal(ntohl(options.hostfwd[1].guest.s_addr), 0x0A000210);
    assert_true(options.restricted);
    assert_true(net_options_parse("tap,ifname=tap7", &options, NULL));
    assert_string_equal(options.ifname, "tap7");
}

static void bad_options_are_named(void **state)
{
    static const char *const bad[] = { "", "userx", "user,hostfwd", "user,hostfwd=tcp::2222", "user,hostfwd=tcp::99999-:22",
                                       "user,hostfwd=sctp::1-:2", "user,ifname=x", "tap,restrict=on", "user,restrict=maybe",
                                       "tap,ifname=muchtoolonganame", "user,hostfwd=tcp:1.2.3:80-:80", "user,hostfwd=tcp::a-:b" };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        struct net_options options;
        struct error err = { "" };
        if (net_options_parse(bad[i], &options, &err))
            fail_msg("\"%s\" was taken", bad[i]);
        assert_true(strlen(err.text) > 10);
    }
}

struct seen {
    unsigned syns;
    struct net *net;
    bool asked;
};

/* Answers the ARP question for 10.0.2.15 and counts SYNs to port 22. */
static bool receive(void *owner, const void *data, uint32_t size, uint16_t segment_size)
{
    struct seen *seen = owner;
    const uint8_t *frame = data;
    if (size >= 42 && frame[12] == 8 && frame[13] == 6 && frame[21] == 1 && frame[41] == 15)
        seen->asked = true;
    if (size >= 54 && frame[12] == 8 && frame[13] == 0 && frame[23] == 6 && frame[37] == 22 && frame[47] & 2)
        seen->syns++;
    return true;
}

static void answer_arp(struct net *net)
{
    uint8_t reply[42] = { 0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2,
                          0x52, 0x54, 0, 0x12, 0x34, 0x56, 10, 0, 2, 15, 0x52, 0x55, 10, 0, 2, 2, 10, 0, 2, 2 };
    struct iovec iov = { reply, sizeof(reply) };
    net_send(net, &iov, 1);
}

static void a_forwarded_port_reaches_the_guest(void **state)
{
    struct error err = { "" };
    struct seen seen = { 0 };
    struct loop *loop = loop_create(NULL);
    struct clock *clock = clock_create(loop, NULL, 0);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    struct net *net = NULL;
    char text[64];
    uint16_t port = 21000;
    for (; !net && port < 21100; port++) {
        snprintf(text, sizeof(text), "user,hostfwd=tcp:127.0.0.1:%u-:22", port);
        net = net_open(text, loop, clock, NULL, NULL, &err);
        address.sin_port = htons(port);
    }
    assert_non_null(net);
    net_connect(net, &(struct net_client){ receive, NULL, &seen });
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect(fd, (struct sockaddr *)&address, sizeof(address));
    for (int i = 0; i < 100 && !seen.syns; i++) {
        if (seen.asked)
            answer_arp(net);
        loop_run_once(loop, 20);
    }
    assert_true(seen.syns > 0);
    assert_null(net_open(text, loop, clock, NULL, NULL, &err));         /* the port is taken */
    assert_non_null(strstr(err.text, "forward"));
    close(fd);
    net_close(net);
    clock_destroy(clock);
    loop_destroy(loop);
}

/* ARP in both directions with the host's kernel; skipped where making an interface is not allowed. */
static bool count_arp_replies(void *owner, const void *data, uint32_t size, uint16_t segment_size)
{
    const uint8_t *frame = data;
    *(unsigned *)owner += size >= 42 && frame[12] == 8 && frame[13] == 6 && frame[21] == 2 && frame[31] == 1;
    return true;
}

static bool bring_up(const char *name)
{
    struct ifreq request = { 0 };
    struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    strcpy(request.ifr_name, name);
    *address = (struct sockaddr_in){ .sin_family = AF_INET };
    inet_pton(AF_INET, "198.51.100.1", &address->sin_addr);
    bool ok = ioctl(fd, SIOCSIFADDR, &request) == 0;
    memset(&request.ifr_ifru, 0, sizeof(request.ifr_ifru));
    ok = ok && ioctl(fd, SIOCGIFFLAGS, &request) == 0;
    request.ifr_flags |= IFF_UP;
    ok = ok && ioctl(fd, SIOCSIFFLAGS, &request) == 0;
    close(fd);
    return ok;
}

static void a_tap_talks_to_the_kernel(void **state)
{
    uint8_t question[42] = { 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1,
                             0x52, 0x54, 0, 0x12, 0x34, 0x56, 198, 51, 100, 2, 0, 0, 0, 0, 0, 0, 198, 51, 100, 1 };
    struct iovec iov = { question, sizeof(question) };
    struct error err;
    unsigned replies = 0;
    struct loop *loop = loop_create(NULL);
    struct net *net = net_open("tap,ifname=doppeltest0", loop, NULL, NULL, NULL, &err);
    if (!net || !bring_up("doppeltest0")) {
        net_close(net);
        loop_destroy(loop);
        skip();
    }
    net_connect(net, &(struct net_client){ count_arp_replies, NULL, &replies });
    for (int i = 0; i < 100 && !replies; i++) {
        net_send(net, &iov, 1);
        loop_run_once(loop, 20);
    }
    assert_true(replies > 0);
    net_close(net);
    loop_destroy(loop);
}

/* --- merging --- */

enum { HEADERS = 54, MOST_FRAMES = 64 };

struct delivered {
    unsigned count;
    uint32_t size[MOST_FRAMES];
    uint16_t segment_size[MOST_FRAMES];
    uint8_t last[NET_FRAME_MAX];
};

static void note_delivered(void *owner, const uint8_t *frame, uint32_t size, uint16_t segment_size)
{
    struct delivered *to = owner;
    assert_true(to->count < MOST_FRAMES);
    to->size[to->count] = size;
    to->segment_size[to->count++] = segment_size;
    memcpy(to->last, frame, size);
}

/* A TCP segment with its payload counted up from the sequence number. Returns the frame's size. */
static uint32_t segment(uint8_t *frame, uint32_t sequence, uint32_t payload, uint8_t flags)
{
    static const uint8_t headers[HEADERS] = { 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x52, 0x55, 10, 0, 2, 2, 8, 0, 0x45, 0, 0, 0, 0, 0,
                                              0x40, 0, 64, 6, 0, 0, 10, 0, 2, 2, 10, 0, 2, 15, 1, 2, 3, 4 };
    memcpy(frame, headers, HEADERS);
    frame[16] = (uint8_t)((payload + 40) >> 8), frame[17] = (uint8_t)(payload + 40);
    for (int i = 0; i < 4; i++)
        frame[38 + i] = (uint8_t)(sequence >> (24 - 8 * i));
    frame[46] = 0x50;
    frame[47] = flags;
    for (uint32_t i = 0; i < payload; i++)
        frame[HEADERS + i] = (uint8_t)(sequence + i);
    return HEADERS + payload;
}

static void segments_are_merged(void **state)
{
    static struct delivered to;
    static struct net_merge merge;
    uint8_t frame[2048];
    to = (struct delivered){ 0 };
    merge = (struct net_merge){ .deliver = note_delivered, .owner = &to };
    for (uint32_t i = 0; i < 5; i++)
        net_merge_add(&merge, frame, segment(frame, i * 1460, 1460, 0x10));
    assert_int_equal(to.count, 0);
    net_merge_add(&merge, frame, segment(frame, 5 * 1460, 100, 0x18));
    assert_int_equal(to.count, 1);              /* a short one is the last */
    assert_int_equal(to.size[0], HEADERS + 5 * 1460 + 100);
    assert_int_equal(to.segment_size[0], 1460);
    assert_int_equal(to.last[16] << 8 | to.last[17], 40 + 5 * 1460 + 100);
    assert_int_equal(to.last[47], 0x18);
    assert_int_equal(net_sum_fold(net_sum(0, to.last + 14, 20)), 0xFFFF);
    for (uint32_t i = 0; i < 5 * 1460 + 100; i++)
        assert_int_equal(to.last[HEADERS + i], (uint8_t)i);
    /* With its pseudo-header's sum in place, adding up the whole gives a right checksum: what the receiver would compute. */
    uint8_t pseudo[12] = { 10, 0, 2, 2, 10, 0, 2, 15, 0, 6, (20 + 5 * 1460 + 100) >> 8, (20 + 5 * 1460 + 100) & 0xFF };
    uint16_t sum = net_sum_fold(net_sum(0, pseudo, sizeof(pseudo))), there;
    memcpy(&there, to.last + 50, sizeof(there));
    assert_int_equal(sum, there);
}

static void what_does_not_belong_together_stays_apart(void **state)
{
    static struct delivered to;
    static struct net_merge merge;
    uint8_t frame[2048];
    to = (struct delivered){ 0 };
    merge = (struct net_merge){ .deliver = note_delivered, .owner = &to };
    net_merge_add(&merge, frame, segment(frame, 0, 500, 0x10));
    net_merge_add(&merge, frame, segment(frame, 600, 500, 0x10));       /* a gap */
    uint32_t size = segment(frame, 1100, 500, 0x10);
    frame[35] = 99;                                                     /* another connection */
    net_merge_add(&merge, frame, size);
    net_merge_add(&merge, frame, segment(frame, 1600, 500, 0x11));      /* FIN */
    size = segment(frame, 2100, 500, 0x10);
    frame[20] = 0x20;                                                   /* a fragment */
    net_merge_add(&merge, frame, size);
    net_merge_add(&merge, frame, 42);                                   /* too short to be one */
    net_merge_flush(&merge);
    assert_int_equal(to.count, 6);
    for (unsigned i = 0; i < to.count; i++)
        assert_int_equal(to.segment_size[i], 0);
}

/* However long the stream and whatever the frames, none outgrows an IPv4 packet and no byte is lost. */
static void merged_frames_fit(void **state)
{
    static struct delivered to;
    static struct net_merge merge;
    static uint8_t frame[NET_FRAME_MAX];
    uint32_t seed = 1, total = 0, out = 0;
    merge = (struct net_merge){ .deliver = note_delivered, .owner = &to };
    for (int round = 0; round < 20000; round++) {
        to.count = 0;
        seed = seed * 1664525 + 1013904223;
        uint32_t payload = seed >> 28 ? 1460 : 1 + (seed >> 8) % 60000, size = segment(frame, total, payload, 0x10);
        if ((seed >> 4) % 50 == 0)
            frame[14 + (seed >> 10) % 40] ^= (uint8_t)(1 << (seed >> 20) % 8);
        total += payload;
        net_merge_add(&merge, frame, size);
        if (round == 19999)
            net_merge_flush(&merge);
        for (unsigned i = 0; i < to.count; i++) {
            assert_true(to.size[i] <= 14 + 65535);
            out += to.size[i] - HEADERS;
        }
        /* A frame that was merged has lost the headers of all but the first; the rest of the bytes are there. */
        assert_true(out <= total);
    }
    assert_int_equal(out, total);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_are_parsed),
        cmocka_unit_test(bad_options_are_named),
        cmocka_unit_test(a_forwarded_port_reaches_the_guest),
        cmocka_unit_test(segments_are_merged),
        cmocka_unit_test(what_does_not_belong_together_stays_apart),
        cmocka_unit_test(merged_frames_fit),
        cmocka_unit_test(a_tap_talks_to_the_kernel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
