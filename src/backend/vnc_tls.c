/*
 * A viewer gets GREETING_MS from its connection to the end of the TLS handshake; whoever takes longer loses it. What is inside of TLS from then on
 * is the server's business: the bytes are handed on as they are, and each side stalls only itself.
 *
 * A front's thread closes its descriptors itself, as it ends; vnc_tls_close wakes it by shutting them down. The lock keeps these two apart.
 */
#include "backend/vnc_tls.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "backend/gnutls.h"
#include "backend/vnc_certificate.h"
#include "base/base.h"
#include "base/error.h"
#include "base/thread.h"

enum { FRONTS_MAX = 8, GREETING_MS = 20000, LAST_WORDS_MS = 5000, PIPE_SIZE = 16384 };

/* RFC 6143 §7.1.1, §7.1.2; rfbproto, "VeNCrypt": types and sub-types of security. */
enum { VERSION_LENGTH = 12, SECURITY_NONE = 1, SECURITY_VNC = 2, SECURITY_VENCRYPT = 19, X509_NONE = 260, X509_VNC = 261, ACCEPTED = 1 };
static const char version[] = "RFB 003.008\n";

struct pipe {
    size_t at, end;             /* what is still to be handed on */
    uint8_t bytes[PIPE_SIZE];
};

struct front {
    struct vnc_tls *tls;
    pthread_t thread;
    bool used;                  /* there is a thread to be joined; the caller's of vnc_tls_front */
    int viewer, server;         /* the lock guards them; -1: closed, the thread has ended or is about to */
    gnutls_session_t session;
    int64_t deadline_ms;
    struct pipe up, down;       /* to the server, to the viewer */
    bool server_gone;           /* what it said last is handed on until the deadline */
};

static const char *const gnutls_names[] = {
#define FUNCTION LIBRARY_NAME
#include "backend/gnutls.def"
#undef FUNCTION
};

struct vnc_tls {
    struct gnutls lib;
    gnutls_certificate_credentials_t credentials;
    bool password;
    pthread_mutex_t lock;
    struct front front[FRONTS_MAX];
};

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* --- the greeting: everything until the deadline --- */

static bool await(struct front *front, int fd, short events)
{
    int64_t left = front->deadline_ms - now_ms();
    return left > 0 && poll(&(struct pollfd){ fd, events, 0 }, 1, (int)left) > 0;
}

static bool may_try_again(ssize_t result) { return result < 0 && (errno == EAGAIN || errno == EINTR); }

static bool take(struct front *front, int fd, void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t got = recv(fd, (uint8_t *)bytes + at, size - at, 0);
        if (got > 0)
            at += (size_t)got;
        else if (!may_try_again(got) || !await(front, fd, POLLIN))
            return false;
    }
    return true;
}

static bool give(struct front *front, int fd, const void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t sent = send(fd, (const uint8_t *)bytes + at, size - at, MSG_NOSIGNAL);
        if (sent > 0)
            at += (size_t)sent;
        else if (!may_try_again(sent) || !await(front, fd, POLLOUT))
            return false;
    }
    return true;
}

/* RFC 6143 §7.1.2: a list of no types, and why. Always false. */
static bool refuse(struct front *front, const char *why)
{
    uint8_t none = 0;
    uint32_t length = htobe32((uint32_t)strlen(why));
    return give(front, front->viewer, &none, 1) && give(front, front->viewer, &length, sizeof(length)) &&
           give(front, front->viewer, why, strlen(why)) && false;
}

/* Versions, then one type of security, with one sub-type of it. */
static bool agree_on_vencrypt(struct front *front)
{
    static const uint8_t offer[] = { 1, SECURITY_VENCRYPT }, vencrypt[2] = { 0, 2 };
    const uint32_t subtype = htobe32(front->tls->password ? X509_VNC : X509_NONE);
    uint8_t theirs[VERSION_LENGTH], type, chosen[2], verdict = 0, count = 1;
    uint32_t chosen_subtype;
    int fd = front->viewer;
    if (!give(front, fd, version, VERSION_LENGTH) || !take(front, fd, theirs, sizeof(theirs)))
        return false;
    if (memcmp(theirs, version, VERSION_LENGTH))
        return refuse(front, "this server takes viewers with RFB 3.8 and VeNCrypt");
    if (!give(front, fd, offer, sizeof(offer)) || !take(front, fd, &type, 1) || type != SECURITY_VENCRYPT ||
        !give(front, fd, vencrypt, sizeof(vencrypt)) || !take(front, fd, chosen, sizeof(chosen)))
        return false;
    if (memcmp(chosen, vencrypt, sizeof(vencrypt)))
        return give(front, fd, &(uint8_t){ 0xFF }, 1) && false;
    if (!give(front, fd, &verdict, 1) || !give(front, fd, &count, 1) || !give(front, fd, &subtype, sizeof(subtype)) ||
        !take(front, fd, &chosen_subtype, sizeof(chosen_subtype)))
        return false;
    verdict = chosen_subtype == subtype ? ACCEPTED : 0;
    return give(front, fd, &verdict, 1) && verdict;
}

