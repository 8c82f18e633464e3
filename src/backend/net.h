/*
 * Network backends: user mode (libslirp: rootless, DHCP, DNS, port forwarding) and TAP. Frames are Ethernet without FCS.
 * All with the board lock held, on the loop's thread unless said otherwise.
 */
#ifndef DOPPEL_BACKEND_NET_H
#define DOPPEL_BACKEND_NET_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct error;
struct loop;
struct log;
struct clock;
struct net;

/* The device's side. */
struct net_client {
    /*
     * A frame for the guest; false: no buffer now, the backend keeps or drops it. With a segment_size it is a frame over IPv4 that
     * was merged from TCP segments with so much payload each, and its TCP checksum is only the sum of the pseudo-header.
     */
    bool (*receive)(void *owner, const void *frame, uint32_t size, uint16_t segment_size);
    /* Link went up or down. May be NULL. */
    void (*link)(void *owner, bool up);
    void *owner;
};

/* "user[,hostfwd=tcp|udp:[hostaddr]:port-[guestaddr]:port]...[,tftp=FOLDER][,bootfile=FILE][,restrict=on]" or "tap[,ifname=NAME]". NULL: err says why. */
struct net *net_open(const char *text, struct loop *loop, struct clock *clock, pthread_mutex_t *lock, struct log *log,
                     struct error *err);
void net_close(struct net *net);
void net_connect(struct net *net, const struct net_client *client);
/* Any thread with the board lock. */
void net_send(struct net *net, const struct iovec *iov, int count);
/* Whether TCP frames of the guest may be larger than the network's frames are. Any thread. */
bool net_takes_large(const struct net *net);
/* Whether the client takes merged frames; it does not at first. Any thread with the board lock. */
void net_allow_merged(struct net *net, bool allowed);
/* The guest has buffers again. */
void net_receive_ready(struct net *net);

#endif
