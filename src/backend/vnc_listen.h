/* The address of a VNC server: its text, and the socket that listens there. */
#ifndef DOPPEL_BACKEND_VNC_LISTEN_H
#define DOPPEL_BACKEND_VNC_LISTEN_H

#include <limits.h>
#include <stdbool.h>

struct error;

enum { VNC_PASSWORD_MAX = 8 };      /* RFC 6143 §7.2.2: the protocol uses no more */

struct vnc_address {
    char host[64];                  /* numeric; empty: a Unix socket */
    unsigned port;
    char path[108];
    char password_file[PATH_MAX];   /* empty: none */
    char tls[PATH_MAX];             /* the directory with the certificate; empty: no TLS */
};

/* As vnc_check says. */
bool vnc_address_parse(const char *text, struct vnc_address *address, struct error *err);
/* A listening descriptor; -1: err says why. A Unix socket is its owner's alone. */
int vnc_listen(const struct vnc_address *address, struct error *err);
/* The first line of the file. False: err says why. */
bool vnc_read_password(const char *path, char password[VNC_PASSWORD_MAX + 1], struct error *err);

#endif
