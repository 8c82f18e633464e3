/*
 * The protocol is libvncserver's; sockets, TLS (vnc_tls.h) and the loop are ours, because it would listen by itself on TCP only. Everything of the library is
 * called on the server's thread. A viewer that stalls in the middle of a message holds that thread up to STALL_MS, and then is lost; of a picture that is
 * counted in looks of five seconds, so that time in which this process itself did not run is no more than one. vnc_close does not wait for it,
 * as it shuts the sockets down first, through duplicates, which stay ours when the library has closed its own.
 *
 * While there is a viewer, changes are looked for every REFRESH_MS. A picture is compared with the last by tiles, and what differs is marked.
 */
#include "backend/vnc.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

#include <rfb/rfb.h>

#include "backend/vnc_listen.h"
#include "backend/vnc_tls.h"
#include "base/base.h"
#include "base/error.h"
#include "base/library.h"
#include "base/thread.h"

enum { VIEWERS_MAX = 8, REFRESH_MS = 33, STALL_MS = 20000, TILE_WIDTH = 64, TILE_HEIGHT = 16 };

struct libvncserver {
#define FUNCTION LIBRARY_POINTER
#include "backend/libvncserver.def"
#undef FUNCTION
};

static const char *const libvncserver_names[] = {
#define FUNCTION LIBRARY_NAME
#include "backend/libvncserver.def"
#undef FUNCTION
};

struct vnc {
    struct libvncserver lib;
    struct vnc_source source;
    struct vnc_address address;
    char password[VNC_PASSWORD_MAX + 1];
    char *passwords[2];                 /* as the library wants it: ended by NULL */
    struct vnc_tls *tls;                /* NULL: viewers speak plainly */
    int listener, stop;
    rfbScreenInfoPtr screen;
    uint32_t *pixel;                    /* what viewers are shown */
    unsigned width, height;
    uint64_t changes;                   /* as of that picture */
    pthread_t thread;
    pthread_mutex_t mutex;              /* guards what follows */
    int viewer[VIEWERS_MAX];            /* duplicates of their sockets; -1: free */
};

/* --- the picture --- */

static bool tile_differs(const uint32_t *a, const uint32_t *b, unsigned stride, unsigned width, unsigned height)
{
    for (unsigned y = 0; y < height; y++)
        if (memcmp(a + (size_t)y * stride, b + (size_t)y * stride, width * sizeof(*a)))
            return true;
    return false;
}

static void update_tile(struct vnc *vnc, const uint32_t *fresh, unsigned x, unsigned y)
{
    unsigned width = (unsigned)min_u64(TILE_WIDTH, vnc->width - x), height = (unsigned)min_u64(TILE_HEIGHT, vnc->height - y);
    size_t at = (size_t)y * vnc->width + x;
    if (!tile_differs(vnc->pixel + at, fresh + at, vnc->width, width, height))
        return;
    for (unsigned row = 0; row < height; row++)
        memcpy(vnc->pixel + at + (size_t)row * vnc->width, fresh + at + (size_t)row * vnc->width, width * sizeof(*fresh));
    vnc->lib.rfbMarkRectAsModified(vnc->screen, (int)x, (int)y, (int)(x + width), (int)(y + height));
}

static bool resize(struct vnc *vnc, const uint32_t *fresh, unsigned width, unsigned height)
{
    size_t size = (size_t)width * height * sizeof(*fresh);
    uint32_t *pixel = malloc(size), *old = vnc->pixel;
    if (!pixel)
        return false;
    memcpy(pixel, fresh, size);
    vnc->pixel = pixel;
    vnc->width = width;
    vnc->height = height;
    if (old)
        vnc->lib.rfbNewFramebuffer(vnc->screen, (char *)pixel, (int)width, (int)height, 8, 3, sizeof(*pixel));
    free(old);
    return true;
}

