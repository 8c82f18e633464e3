/*
 * A VNC server (RFC 6143) for one screen. It asks for pictures when they are needed and sends what has changed; a thread of its own serves
 * all viewers, so that one that is slow or hostile holds up nobody but other viewers.
 */
#ifndef DOPPEL_BACKEND_VNC_H
#define DOPPEL_BACKEND_VNC_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct vnc;

/* Where the pictures come from and the input goes. All are called on the server's thread, with no lock held. */
struct vnc_source {
    /* Another number than before: there may be something new to see. */
    uint64_t (*changes)(void *owner);
    /* Pixels 0x00RRGGBB, row by row, valid until the next call; NULL: there is no memory. */
    const uint32_t *(*draw)(void *owner, unsigned *width, unsigned *height);
    /* An X11 keysym. */
    void (*key)(void *owner, uint32_t keysym, bool down);
    /* Where the pointer is in a picture of that size; buttons: bit 0 left, 1 middle, 2 right, 3 wheel up, 4 wheel down. */
    void (*pointer)(void *owner, unsigned x, unsigned y, unsigned width, unsigned height, unsigned buttons);
    void *owner;
};

/*
 * "[HOST]:N" or "unix:PATH", then perhaps ",password=FILE" and ",tls=DIRECTORY" (vnc_certificate.h). N below 100 is a display, that is port
 * 5900 + N; otherwise the port. No HOST is 127.0.0.1; others can be reached from outside, so they need a password. False: err says why.
 */
bool vnc_check(const char *text, struct error *err);

/* Listens, and serves until vnc_close. NULL: err says why. */
struct vnc *vnc_open(const char *text, const struct vnc_source *source, struct error *err);
/* Not with a lock held that the source's functions take. */
void vnc_close(struct vnc *vnc);

#endif
