/*
 * User-mode networking over libslirp: a NAT with DHCP and DNS inside this process, which needs no rights. The guest is
 * 10.0.2.15, the host 10.0.2.2, the name server 10.0.2.3; fec0::/64 beside it. libslirp knows no threads: every call into
 * it is made with the board lock held. It waits for its sockets through the loop's poller hook; a frame from the guest may
 * open sockets, so it wakes the loop.
 */
#include "backend/net_merge.h"

#include <errno.h>
#include <libslirp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

enum { FDS_MAX = 256, NS_PER_MS = 1000000 };

struct user {
    struct net *net;
    Slirp *slirp;
    struct loop_poller poller;
    struct loop_work wake;
    struct net_merge merge;
    /* Valid while the poller's functions run. */
    struct pollfd *fds;
    const struct pollfd *ready;
    int count, room;
};

struct user_timer {
    struct timer timer;
    struct user *user;
    SlirpTimerCb fire;
    void *opaque;
};

/* --- what libslirp asks of us --- */

static ssize_t send_packet(const void *buffer, size_t size, void *opaque)
{
    struct user *user = opaque;
    if (user->net->merged_allowed)
        net_merge_add(&user->merge, buffer, (uint32_t)size);
    else
        net_deliver(user->net, buffer, (uint32_t)size, 0);
    return (ssize_t)size;
}

static void deliver(void *owner, const uint8_t *frame, uint32_t size, uint16_t segment_size)
{
    struct user *user = owner;
    net_deliver(user->net, frame, size, segment_size);
}

static void report_guest_error(const char *text, void *opaque)
{
    struct user *user = opaque;
    guest_error(user->net->log, "network: %s", text);
}

static int64_t get_ns(void *opaque)
{
    struct user *user = opaque;
    return (int64_t)clock_ns(user->net->clock);
}

static void fire(void *owner)
{
    struct user_timer *timer = owner;
    timer->fire(timer->opaque);
    net_merge_flush(&timer->user->merge);
}

static void *new_timer(SlirpTimerCb callback, void *callback_opaque, void *opaque)
{
    struct user *user = opaque;
    struct user_timer *timer = calloc(1, sizeof(*timer));
    if (!timer)
        return NULL;
    timer->user = user;
    timer->fire = callback;
    timer->opaque = callback_opaque;
    timer_init(&timer->timer, user->net->clock, fire, timer);
    return timer;
}

static void free_timer(void *opaque_timer, void *opaque)
{
    struct user_timer *timer = opaque_timer;
    if (timer)
        timer_disarm(&timer->timer);
    free(timer);
}

static void modify_timer(void *opaque_timer, int64_t expire_ms, void *opaque)
{
    struct user_timer *timer = opaque_timer;
    if (timer)
        timer_arm(&timer->timer, (uint64_t)expire_ms * NS_PER_MS);
}

/* Descriptors are gathered anew for each wait. */
static void descriptor_came_or_went(int fd, void *opaque) {}

static void wake_ran(void *owner) {}

static void notify(void *opaque)
{
    struct user *user = opaque;
    loop_post(user->net->loop, &user->wake);
}

static const SlirpCb callbacks = {
    .send_packet = send_packet,
    .guest_error = report_guest_error,
    .clock_get_ns = get_ns,
    .timer_new = new_timer,
    .timer_free = free_timer,
    .timer_mod = modify_timer,
    .register_poll_fd = descriptor_came_or_went,
    .unregister_poll_fd = descriptor_came_or_went,
    .notify = notify,
};

/* --- waiting --- */

static const struct { int slirp; short host; } event_map[] = {
    { SLIRP_POLL_IN, POLLIN }, { SLIRP_POLL_OUT, POLLOUT }, { SLIRP_POLL_PRI, POLLPRI },
    { SLIRP_POLL_ERR, POLLERR }, { SLIRP_POLL_HUP, POLLHUP },
};

static int add_descriptor(int fd, int events, void *opaque)
{
    struct user *user = opaque;
    short host = 0;
    if (user->count == user->room)
        return -1;
    for (unsigned i = 0; i < ARRAY_SIZE(event_map); i++)
        if (events & event_map[i].slirp)
            host |= event_map[i].host;
    user->fds[user->count] = (struct pollfd){ .fd = fd, .events = host };
    return user->count++;
}

