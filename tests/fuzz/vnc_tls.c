/*
 * Hostile viewers before TLS and in it: what they may say up to the handshake, with mistakes and with the end at any place, and records of TLS that were
 * changed on their way. After every few of them one that behaves gets through: what it and the server behind say arrives on the other side.
 *
 * Usage: fuzz-vnc-tls [viewers [seed]]
 */
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <gnutls/gnutls.h>

#include "backend/vnc_tls.h"
#include "base/error.h"
#include "mutate.h"

enum { VIEWERS = 400, STREAM_MAX = 4096 };

static const uint8_t greeting[] = "RFB 003.008\n\x13\0\2\0\0\1\4";     /* VeNCrypt 0.2, X509None */
enum { GREETING = sizeof(greeting) - 1 };

/* A connection: the viewer's end, and the server's behind the front. */
struct ends {
    int viewer, server;
};

static struct ends connect_to(struct vnc_tls *tls)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        abort();
    int front = dup(pair[1]);           /* the front's must not wait, the viewer's may */
    close(pair[1]);
    if (fcntl(front, F_SETFL, O_NONBLOCK))
        abort();
    struct ends ends = { pair[0], vnc_tls_front(tls, front) };
    if (ends.server >= 0)
        fcntl(ends.server, F_SETFL, 0);
    return ends;
}

static void hang_up(struct ends ends)
{
    close(ends.viewer);
    if (ends.server >= 0)
        close(ends.server);
}

static bool take(int fd, void *bytes, size_t size) { return recv(fd, bytes, size, MSG_WAITALL) == (ssize_t)size; }
static bool give(int fd, const void *bytes, size_t size) { return send(fd, bytes, size, MSG_NOSIGNAL) == (ssize_t)size; }

/* --- a viewer that behaves --- */

/* What it sends is changed with this seed; 0: nothing is. */
static uint64_t damage;

static ssize_t push(gnutls_transport_ptr_t fd, const void *bytes, size_t size)
{
    uint8_t changed[STREAM_MAX];
    if (!damage || size > sizeof(changed))
        return send((int)(intptr_t)fd, bytes, size, MSG_NOSIGNAL);
    memcpy(changed, bytes, size);
    if (!fuzz_below(&damage, 2))
        fuzz_mutate(changed, size, 16, &damage);
    return send((int)(intptr_t)fd, changed, size, MSG_NOSIGNAL);
}

/* VeNCrypt and the handshake. Without a certificate to compare with, any is taken. NULL: refused. */
static gnutls_session_t enter(int fd, gnutls_certificate_credentials_t credentials)
{
    uint8_t answer[12 + 2 + 2 + 1 + 1 + 4 + 1];
    gnutls_session_t session;
    if (!give(fd, greeting, GREETING) || !take(fd, answer, sizeof(answer)) || answer[sizeof(answer) - 1] != 1)
        return NULL;
    gnutls_init(&session, GNUTLS_CLIENT);
    gnutls_set_default_priority(session);
    gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
    gnutls_transport_set_ptr(session, (gnutls_transport_ptr_t)(intptr_t)fd);
    gnutls_transport_set_push_function(session, push);
    int status = GNUTLS_E_AGAIN;
    for (unsigned tries = 0; tries < 4 && status < 0 && !gnutls_error_is_fatal(status); tries++)
        status = gnutls_handshake(session);
    if (status >= 0)
        return session;
    gnutls_deinit(session);
    return NULL;
}

/* The server behind: greets, offers no security, and is chosen. */
static bool greet_as_server(int fd)
{
    uint8_t theirs[12], type;
    return give(fd, "RFB 003.008\n\1\1", 14) && take(fd, theirs, sizeof(theirs)) && !memcmp(theirs, "RFB 003.008\n", 12) && take(fd, &type, 1) &&
           type == 1;
}

