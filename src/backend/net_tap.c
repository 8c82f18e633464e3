/* A TAP interface: frames to and from the host's kernel. Needs CAP_NET_ADMIN, or an interface made for this user. */
#include "backend/net_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { READ_BATCH = 32 };

struct tap {
    struct net *net;
    struct loop_fd event;
    struct loop_work rewatch;
    uint8_t frame[NET_FRAME_MAX];
};

/* While the queue is full the descriptor is not watched: the kernel's queue fills up and drops, as a wire would. */
static void tap_ready(void *owner, uint32_t events)
{
    struct tap *tap = owner;
    struct net *net = tap->net;
    net_board_lock(net);
    for (int i = 0; i < READ_BATCH && net->queued < NET_QUEUE_MAX; i++) {
        ssize_t size = read(tap->event.fd, tap->frame, sizeof(tap->frame));
        if (size <= 0)
            break;
        net_deliver(net, tap->frame, (uint32_t)size, 0);
    }
    if (net->queued >= NET_QUEUE_MAX)
        loop_change(net->loop, &tap->event, 0);
    net_board_unlock(net);
}

static void rewatch_run(void *owner)
{
    struct tap *tap = owner;
    loop_change(tap->net->loop, &tap->event, EPOLLIN);
}

static void tap_receive_ready(struct net *net)
{
    struct tap *tap = net->state;
    if (!tap->event.events)
        loop_post(net->loop, &tap->rewatch);
}

static void tap_send(struct net *net, const uint8_t *frame, uint32_t size)
{
    struct tap *tap = net->state;
    ssize_t written = write(tap->event.fd, frame, size);
    (void)written;              /* a full queue drops the frame, as a wire would */
}

static int open_tap(const struct net_options *options, struct error *err)
{
    struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI };
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        error_errno(err, errno, "cannot open /dev/net/tun");
        return -1;
    }
    memcpy(request.ifr_name, options->ifname, sizeof(options->ifname));
    if (ioctl(fd, TUNSETIFF, &request) == 0)
        return fd;
    error_errno(err, errno, "cannot use the TAP interface %s", *options->ifname ? options->ifname : "(any)");
    close(fd);
    return -1;
}

static bool tap_start(struct net *net, const struct net_options *options, struct error *err)
{
    int fd = open_tap(options, err);
    if (fd < 0)
        return false;
    struct tap *tap = calloc(1, sizeof(*tap));
    if (!tap) {
        close(fd);
        return error_set(err, "out of memory");
    }
    tap->net = net;
    tap->event = (struct loop_fd){ .fd = fd, .events = EPOLLIN, .ready = tap_ready, .owner = tap };
    tap->rewatch = (struct loop_work){ .run = rewatch_run, .owner = tap };
    net->state = tap;
    loop_add(net->loop, &tap->event);
    return true;
}

static void tap_stop(struct net *net)
{
    struct tap *tap = net->state;
    loop_remove(net->loop, &tap->event);
    loop_cancel(net->loop, &tap->rewatch);
    close(tap->event.fd);
    free(tap);
}

const struct net_kind net_tap = {
    .start = tap_start,
    .stop = tap_stop,
    .send = tap_send,
    .ready = tap_receive_ready,
};
