/* What the files of the network backends share with each other only. */
#ifndef DOPPEL_BACKEND_NET_INTERNAL_H
#define DOPPEL_BACKEND_NET_INTERNAL_H

#include <netinet/in.h>

#include "backend/net.h"
#include "base/base.h"
#include "base/error.h"
#include "base/loop.h"

enum { NET_FRAME_MAX = 65536 + 14, NET_HOSTFWD_MAX = 32, NET_QUEUE_MAX = 256 };

/* One `hostfwd=` of the text. */
struct net_hostfwd {
    bool udp;
    struct in_addr host, guest;         /* guest 0: the one that DHCP hands out */
    uint16_t host_port, guest_port;
};

struct net_options {
    enum { NET_USER, NET_TAP } kind;
    bool restricted;
    char ifname[16];
    char tftp[1024], bootfile[128];     /* what DHCP names for a network boot, and the folder it is fetched from; empty: none */
    struct net_hostfwd hostfwd[NET_HOSTFWD_MAX];
    unsigned hostfwd_count;
};

bool net_options_parse(const char *text, struct net_options *options, struct error *err);

struct net_kind {
    bool takes_large;
    bool (*start)(struct net *net, const struct net_options *options, struct error *err);
    void (*stop)(struct net *net);
    void (*send)(struct net *net, const uint8_t *frame, uint32_t size);
    void (*ready)(struct net *net);     /* the guest has buffers again and the queue is empty. May be NULL */
};
extern const struct net_kind net_user, net_tap;

/* A frame that waits for the guest. */
struct net_frame {
    struct net_frame *next;
    uint32_t size;
    uint16_t segment_size;
    uint8_t data[];
};

struct net {
    const struct net_kind *kind;
    void *state;                        /* the kind's */
    struct loop *loop;
    struct clock *clock;
    pthread_mutex_t *lock;
    struct log *log;
    struct net_client client;
    struct net_frame *queue, **queue_tail;
    unsigned queued;
    bool merged_allowed;
    uint8_t frame[NET_FRAME_MAX];       /* where a frame of the guest is gathered */
};

/* Hands a frame to the guest, or keeps it for later. False: there is no room to keep it, it is lost. */
bool net_deliver(struct net *net, const uint8_t *frame, uint32_t size, uint16_t segment_size);
void net_board_lock(struct net *net);
void net_board_unlock(struct net *net);

#endif