static bool shake_hands(struct front *front)
{
    int status;
    while ((status = front->tls->lib.gnutls_handshake(front->session)) < 0) {
        short events = front->tls->lib.gnutls_record_get_direction(front->session) ? POLLOUT : POLLIN;
        if (front->tls->lib.gnutls_error_is_fatal(status) || !await(front, front->viewer, events))
            return false;
    }
    return true;
}

/* As a viewer of the server behind, up to where the type of security is chosen. Its own version it was told before. */
static bool enter_server(struct front *front)
{
    uint8_t theirs[VERSION_LENGTH], count, types[UINT8_MAX], type = front->tls->password ? SECURITY_VNC : SECURITY_NONE;
    return take(front, front->server, theirs, sizeof(theirs)) && take(front, front->server, &count, 1) &&
           take(front, front->server, types, count) && memchr(types, type, count) && give(front, front->server, &type, 1);
}

/* --- handing on; all without waiting, false: the connection is at its end --- */

static bool empty(const struct pipe *pipe) { return pipe->at == pipe->end; }

static void filled(struct pipe *pipe, ssize_t size)
{
    pipe->at = 0;
    pipe->end = (size_t)size;
}

static bool tls_may_try_again(ssize_t result) { return result == GNUTLS_E_AGAIN || result == GNUTLS_E_INTERRUPTED; }

static bool move_up(struct front *front)
{
    struct pipe *up = &front->up;
    if (empty(up)) {
        ssize_t got = front->tls->lib.gnutls_record_recv(front->session, up->bytes, sizeof(up->bytes));
        if (got <= 0)
            return tls_may_try_again(got);
        filled(up, got);
    }
    ssize_t sent = send(front->server, up->bytes + up->at, up->end - up->at, MSG_NOSIGNAL);
    if (sent < 0)
        return may_try_again(sent);
    up->at += (size_t)sent;
    return true;
}

static bool move_down(struct front *front)
{
    struct pipe *down = &front->down;
    if (empty(down) && !front->server_gone) {
        ssize_t got = recv(front->server, down->bytes, sizeof(down->bytes), 0);
        if (got > 0)
            filled(down, got);
        else
            front->server_gone = !may_try_again(got);
        front->deadline_ms = now_ms() + LAST_WORDS_MS;
    }
    if (empty(down))
        return !front->server_gone;
    ssize_t sent = front->tls->lib.gnutls_record_send(front->session, down->bytes + down->at, down->end - down->at);
    if (sent < 0)
        return tls_may_try_again(sent);
    down->at += (size_t)sent;
    return true;
}

/* Until one side can go on. A descriptor that nothing is wanted of is left out, since its end would be told again and again. */
static bool wait_for_either(struct front *front)
{
    if (front->server_gone)
        return await(front, front->viewer, POLLOUT);
    bool received = empty(&front->up) && front->tls->lib.gnutls_record_check_pending(front->session);
    short viewer = (short)((empty(&front->up) ? POLLIN : 0) | (empty(&front->down) ? 0 : POLLOUT));
    short server = (short)((empty(&front->down) ? POLLIN : 0) | (empty(&front->up) ? 0 : POLLOUT));
    struct pollfd fds[2] = { { viewer ? front->viewer : -1, viewer, 0 }, { front->server, server, 0 } };
    return poll(fds, 2, received ? 0 : -1) || received;
}

static void hand_on(struct front *front)
{
    while (move_down(front) && (front->server_gone || move_up(front)) && wait_for_either(front))
        continue;
}

