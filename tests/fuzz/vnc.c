/*
 * Hostile viewers: streams of the RFB protocol (RFC 6143) with mistakes, and with the end at any place. The server must go on serving: after every
 * few of them one that behaves gets its picture. The picture changes its size meanwhile.
 *
 * Usage: fuzz-vnc [viewers [seed]]
 */
#include <poll.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/vnc.h"
#include "base/error.h"
#include "mutate.h"

enum { VIEWERS = 2000, STREAM_MAX = 4096 };

static _Atomic uint64_t changes;
static _Atomic uint64_t keys;
static uint32_t pixel[200 * 100];

static uint64_t count_changes(void *owner) { return changes; }

static const uint32_t *draw(void *owner, unsigned *width, unsigned *height)
{
    *width = 100 + (unsigned)(changes / 16 % 2) * 100;
    *height = 100;
    pixel[changes % 10000] ^= 0xFFFFFF;
    return pixel;
}

static void key(void *owner, uint32_t keysym, bool down) { keys++; }

static void pointer(void *owner, unsigned x, unsigned y, unsigned width, unsigned height, unsigned buttons)
{
    if (x >= width || y >= height)
        abort();
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    strcpy(address.sun_path, path);
    return connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 ? fd : (close(fd), -1);
}

static size_t put(uint8_t *at, const void *bytes, size_t size)
{
    memcpy(at, bytes, size);
    return size;
}

/* A greeting, and messages as viewers send them. */
static size_t good_stream(uint8_t *stream, uint64_t *seed)
{
    static const uint8_t format[20] = { 0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0 };
    static const uint8_t encodings[] = { 2, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 16, 0, 0, 0, 7, 0xFF, 0xFF, 0xFF, 0x21 };
    static const uint8_t request[10] = { 3, 0, 0, 0, 0, 0, 0, 100, 0, 100 }, press[8] = { 4, 1, 0, 0, 0, 0, 0, 'a' }, move[6] = { 5, 1, 0, 50, 0, 50 };
    static const uint8_t cut[12] = { 6, 0, 0, 0, 0, 0, 0, 4, 't', 'e', 'x', 't' };
    size_t size = put(stream, "RFB 003.008\n\1\1", 14);
    size += put(stream + size, format, sizeof(format));
    size += put(stream + size, encodings, sizeof(encodings));
    for (uint64_t i = fuzz_below(seed, 40); i-- > 0;) {
        switch (fuzz_below(seed, 4)) {
        case 0: size += put(stream + size, request, sizeof(request)); break;
        case 1: size += put(stream + size, press, sizeof(press)); break;
        case 2: size += put(stream + size, move, sizeof(move)); break;
        default: size += put(stream + size, cut, sizeof(cut)); break;
        }
    }
    return size;
}

static void hostile(const char *path, uint64_t *seed)
{
    uint8_t stream[STREAM_MAX], answer[4096];
    size_t size = good_stream(stream, seed);
    for (uint64_t i = 1 + fuzz_below(seed, 6); i-- > 0 && size;)
        size = fuzz_mutate(stream, size, 64, seed);
    int fd = connect_to(path);
    if (fd < 0)
        return;
    if (send(fd, stream, size, MSG_NOSIGNAL) > 0 && !fuzz_below(seed, 4))
        while (poll(&(struct pollfd){ fd, POLLIN, 0 }, 1, 20) > 0 && read(fd, answer, sizeof(answer)) > 0)
            continue;
    close(fd);
}

static bool take(int fd, size_t size)
{
    uint8_t bytes[256];
    while (size) {
        ssize_t got = read(fd, bytes, size < sizeof(bytes) ? size : sizeof(bytes));
        if (got <= 0)
            return false;
        size -= (size_t)got;
    }
    return true;
}

/* Greets, asks for a picture and gets the beginning of one; false: it does not. */
static bool served(const char *path)
{
    static const uint8_t hello[] = "RFB 003.008\n\1\1", request[10] = { 3, 0, 0, 0, 0, 0, 0, 10, 0, 10 };
    int fd = connect_to(path);
    uint8_t kind = 0xFF;
    bool ok = fd >= 0 && send(fd, hello, 14, MSG_NOSIGNAL) == 14 && take(fd, 12 + 2 + 4 + 24 + 6) &&
              send(fd, request, sizeof(request), MSG_NOSIGNAL) == (ssize_t)sizeof(request) && read(fd, &kind, 1) == 1 && kind == 0;
    if (fd >= 0)
        close(fd);
    return ok;
}

int main(int argc, char **argv)
{
    unsigned long viewers = fuzz_rounds(argc, argv, VIEWERS);
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 0x5A7A5A7A;
    char folder[] = "/tmp/doppel-vnc-XXXXXX", path[64], text[80];
    const struct vnc_source source = { count_changes, draw, key, pointer, NULL };
    struct error err;
    if (!mkdtemp(folder))
        return 1;
    snprintf(path, sizeof(path), "%s/vnc", folder);
    snprintf(text, sizeof(text), "unix:%s", path);
    struct vnc *vnc = vnc_open(text, &source, &err);
    if (!vnc) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    for (unsigned long i = 0; i < viewers; i++) {
        changes++;
        hostile(path, &seed);
        if (i % 50 == 0 && !served(path)) {
            fprintf(stderr, "after viewer %lu nobody is served\n", i);
            return 1;
        }
    }
    vnc_close(vnc);
    rmdir(folder);
    printf("vnc: %lu viewers, %lu keys\n", viewers, (unsigned long)keys);
    return keys == 0;
}
