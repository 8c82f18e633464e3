/* Unix stream sockets that a process listens on under a name. */
#ifndef DOPPEL_BASE_LISTEN_H
#define DOPPEL_BASE_LISTEN_H

struct error;

/*
 * A socket that listens at `path` and that its owner alone may connect to. Its name appears when connections are taken, not before:
 * who waits for the name need not try twice. A socket there that nobody listens on is replaced; anything else there stays, and is an
 * error. `flags`: SOCK_NONBLOCK or 0. The descriptor is the caller's, and closes on exec; the caller removes the name. -1: error, also in errno.
 */
int listen_unix(const char *path, int flags, int backlog, struct error *err);

#endif
