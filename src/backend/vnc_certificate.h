/* The certificate by which viewers know a VNC server: DIRECTORY/server-cert.pem and server-key.pem, the names that libvirt and QEMU use, too. */
#ifndef DOPPEL_BACKEND_VNC_CERTIFICATE_H
#define DOPPEL_BACKEND_VNC_CERTIFICATE_H

#include <gnutls/gnutls.h>

struct error;
struct gnutls;

/*
 * Reads them. Where there are none they are made, with the directory if need be: signed by itself, for this host's name, the loopback addresses
 * and `host`, an address or "". Processes that do so at the same time get the same one. NULL: err says why.
 */
gnutls_certificate_credentials_t vnc_certificate(const struct gnutls *lib, const char *directory, const char *host,
                                                 struct error *err);

#endif