static int ready_events(int index, void *opaque)
{
    struct user *user = opaque;
    int events = 0;
    if (index < 0 || index >= user->count)
        return 0;
    for (unsigned i = 0; i < ARRAY_SIZE(event_map); i++)
        if (user->ready[index].revents & event_map[i].host)
            events |= event_map[i].slirp;
    return events;
}

static int prepare(void *owner, struct pollfd *fds, int room, int *timeout_ms)
{
    struct user *user = owner;
    uint32_t timeout = *timeout_ms < 0 ? UINT32_MAX : (uint32_t)*timeout_ms;
    user->fds = fds;
    user->count = 0;
    user->room = room < FDS_MAX ? room : FDS_MAX;
    net_board_lock(user->net);
    slirp_pollfds_fill(user->slirp, &timeout, add_descriptor, user);
    net_board_unlock(user->net);
    if (timeout != UINT32_MAX)
        *timeout_ms = (int)min_u64(timeout, INT32_MAX);
    return user->count;
}

static void finish(void *owner, const struct pollfd *fds, int count)
{
    struct user *user = owner;
    user->ready = fds;
    net_board_lock(user->net);
    slirp_pollfds_poll(user->slirp, 0, ready_events, user);
    net_merge_flush(&user->merge);
    net_board_unlock(user->net);
}

/* --- the kind --- */

static struct in_addr ipv4(uint8_t last)
{
    return (struct in_addr){ htonl(0x0A000200u | last) };
}

static bool forward(struct user *user, const struct net_hostfwd *hostfwd, struct error *err)
{
    struct in_addr guest = hostfwd->guest.s_addr ? hostfwd->guest : ipv4(15);
    if (slirp_add_hostfwd(user->slirp, hostfwd->udp, hostfwd->host, hostfwd->host_port, guest, hostfwd->guest_port) == 0)
        return true;
    return error_errno(err, errno, "cannot forward %s port %u of the host", hostfwd->udp ? "UDP" : "TCP", hostfwd->host_port);
}

static Slirp *make_slirp(struct user *user, const struct net_options *options)
{
    SlirpConfig config = { .version = 4, .restricted = options->restricted, .in_enabled = true, .in6_enabled = true };
    config.tftp_path = *options->tftp ? options->tftp : NULL;
    config.bootfile = *options->bootfile ? options->bootfile : NULL;
    config.vnetwork = ipv4(0);
    config.vnetmask = (struct in_addr){ htonl(0xFFFFFF00u) };
    config.vhost = ipv4(2);
    config.vnameserver = ipv4(3);
    config.vdhcp_start = ipv4(15);
    inet_pton(AF_INET6, "fec0::", &config.vprefix_addr6);
    config.vprefix_len = 64;
    inet_pton(AF_INET6, "fec0::2", &config.vhost6);
    inet_pton(AF_INET6, "fec0::3", &config.vnameserver6);
    return slirp_new(&config, &callbacks, user);
}

static void user_stop(struct net *net)
{
    struct user *user = net->state;
    loop_remove_poller(net->loop, &user->poller);
    loop_cancel(net->loop, &user->wake);
    if (user->slirp)
        slirp_cleanup(user->slirp);
    free(user);
}

static bool user_start(struct net *net, const struct net_options *options, struct error *err)
{
    struct user *user = calloc(1, sizeof(*user));
    if (!user)
        return error_set(err, "out of memory");
    user->net = net;
    user->merge = (struct net_merge){ .deliver = deliver, .owner = user };
    user->wake = (struct loop_work){ .run = wake_ran, .owner = user };
    user->poller = (struct loop_poller){ .prepare = prepare, .finish = finish, .owner = user };
    net->state = user;
    user->slirp = make_slirp(user, options);
    bool ok = user->slirp != NULL || error_set(err, "libslirp cannot start");
    for (unsigned i = 0; i < options->hostfwd_count && ok; i++)
        ok = forward(user, &options->hostfwd[i], err);
    if (ok)
        loop_add_poller(net->loop, &user->poller);
    else
        user_stop(net);
    return ok;
}

static void user_send(struct net *net, const uint8_t *frame, uint32_t size)
{
    struct user *user = net->state;
    slirp_input(user->slirp, frame, (int)size);
    net_merge_flush(&user->merge);
    loop_post(net->loop, &user->wake);
}

const struct net_kind net_user = {
    .takes_large = true,
    .start = user_start,
    .stop = user_stop,
    .send = user_send,
};
