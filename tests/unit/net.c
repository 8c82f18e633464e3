/* The network's options: good ones work, bad ones are named; a forwarded port reaches the guest as a TCP SYN. */
#include <arpa/inet.h>
#include <stdio.h>
#include <linux/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/net_internal.h"
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
static bool receive(void *owner, const void *data, uint32_t size)
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
static bool count_arp_replies(void *owner, const void *data, uint32_t size)
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_are_parsed),
        cmocka_unit_test(bad_options_are_named),
        cmocka_unit_test(a_forwarded_port_reaches_the_guest),
        cmocka_unit_test(a_tap_talks_to_the_kernel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
