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
    /* A frame for the guest; false: no buffer now, the backend keeps or drops it. */
    bool (*receive)(void *owner, const void *frame, uint32_t size);
    /* Link went up or down. May be NULL. */
    void (*link)(void *owner, bool up);
    void *owner;
};

/* "user[,hostfwd=tcp|udp:[hostaddr]:port-[guestaddr]:port]...[,restrict=on]" or "tap[,ifname=NAME]". NULL: err says why. */
struct net *net_open(const char *text, struct loop *loop, struct clock *clock, pthread_mutex_t *lock, struct log *log,
                     struct error *err);
void net_close(struct net *net);
void net_connect(struct net *net, const struct net_client *client);
/* Any thread with the board lock. */
void net_send(struct net *net, const struct iovec *iov, int count);
/* The guest has buffers again. */
void net_receive_ready(struct net *net);

#endif
