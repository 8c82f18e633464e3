/* GnuTLS, loaded when it is needed (base/library.h). */
#ifndef DOPPEL_BACKEND_GNUTLS_H
#define DOPPEL_BACKEND_GNUTLS_H

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include "base/library.h"

struct gnutls {
#define FUNCTION LIBRARY_POINTER
#include "backend/gnutls.def"
#undef FUNCTION
};

#endif