/* False: no memory. */
static bool refresh(struct vnc *vnc)
{
    uint64_t changes = vnc->source.changes(vnc->source.owner);
    unsigned width, height;
    if (vnc->pixel && changes == vnc->changes)
        return true;
    const uint32_t *fresh = vnc->source.draw(vnc->source.owner, &width, &height);
    if (!fresh)
        return false;
    vnc->changes = changes;
    if (!vnc->pixel || width != vnc->width || height != vnc->height)
        return resize(vnc, fresh, width, height);
    for (unsigned y = 0; y < height; y += TILE_HEIGHT)
        for (unsigned x = 0; x < width; x += TILE_WIDTH)
            update_tile(vnc, fresh, x, y);
    return true;
}

/* --- viewers --- */

static void viewer_gone(rfbClientPtr client)
{
    struct vnc *vnc = client->screen->screenData;
    int *fd = client->clientData;
    pthread_mutex_lock(&vnc->mutex);
    close(*fd);
    *fd = -1;
    pthread_mutex_unlock(&vnc->mutex);
}

static int *free_place(struct vnc *vnc)
{
    for (unsigned i = 0; i < VIEWERS_MAX; i++)
        if (vnc->viewer[i] < 0)
            return &vnc->viewer[i];
    return NULL;
}

/* The library waits with select(), which bounds the numbers of descriptors. */
static void accept_viewer(struct vnc *vnc)
{
    int fd = accept4(vnc->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0 && vnc->tls)
        fd = vnc_tls_front(vnc->tls, fd);
    if (fd < 0)
        return;
    int *place = free_place(vnc), other = fd < FD_SETSIZE && place ? dup(fd) : -1;
    if (other < 0) {
        close(fd);
        return;
    }
    pthread_mutex_lock(&vnc->mutex);
    *place = other;
    pthread_mutex_unlock(&vnc->mutex);
    rfbClientPtr client = vnc->lib.rfbNewClient(vnc->screen, fd);
    if (client) {
        client->clientData = place;
        client->clientGoneHook = viewer_gone;
        return;
    }
    pthread_mutex_lock(&vnc->mutex);
    *place = -1;
    pthread_mutex_unlock(&vnc->mutex);
    close(other);
}

static void key_event(rfbBool down, rfbKeySym keysym, rfbClientPtr client)
{
    struct vnc *vnc = client->screen->screenData;
    vnc->source.key(vnc->source.owner, keysym, down);
}

static void pointer_event(int buttons, int x, int y, rfbClientPtr client)
{
    struct vnc *vnc = client->screen->screenData;
    x = x < 0 ? 0 : x >= (int)vnc->width ? (int)vnc->width - 1 : x;
    y = y < 0 ? 0 : y >= (int)vnc->height ? (int)vnc->height - 1 : y;
    vnc->source.pointer(vnc->source.owner, (unsigned)x, (unsigned)y, vnc->width, vnc->height, (unsigned)buttons);
}

/* --- the thread --- */

/* Waits for the stop, a new viewer, a message, or, while there are viewers, the next look at the screen. False: stop. */
static bool wait_for_work(struct vnc *vnc)
{
    struct pollfd fds[2 + VIEWERS_MAX] = { { vnc->stop, POLLIN, 0 }, { vnc->listener, POLLIN, 0 } };
    nfds_t count = 2;
    for (unsigned i = 0; i < VIEWERS_MAX; i++)
        if (vnc->viewer[i] >= 0)
            fds[count++] = (struct pollfd){ vnc->viewer[i], POLLIN, 0 };
    poll(fds, count, count > 2 ? REFRESH_MS : -1);
    if (fds[0].revents)
        return false;
    if (fds[1].revents)
        accept_viewer(vnc);
    return true;
}

static void *serve(void *argument)
{
    struct vnc *vnc = argument;
    while (wait_for_work(vnc)) {
        refresh(vnc);
        vnc->lib.rfbProcessEvents(vnc->screen, 0);
    }
    return NULL;
}

/* --- life --- */

bool vnc_check(const char *text, struct error *err)
{
    struct vnc_address address;
    return vnc_address_parse(text, &address, err);
}