/* --- a front's life --- */

static void close_both(struct front *front)
{
    pthread_mutex_lock(&front->tls->lock);
    close(front->viewer);
    close(front->server);
    front->viewer = front->server = -1;
    pthread_mutex_unlock(&front->tls->lock);
}

static void *run(void *argument)
{
    struct front *front = argument;
    if (agree_on_vencrypt(front) && shake_hands(front) && enter_server(front)) {
        hand_on(front);
        front->tls->lib.gnutls_bye(front->session, GNUTLS_SHUT_WR);
    }
    front->tls->lib.gnutls_deinit(front->session);
    close_both(front);
    return NULL;
}

/* A place that nobody has, or whose thread is at its end. */
static struct front *free_front(struct vnc_tls *tls)
{
    for (unsigned i = 0; i < FRONTS_MAX; i++) {
        struct front *front = &tls->front[i];
        pthread_mutex_lock(&tls->lock);
        bool ended = front->viewer < 0;
        pthread_mutex_unlock(&tls->lock);
        if (front->used && ended)
            pthread_join(front->thread, NULL);
        front->used = front->used && !ended;
        if (!front->used)
            return front;
    }
    return NULL;
}

static bool make_session(struct front *front)
{
    if (front->tls->lib.gnutls_init(&front->session, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) < 0)
        return false;
    front->tls->lib.gnutls_transport_set_int2(front->session, front->viewer, front->viewer);
    if (front->tls->lib.gnutls_set_default_priority(front->session) >= 0 &&
        front->tls->lib.gnutls_credentials_set(front->session, GNUTLS_CRD_CERTIFICATE, front->tls->credentials) >= 0)
        return true;
    front->tls->lib.gnutls_deinit(front->session);
    return false;
}

static bool start(struct front *front)
{
    if (!make_session(front))
        return false;
    if (!thread_start(&front->thread, "vnc-tls", run, front))
        return front->used = true;
    front->tls->lib.gnutls_deinit(front->session);
    return false;
}

/* The server is told the version first: it looks at a viewer's first bytes before it greets (WebSockets), and would wait for them. */
int vnc_tls_front(struct vnc_tls *tls, int viewer)
{
    struct front *front = free_front(tls);
    int pair[2] = { -1, -1 };
    if (front && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0 &&
        send(pair[0], version, VERSION_LENGTH, MSG_NOSIGNAL) == VERSION_LENGTH) {
        *front = (struct front){ .tls = tls, .viewer = viewer, .server = pair[0], .deadline_ms = now_ms() + GREETING_MS };
        if (start(front))
            return pair[1];
        front->viewer = front->server = -1;
    }
    close(viewer);
    if (pair[0] >= 0) {
        close(pair[0]);
        close(pair[1]);
    }
    return -1;
}

struct vnc_tls *vnc_tls_open(const char *directory, const char *host, bool password, struct error *err)
{
    struct vnc_tls *tls = calloc(1, sizeof(*tls));
    if (!tls) {
        error_set(err, "no memory for TLS of a VNC server");
        return NULL;
    }
    tls->password = password;
    if (!library_load("libgnutls.so.30", gnutls_names, ARRAY_SIZE(gnutls_names), &tls->lib, err) ||
        !(tls->credentials = vnc_certificate(&tls->lib, directory, host, err))) {
        free(tls);
        return NULL;
    }
    pthread_mutex_init(&tls->lock, NULL);
    for (unsigned i = 0; i < FRONTS_MAX; i++)
        tls->front[i].viewer = tls->front[i].server = -1;
    return tls;
}

void vnc_tls_close(struct vnc_tls *tls)
{
    if (!tls)
        return;
    pthread_mutex_lock(&tls->lock);
    for (unsigned i = 0; i < FRONTS_MAX; i++)
        if (tls->front[i].viewer >= 0) {
            shutdown(tls->front[i].viewer, SHUT_RDWR);
            shutdown(tls->front[i].server, SHUT_RDWR);
        }
    pthread_mutex_unlock(&tls->lock);
    for (unsigned i = 0; i < FRONTS_MAX; i++)
        if (tls->front[i].used)
            pthread_join(tls->front[i].thread, NULL);
    pthread_mutex_destroy(&tls->lock);
    tls->lib.gnutls_certificate_free_credentials(tls->credentials);
    free(tls);
}
