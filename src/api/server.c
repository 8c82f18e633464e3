/*
 * Listening, and one thread a connection. Threads:
 *   api       accepts; reaps threads that have ended; makes room
 *   api-N     reads a request, answers it, until the peer goes or is too slow
 * A connection's slot is guarded by the server's mutex; its descriptor is closed by its own thread alone, others only shut it down.
 */
#include "api/server.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "api/endpoints.h"
#include "api/json_text.h"
#include "base/base.h"
#include "base/thread.h"

enum {
    LISTENERS_MAX = 4,
    CONNECTIONS_MAX = 32,
    REQUEST_MS = 10 * 1000,         /* from a request's first byte to its last; also to take an answer */
    IDLE_MS = 10 * 60 * 1000,       /* between requests */
    READ_SIZE = 4096,
};

struct connection {
    struct server *server;
    bool used, ended;               /* ended: its thread is to be joined */
    bool busy;                      /* a request is being received or answered */
    uint64_t idle_since_ms;
    int fd;
    pthread_t thread;
    /* What follows is the thread's own. */
    struct http_parser parser;
    char data[READ_SIZE];
    size_t data_size, data_used;
    int descriptor[CALL_DESCRIPTORS_MAX];
    unsigned descriptor_count;
    struct call_monitor monitor;
};

struct server {
    struct server_subject subject;
    int listener[LISTENERS_MAX];
    const char *path[LISTENERS_MAX];    /* to be removed; or NULL */
    unsigned listener_count;
    int wake;
    bool started;
    pthread_t thread;
    pthread_mutex_t mutex;
    struct connection connection[CONNECTIONS_MAX];
};

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* False: the time is over, or the server is stopping. */
static bool wait_for(int fd, short events, uint64_t deadline)
{
    for (;;) {
        uint64_t now = now_ms();
        struct pollfd ready = { .fd = fd, .events = events };
        int count = now < deadline ? poll(&ready, 1, (int)(deadline - now)) : 0;
        if (count > 0 || (count < 0 && errno != EINTR))
            return count > 0;
        if (now >= deadline)
            return false;
    }
}

/* --- sending --- */

static bool send_all(int fd, const char *data, size_t size)
{
    uint64_t deadline = now_ms() + REQUEST_MS;
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            data += sent;
            size -= (size_t)sent;
        } else if (sent == 0 || (errno != EAGAIN && errno != EINTR) || !wait_for(fd, POLLOUT, deadline)) {
            return false;
        }
    }
    return true;
}

static bool send_answer(struct connection *connection, enum http_status status, const char *body, const char *allow, bool keep_alive)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return false;
    fprintf(out, "HTTP/1.1 %d %s\r\nServer: doppel\r\nConnection: %s\r\n", status, http_phrase(status),
            keep_alive ? "keep-alive" : "close");
    if (allow)
        fprintf(out, "Allow: %s\r\n", allow);
    if (body)
        fprintf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
    else if (status == HTTP_NO_CONTENT)
        fputs("\r\n", out);
    else
        fputs("Content-Length: 0\r\n\r\n", out);
    fclose(out);
    bool sent = send_all(connection->fd, text, size);
    free(text);
    return sent && keep_alive;
}

/* An error's body is an array of sentences, as Cloud Hypervisor's is. */
static bool send_error(struct connection *connection, enum http_status status, const char *reason, const char *allow, bool keep_alive)
{
    json_t *sentences = json_pack("[o]", json_text(reason));
    char *body = sentences ? json_dumps(sentences, 0) : NULL;
    bool sent = send_answer(connection, status, body ? body : "[\"unknown error\"]", allow, keep_alive);
    free(body);
    json_decref(sentences);
    return sent;
}

/* --- receiving --- */

static void close_descriptors(struct connection *connection)
{
    for (unsigned i = 0; i < connection->descriptor_count; i++)
        if (connection->descriptor[i] >= 0)
            close(connection->descriptor[i]);
    connection->descriptor_count = 0;
}

/* More than a request may bring are closed at once; the request is then refused for what it lacks. */
static void take_descriptors(struct connection *connection, struct msghdr *message)
{
    for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control; control = CMSG_NXTHDR(message, control)) {
        if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; at + sizeof(int) <= control->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
            int fd;
            memcpy(&fd, CMSG_DATA(control) + at, sizeof(fd));
            if (connection->descriptor_count < CALL_DESCRIPTORS_MAX)
                connection->descriptor[connection->descriptor_count++] = fd;
            else
                close(fd);
        }
    }
}

