/*
 * The control socket's server: HTTP/1.1 with JSON on Unix sockets. A thread for each connection, so that one that is slow, or waits for a
 * processor, holds up no other; a connection that sends nothing for long is closed, and so is the idlest when there are too many.
 */
#ifndef DOPPEL_API_SERVER_H
#define DOPPEL_API_SERVER_H

#include <stdbool.h>

struct console;
struct machine_config;
struct error;
struct server;
struct vmm;

/* What the endpoints speak for. Borrowed. */
struct server_subject {
    struct vmm *vmm;
    const char *name;           /* of the virtual machine */
    struct console *console;    /* its shared console; NULL: there is none */
    const char *console_log;    /* where that is written to */
    const struct machine_config *defaults;      /* of machines made by request: engine, processor model, log ... */
};

/* NULL: err says why. */
struct server *server_create(const struct server_subject *subject, struct error *err);
/*
 * Takes the listening socket over, even if it fails; path, which is borrowed, is removed at the end unless it is NULL. Before
 * server_start.
 */
bool server_add_listener(struct server *server, int fd, const char *path, struct error *err);
bool server_start(struct server *server, struct error *err);
/* Closes every connection and waits for what is being answered. NULL is fine. */
void server_destroy(struct server *server);

#endif
