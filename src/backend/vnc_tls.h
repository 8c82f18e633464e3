/*
 * TLS before a VNC server that knows none. The front speaks VeNCrypt (security type 19 of RFB; rfbproto, "VeNCrypt") with a viewer and, through a
 * socket pair, the plain protocol (RFC 6143) with the server. A thread for each viewer does both.
 */
#ifndef DOPPEL_BACKEND_VNC_TLS_H
#define DOPPEL_BACKEND_VNC_TLS_H

#include <stdbool.h>

struct error;
struct vnc_tls;

/*
 * With the certificate in the directory (vnc_certificate.h). host: where the server listens, "" for a Unix socket. password: the server will ask
 * viewers for one. NULL: err says why.
 */
struct vnc_tls *vnc_tls_open(const char *directory, const char *host, bool password, struct error *err);

/*
 * Takes over a viewer's connection. Returns the non-blocking descriptor at which the server finds the viewer; it belongs to the caller. -1: there
 * are too many viewers, or no memory for one; its connection is closed. All calls on one thread.
 */
int vnc_tls_front(struct vnc_tls *tls, int viewer);

/* Ends all connections and waits for their threads. NULL is none. */
void vnc_tls_close(struct vnc_tls *tls);

#endif