/* False: the peer has gone. */
static bool receive(struct connection *connection)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(CALL_DESCRIPTORS_MAX * sizeof(int))];
    } control;
    struct iovec data = { connection->data, sizeof(connection->data) };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
    ssize_t size = recvmsg(connection->fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0)
        return errno == EAGAIN || errno == EINTR;
    take_descriptors(connection, &message);
    connection->data_used = 0;
    connection->data_size = (size_t)size;
    return size > 0;
}

static void set_busy(struct connection *connection, bool busy)
{
    pthread_mutex_lock(&connection->server->mutex);
    connection->busy = busy;
    connection->idle_since_ms = now_ms();
    pthread_mutex_unlock(&connection->server->mutex);
}

enum reception { RECEIVED, GONE, TOO_SLOW };

/* One request; bytes of the next may stay behind in `data`. */
static enum reception receive_request(struct connection *connection)
{
    struct http_parser *parser = &connection->parser;
    uint64_t deadline = now_ms() + IDLE_MS;
    bool continued = false;
    http_begin(parser, false);
    for (;;) {
        bool begun = http_has_begun(parser);
        connection->data_used += http_feed(parser, connection->data + connection->data_used,
                                           connection->data_size - connection->data_used);
        if (parser->progress != HTTP_MORE)
            return RECEIVED;
        if (!begun && http_has_begun(parser)) {
            deadline = now_ms() + REQUEST_MS;
            set_busy(connection, true);
        }
        if (parser->message.expects_continue && http_body_is_due(parser) && !continued) {
            static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
            continued = true;
            if (!send_all(connection->fd, go_on, sizeof(go_on) - 1))
                return GONE;
        }
        if (!wait_for(connection->fd, POLLIN, deadline))
            return http_has_begun(parser) ? TOO_SLOW : GONE;
        if (!receive(connection))
            return GONE;
    }
}

/* --- a connection's thread --- */

/* True: the connection goes on. */
static bool answer(struct connection *connection)
{
    struct http_parser *parser = &connection->parser;
    struct call call = { .subject = &connection->server->subject, .monitor = &connection->monitor,
                         .descriptor_count = connection->descriptor_count };
    memcpy(call.descriptor, connection->descriptor, sizeof(call.descriptor));
    enum http_status status = endpoints_answer(&call, &parser->message);
    memcpy(connection->descriptor, call.descriptor, sizeof(call.descriptor));
    char *body = call.answer ? json_dumps(call.answer, JSON_COMPACT) : NULL;
    bool keep = parser->message.keep_alive;
    if (status >= HTTP_BAD_REQUEST)
        keep = send_error(connection, status, call.err.text, call.allow, keep);
    else
        keep = send_answer(connection, status, body, NULL, keep);
    free(body);
    json_decref(call.answer);
    json_decref(call.body);
    return keep;
}

static bool serve_request(struct connection *connection)
{
    struct http_parser *parser = &connection->parser;
    switch (receive_request(connection)) {
    case RECEIVED:
        break;
    case TOO_SLOW:
        return send_error(connection, HTTP_REQUEST_TIMEOUT, "the request did not arrive within 10 seconds", NULL, false);
    case GONE:
        return false;
    }
    if (parser->progress == HTTP_FAILED)
        return send_error(connection, parser->error, parser->reason, NULL, false);
    return answer(connection);
}

static void *connection_main(void *argument)
{
    struct connection *connection = argument;
    struct server *server = connection->server;
    bool goes_on = true;
    while (goes_on) {
        goes_on = serve_request(connection);
        http_end(&connection->parser);
        close_descriptors(connection);
        set_busy(connection, false);
    }
    call_monitor_end(&connection->monitor, server->subject.vmm);
    shutdown(connection->fd, SHUT_WR);
    pthread_mutex_lock(&server->mutex);
    close(connection->fd);
    connection->ended = true;
    pthread_mutex_unlock(&server->mutex);
    return NULL;
}

/* --- the accepting thread --- */

/* With the mutex held. A thread that has ended is joined, which does not wait. */
static struct connection *free_slot(struct server *server)
{
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        struct connection *connection = &server->connection[i];
        if (connection->used && connection->ended) {
            pthread_join(connection->thread, NULL);
            connection->used = false;
        }
        if (!connection->used)
            return connection;
    }
    return NULL;
}

