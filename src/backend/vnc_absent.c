/* Stands in for vnc.c where Doppel is built without libvncserver. */
#include "backend/vnc.h"

#include <stddef.h>

#include "base/error.h"

bool vnc_check(const char *text, struct error *err)
{
    return error_set(err, "this doppel was built without VNC; build it with 'meson setup -Dvnc=enabled' (libvncserver-dev)");
}

struct vnc *vnc_open(const char *text, const struct vnc_source *source, struct error *err)
{
    vnc_check(text, err);
    return NULL;
}

void vnc_close(struct vnc *vnc) {}