static bool served(struct vnc_tls *tls, gnutls_certificate_credentials_t credentials)
{
    struct ends ends = connect_to(tls);
    uint8_t there[6] = "", back[6] = "";
    gnutls_session_t session = ends.server >= 0 ? enter(ends.viewer, credentials) : NULL;
    bool ok = session && greet_as_server(ends.server) && gnutls_record_send(session, "there", 5) == 5 && take(ends.server, there, 5) &&
              give(ends.server, "back!", 5) && gnutls_record_recv(session, back, 5) == 5 && !memcmp(there, "there", 5) && !memcmp(back, "back!", 5);
    if (session)
        gnutls_deinit(session);
    hang_up(ends);
    return ok;
}

/* --- hostile ones --- */

/* A greeting, then what looks like the beginning of TLS. */
static void bad_stream(struct vnc_tls *tls, uint64_t *seed)
{
    static const uint8_t hello[] = { 22, 3, 1, 0, 49, 1, 0, 0, 45, 3, 3 };
    uint8_t stream[STREAM_MAX] = { 0 };
    size_t size = GREETING + sizeof(hello) + fuzz_below(seed, 200);
    memcpy(stream, greeting, GREETING);
    memcpy(stream + GREETING, hello, sizeof(hello));
    for (uint64_t i = fuzz_below(seed, 4); i-- > 0 && size;)
        size = fuzz_mutate(stream, size, 40, seed);
    struct ends ends = connect_to(tls);
    give(ends.viewer, stream, size);
    if (!fuzz_below(seed, 2))
        poll(&(struct pollfd){ ends.viewer, POLLIN, 0 }, 1, 5);
    hang_up(ends);
}

/* Records are changed in the handshake or after it. */
static void bad_records(struct vnc_tls *tls, gnutls_certificate_credentials_t credentials, uint64_t *seed)
{
    uint8_t bytes[1000] = { 0 };
    struct ends ends = connect_to(tls);
    bool early = !fuzz_below(seed, 2);
    damage = early ? fuzz_random(seed) : 0;
    const struct timeval patience = { .tv_usec = 20000 };
    setsockopt(ends.viewer, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    gnutls_session_t session = ends.server >= 0 ? enter(ends.viewer, credentials) : NULL;
    if (session && give(ends.server, "RFB 003.008\n\1\1", 14)) {
        damage = fuzz_random(seed);
        for (uint64_t i = fuzz_below(seed, 8); i-- > 0;)
            gnutls_record_send(session, bytes, 1 + fuzz_below(seed, sizeof(bytes)));
        give(ends.server, bytes, sizeof(bytes));
    }
    damage = 0;
    if (session)
        gnutls_deinit(session);
    hang_up(ends);
}

int main(int argc, char **argv)
{
    unsigned long viewers = fuzz_rounds(argc, argv, VIEWERS);
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 0x5A7A5A7A;
    char folder[] = "/tmp/doppel-tls-XXXXXX", path[64];
    gnutls_certificate_credentials_t credentials;
    struct error err = { "" };
    if (!mkdtemp(folder))
        return 1;
    struct vnc_tls *tls = vnc_tls_open(folder, "", false, &err), *again = vnc_tls_open(folder, "", true, &err);
    if (!tls || !again || gnutls_certificate_allocate_credentials(&credentials) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    vnc_tls_close(again);
    for (unsigned long i = 0; i < viewers; i++) {
        if (fuzz_below(&seed, 4))
            bad_stream(tls, &seed);
        else
            bad_records(tls, credentials, &seed);
        for (unsigned tries = 0; i % 20 == 0 && !served(tls, credentials); tries++)     /* the places of those before get free in a moment */
            if (tries == 1000) {
                fprintf(stderr, "after viewer %lu nobody is served\n", i);
                return 1;
            } else {
                usleep(10000);
            }
    }
    vnc_tls_close(tls);
    gnutls_certificate_free_credentials(credentials);
    for (unsigned i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/server-%s.pem", folder, i ? "key" : "cert");
        unlink(path);
    }
    rmdir(folder);
    printf("vnc-tls: %lu viewers\n", viewers);
    return 0;
}