/* With the mutex held. The one that has been silent longest has to go; its thread ends by itself. */
static void evict(struct server *server)
{
    struct connection *idlest = NULL;
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        struct connection *connection = &server->connection[i];
        if (!connection->busy && !connection->ended && (!idlest || connection->idle_since_ms < idlest->idle_since_ms))
            idlest = connection;
    }
    if (idlest)
        shutdown(idlest->fd, SHUT_RDWR);
}

/* With the mutex held. */
static bool start_connection(struct server *server, struct connection *connection, int fd)
{
    memset(connection, 0, sizeof(*connection));
    connection->server = server;
    connection->fd = fd;
    connection->idle_since_ms = now_ms();
    connection->used = !thread_start(&connection->thread, "api-client", connection_main, connection);
    return connection->used;
}

static void refuse(int fd)
{
    static const char text[] = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\n"
                               "Content-Length: 40\r\n\r\n[\"there are too many connections, wait\"]\n";
    ssize_t sent = send(fd, text, sizeof(text) - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)sent;
    close(fd);
}

static void accept_connection(struct server *server, int listener)
{
    enum { TRIES = 20, TRY_US = 5000 };
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE)
            usleep(TRY_US);         /* it stays pending; do not spin meanwhile */
        return;
    }
    pthread_mutex_lock(&server->mutex);
    struct connection *slot = free_slot(server);
    for (unsigned i = 0; !slot && i < TRIES; i++) {
        evict(server);
        pthread_mutex_unlock(&server->mutex);
        usleep(TRY_US);
        pthread_mutex_lock(&server->mutex);
        slot = free_slot(server);
    }
    bool started = slot && start_connection(server, slot, fd);
    pthread_mutex_unlock(&server->mutex);
    if (!started)
        refuse(fd);
}

static void *accept_main(void *argument)
{
    struct server *server = argument;
    struct pollfd fds[1 + LISTENERS_MAX] = { { .fd = server->wake, .events = POLLIN } };
    for (unsigned i = 0; i < server->listener_count; i++)
        fds[1 + i] = (struct pollfd){ .fd = server->listener[i], .events = POLLIN };
    for (;;) {
        if (poll(fds, 1 + server->listener_count, -1) < 0)
            continue;
        if (fds[0].revents)
            return NULL;
        for (unsigned i = 0; i < server->listener_count; i++)
            if (fds[1 + i].revents)
                accept_connection(server, server->listener[i]);
    }
}

/* --- life --- */

struct server *server_create(const struct server_subject *subject, struct error *err)
{
    struct server *server = calloc(1, sizeof(*server));
    if (!server) {
        error_set(err, "no memory for the control socket");
        return NULL;
    }
    server->subject = *subject;
    pthread_mutex_init(&server->mutex, NULL);
    server->wake = eventfd(0, EFD_CLOEXEC);
    if (server->wake >= 0)
        return server;
    error_errno(err, errno, "cannot make the control socket");
    server_destroy(server);
    return NULL;
}

bool server_add_listener(struct server *server, int fd, const char *path, struct error *err)
{
    if (server->listener_count == LISTENERS_MAX) {
        close(fd);
        if (path)
            unlink(path);
        return error_set(err, "there are at most %d control sockets", LISTENERS_MAX);
    }
    server->listener[server->listener_count] = fd;
    server->path[server->listener_count++] = path;
    return true;
}

bool server_start(struct server *server, struct error *err)
{
    int status = thread_start(&server->thread, "api", accept_main, server);
    server->started = !status;
    return server->started || error_errno(err, status, "cannot start the control socket's thread");
}

static void end_connections(struct server *server)
{
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        struct connection *connection = &server->connection[i];
        pthread_mutex_lock(&server->mutex);
        if (connection->used && !connection->ended)
            shutdown(connection->fd, SHUT_RD);      /* an answer on its way is still sent */
        pthread_mutex_unlock(&server->mutex);
        if (connection->used)
            pthread_join(connection->thread, NULL);
    }
}

void server_destroy(struct server *server)
{
    if (!server)
        return;
    if (server->started) {
        ssize_t written = write(server->wake, &(uint64_t){ 1 }, sizeof(uint64_t));
        (void)written;
        pthread_join(server->thread, NULL);
        end_connections(server);
    }
    for (unsigned i = 0; i < server->listener_count; i++) {
        close(server->listener[i]);
        if (server->path[i])
            unlink(server->path[i]);
    }
    if (server->wake >= 0)
        close(server->wake);
    pthread_mutex_destroy(&server->mutex);
    free(server);
}