static bool make_screen(struct vnc *vnc, struct error *err)
{
    if (!library_load("libvncserver.so.1", libvncserver_names, ARRAY_SIZE(libvncserver_names), &vnc->lib, err))
        return false;
    vnc->lib.rfbLogEnable(FALSE);
    if (!refresh(vnc))
        return error_set(err, "no memory for a picture of the screen");
    rfbScreenInfoPtr screen = vnc->screen = vnc->lib.rfbGetScreen(NULL, NULL, (int)vnc->width, (int)vnc->height, 8, 3, sizeof(*vnc->pixel));
    if (!screen)
        return error_set(err, "no memory for a VNC server");
    screen->frameBuffer = (char *)vnc->pixel;
    screen->serverFormat.redShift = 16;
    screen->serverFormat.greenShift = 8;
    screen->serverFormat.blueShift = 0;
    screen->screenData = vnc;
    screen->desktopName = "Doppel";
    screen->port = screen->ipv6port = 0;        /* it shall not listen itself */
    screen->ignoreSIGPIPE = FALSE;              /* blocked on this thread */
    screen->alwaysShared = TRUE;
    screen->permitFileTransfer = FALSE;
    screen->deferUpdateTime = screen->deferPtrUpdateTime = 0;
    screen->maxClientWait = STALL_MS;
    screen->cursor = NULL;                      /* the guest draws its own */
    screen->kbdAddEvent = key_event;
    screen->ptrAddEvent = pointer_event;
    if (*vnc->password) {
        vnc->passwords[0] = vnc->password;
        screen->authPasswdData = vnc->passwords;
        screen->passwordCheck = vnc->lib.rfbCheckPasswordByList;
    }
    vnc->lib.rfbInitServer(screen);
    return true;
}

static bool start_thread(struct vnc *vnc, struct error *err)
{
    int status = thread_start(&vnc->thread, "vnc", serve, vnc);
    return !status || error_errno(err, status, "cannot start the VNC server's thread");
}

static void free_all(struct vnc *vnc)
{
    if (vnc->screen) {
        vnc->lib.rfbShutdownServer(vnc->screen, FALSE);
        vnc->lib.rfbScreenCleanup(vnc->screen);
    }
    vnc_tls_close(vnc->tls);
    if (vnc->listener >= 0)
        close(vnc->listener);
    if (vnc->listener >= 0 && *vnc->address.path)
        unlink(vnc->address.path);
    if (vnc->stop >= 0)
        close(vnc->stop);
    pthread_mutex_destroy(&vnc->mutex);
    free(vnc->pixel);
    free(vnc);
}

struct vnc *vnc_open(const char *text, const struct vnc_source *source, struct error *err)
{
    struct vnc *vnc = calloc(1, sizeof(*vnc));
    if (!vnc) {
        error_set(err, "no memory for a VNC server");
        return NULL;
    }
    vnc->source = *source;
    vnc->listener = vnc->stop = -1;
    memset(vnc->viewer, -1, sizeof(vnc->viewer));
    pthread_mutex_init(&vnc->mutex, NULL);
    bool named = vnc_address_parse(text, &vnc->address, err) &&
                 (!*vnc->address.password_file || vnc_read_password(vnc->address.password_file, vnc->password, err));
    if (named && (vnc->stop = eventfd(0, EFD_CLOEXEC)) < 0)
        named = error_errno(err, errno, "cannot make a VNC server");
    if (named && *vnc->address.tls) {
        vnc->tls = vnc_tls_open(vnc->address.tls, vnc->address.host, *vnc->password, err);
        named = vnc->tls;
    }
    if (named && (vnc->listener = vnc_listen(&vnc->address, err)) >= 0 && make_screen(vnc, err) && start_thread(vnc, err))
        return vnc;
    free_all(vnc);
    return NULL;
}

void vnc_close(struct vnc *vnc)
{
    const uint64_t one = 1;
    if (!vnc)
        return;
    if (write(vnc->stop, &one, sizeof(one)) != sizeof(one))
        abort();        /* an eventfd that was 0 takes 1 */
    pthread_mutex_lock(&vnc->mutex);
    for (unsigned i = 0; i < VIEWERS_MAX; i++)
        if (vnc->viewer[i] >= 0)
            shutdown(vnc->viewer[i], SHUT_RDWR);
    pthread_mutex_unlock(&vnc->mutex);
    pthread_join(vnc->thread, NULL);
    free_all(vnc);
}
