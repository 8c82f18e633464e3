/*
 * Hostile servers of a vhost-user disk: replies with mistakes, late, in pieces, missing, unasked for; rings full of lies; descriptors misused. First the handshake
 * alone, with little patience, then a disk whose server behaves from some later connection on: then every request ends, and no
 * descriptor is left open.
 *
 * Usage: fuzz-vhost-user [rounds [seed]]
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/disk_vhost_user.h"
#include "backend/shared_memory.h"
#include "backend/vhost_user.h"
#include "base/base.h"
#include "base/error.h"
#include "mutate.h"

enum { ROUNDS = 240, SECTORS = 2048, SECTOR = 512, MEMORY = 64 * 1024, FDS_MAX = 64, PAYLOAD_MAX = 512, SHORT_MS = 4 };
/* QEMU docs/interop/vhost-user.rst */
enum { GET_FEATURES = 1, SET_VRING_NUM = 8, SET_VRING_ADDR = 9, SET_VRING_KICK = 12, SET_VRING_CALL = 13, GET_PROTOCOL_FEATURES = 15,
       SET_VRING_ENABLE = 18, GET_CONFIG = 24, REPLY = 5 };

struct message {
    uint32_t request, flags, size;
    uint8_t payload[PAYLOAD_MAX];
};

struct server {
    int listener, stop_fd;
    unsigned hostile;               /* so many connections are; then they are not */
    uint64_t seed;
    pthread_t thread;
    /* Of a connection. */
    int socket, fd[FDS_MAX], kick_fd, call_fd;
    unsigned fds;
    bool bad;
    const struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint16_t taken;
};

static char path[] = "/tmp/doppel-fuzz-XXXXXX/socket";

static bool chance(struct server *server, unsigned of) { return server->bad && fuzz_below(&server->seed, of) == 0; }

/* --- what it says --- */

static bool receive_all(int socket, void *to, size_t size)
{
    return !size || recv(socket, to, size, MSG_WAITALL) == (ssize_t)size;
}

static bool receive_message(struct server *server, struct message *message)
{
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(sizeof(int) * 16)];
    struct iovec iov = { message, offsetof(struct message, payload) };
    struct msghdr head = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
    if (recvmsg(server->socket, &head, MSG_WAITALL) != (ssize_t)iov.iov_len)
        return false;
    struct cmsghdr *rights = CMSG_FIRSTHDR(&head);
    for (unsigned i = 0; rights && i < (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int) && server->fds < FDS_MAX; i++)
        memcpy(&server->fd[server->fds++], CMSG_DATA(rights) + i * sizeof(int), sizeof(int));
    return message->size <= PAYLOAD_MAX && receive_all(server->socket, message->payload, message->size);
}

static void send_bytes(struct server *server, const uint8_t *bytes, size_t size)
{
    while (size) {
        size_t part = chance(server, 4) ? 1 + fuzz_below(&server->seed, size) : size;
        if (send(server->socket, bytes, part, MSG_NOSIGNAL) < 0)
            return;
        bytes += part;
        size -= part;
        if (size)
            usleep((unsigned)fuzz_below(&server->seed, 2000));
    }
}

static void reply(struct server *server, struct message *message, uint64_t number)
{
    if (message->request != GET_CONFIG)
        message->size = sizeof(number);
    memcpy(message->payload + (message->request == GET_CONFIG ? 12 : 0), &number, sizeof(number));
    message->flags = REPLY;
    size_t size = offsetof(struct message, payload) + message->size;
    if (chance(server, 3))
        size = fuzz_mutate((uint8_t *)message, size, offsetof(struct message, payload) + 24, &server->seed);
    send_bytes(server, (const uint8_t *)message, size);
}

/* False: the connection ends. */
static bool answer(struct server *server, struct message *message)
{
    const uint64_t features = BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_BLK_F_FLUSH) | BIT(30);
    if (chance(server, 12))
        return false;
    if (chance(server, 12))
        send_bytes(server, (const uint8_t *)message, fuzz_below(&server->seed, 40));
    switch (message->request) {
    case GET_FEATURES: reply(server, message, chance(server, 6) ? fuzz_random(&server->seed) : features); break;
    case GET_PROTOCOL_FEATURES: reply(server, message, chance(server, 6) ? fuzz_random(&server->seed) : BIT(9)); break;
    case GET_CONFIG: reply(server, message, chance(server, 6) ? fuzz_number(&server->seed) : SECTORS); break;
    case SET_VRING_KICK: server->kick_fd = server->fds ? server->fd[server->fds - 1] : -1; break;
    case SET_VRING_CALL: server->call_fd = server->fds ? server->fd[server->fds - 1] : -1; break;
    case SET_VRING_ADDR: {
        uint64_t place[3];              /* addresses of this very process */
        memcpy(place, message->payload + 8, sizeof(place));
        server->desc = (const struct vring_desc *)place[0];
        server->used = (struct vring_used *)place[1];
        server->avail = (struct vring_avail *)place[2];
        break;
    }
    }
    return true;
}

/* --- what it does to the ring --- */

static void misuse_descriptors(struct server *server)
{
    for (unsigned i = 0; i < server->fds; i++) {
        int fd = server->fd[fuzz_below(&server->seed, server->fds)];
        switch (fuzz_below(&server->seed, 4)) {
        case 0: (void)!ftruncate(fd, (off_t)fuzz_below(&server->seed, 8192)); break;
        case 1: fcntl(fd, F_SETFL, 0); break;
        case 2: fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE); break;
        case 3:
            if (fd == server->kick_fd && fcntl(fd, F_SETFL, O_NONBLOCK) == 0 && eventfd_write(fd, UINT64_MAX - 1) == 0)
                fcntl(fd, F_SETFL, 0);
            break;
        }
    }
}

static void lie(struct server *server)
{
    for (uint64_t i = fuzz_below(&server->seed, 4); i; i--)
        server->used->ring[fuzz_below(&server->seed, 256)] = (struct vring_used_elem){ (uint32_t)fuzz_number(&server->seed), (uint32_t)fuzz_random(&server->seed) };
    server->used->flags = (uint16_t)fuzz_below(&server->seed, 2);
    __atomic_store_n(&server->used->idx, (uint16_t)(server->used->idx + fuzz_below(&server->seed, 4)), __ATOMIC_RELEASE);
    if (fuzz_below(&server->seed, 2))
        memset((void *)server->desc, (int)fuzz_random(&server->seed), 256 * sizeof(*server->desc));
    misuse_descriptors(server);
}

static void serve_ring(struct server *server)
{
    while (server->taken != __atomic_load_n(&server->avail->idx, __ATOMIC_ACQUIRE)) {
        uint16_t head = server->avail->ring[server->taken++ % 256], last = head;
        while (server->desc[last].flags & VRING_DESC_F_NEXT)
            last = server->desc[last].next;
        *(uint8_t *)server->desc[last].addr = VIRTIO_BLK_S_OK;
        server->used->ring[server->used->idx % 256] = (struct vring_used_elem){ head, 1 };
        __atomic_store_n(&server->used->idx, (uint16_t)(server->used->idx + 1), __ATOMIC_RELEASE);
    }
}

static bool kicked(struct server *server)
{
    eventfd_t count;
    fcntl(server->kick_fd, F_SETFL, O_NONBLOCK);
    eventfd_read(server->kick_fd, &count);
    if (server->bad)
        lie(server);
    else
        serve_ring(server);
    fcntl(server->call_fd, F_SETFL, O_NONBLOCK);
    eventfd_write(server->call_fd, 1);
    return !server->bad || fuzz_below(&server->seed, 2);
}

static void talk(struct server *server)
{
    struct message message;
    server->kick_fd = server->call_fd = -1;
    server->fds = server->taken = 0;
    for (bool go_on = true; go_on;) {
        /* A bad server is left as long as it wants, but not for ever: its client may be waiting for it. */
        struct pollfd fd[] = { { server->socket, POLLIN, 0 }, { server->stop_fd, POLLIN, 0 }, { server->used ? server->kick_fd : -1, POLLIN, 0 } };
        if (poll(fd, ARRAY_SIZE(fd), server->bad ? 50 : -1) <= 0 || fd[1].revents)
            break;
        if (fd[0].revents)
            go_on = receive_message(server, &message) && answer(server, &message);
        else if (fd[2].revents)
            go_on = kicked(server);
    }
    server->used = NULL;
    for (unsigned i = 0; i < server->fds; i++)
        close(server->fd[i]);
    close(server->socket);
}

static void *serve(void *opaque)
{
    struct server *server = opaque;
    for (;;) {
        struct pollfd fd[] = { { server->listener, POLLIN, 0 }, { server->stop_fd, POLLIN, 0 } };
        poll(fd, ARRAY_SIZE(fd), -1);
        if (fd[1].revents)
            return NULL;
        server->socket = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
        server->bad = server->hostile > 0;
        server->hostile -= server->bad;
        if (server->socket >= 0)
            talk(server);
    }
}

static void start(struct server *server, unsigned hostile, uint64_t seed)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    *server = (struct server){ .listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), .stop_fd = eventfd(0, EFD_CLOEXEC), .hostile = hostile,
                               .seed = seed };
    strcpy(address.sun_path, path);
    unlink(path);
    if (bind(server->listener, (const struct sockaddr *)&address, sizeof(address)) || listen(server->listener, 8) ||
        pthread_create(&server->thread, NULL, serve, server))
        abort();
}

static void stop(struct server *server)
{
    eventfd_write(server->stop_fd, 1);
    pthread_join(server->thread, NULL);
    close(server->listener);
    close(server->stop_fd);
}

/* --- rounds --- */

static void demand(bool good, const char *what, unsigned long round)
{
    if (good)
        return;
    fprintf(stderr, "round %lu: %s\n", round, what);
    abort();
}

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *directory = opendir("/proc/self/fd");
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static bool shake_hands(unsigned patience_ms, const struct shared_region *region)
{
    static _Alignas(4096) uint8_t ring[16384];
    int kick = eventfd(0, EFD_NONBLOCK), call = eventfd(0, EFD_NONBLOCK);
    const struct vhost_ring place = { 256, ring, ring + 4096, ring + 8192, kick, call };
    struct vhost_user vhost = { .socket = -1, .patience_ms = patience_ms };
    uint64_t sectors;
    bool good = !vhost_user_connect(&vhost, path, BIT(VIRTIO_BLK_F_FLUSH)) && !vhost_user_get_config(&vhost, &sectors, sizeof(sectors)) &&
                !vhost_user_start(&vhost, region, 1, &place);
    vhost_user_disconnect(&vhost);
    close(kick);
    close(call);
    return good;
}

/* Nobody accepts: the third connection does not fit into the queue any more. */
static void full_queue(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), waiting[2];
    strcpy(address.sun_path, path);
    unlink(path);
    if (bind(listener, (const struct sockaddr *)&address, sizeof(address)) || listen(listener, 0))
        abort();
    for (unsigned i = 0; i < 2; i++) {
        waiting[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)!connect(waiting[i], (const struct sockaddr *)&address, sizeof(address));
    }
    struct vhost_user vhost = { .socket = -1, .patience_ms = SHORT_MS };
    demand(vhost_user_connect(&vhost, path, 0) == ETIMEDOUT, "a server that accepts nobody is waited for", 0);
    for (unsigned i = 0; i < 2; i++)
        close(waiting[i]);
    close(listener);
}

/* Requests of a disk whose server changes for the better. */
static void use_disk(const struct shared_memory *memory, unsigned long round)
{
    struct error err;
    char name[64];
    uint8_t own[2 * SECTOR];
    snprintf(name, sizeof(name), "vhost-user:%s", path);
    struct disk_file *disk = disk_vhost_user_open(name, memory, false, &err);
    for (unsigned i = 0; disk && i < 3; i++) {
        const struct iovec iov[] = { { memory->region[0].host, 4096 }, { own, sizeof(own) } };
        uint64_t offset = disk->ops->size(disk) < 8192 ? 0 : 1024;
        int status = i == 1 ? disk->ops->read(disk, iov, 2, offset) : i ? disk->ops->flush(disk) : disk->ops->write(disk, iov, 2, offset);
        demand(!status || status == EIO || status == ENOSPC, "a request ends as none can", round);
    }
    disk_file_close(disk);
}

int main(int argc, char **argv)
{
    unsigned long rounds = fuzz_rounds(argc, argv, ROUNDS), good = 0;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 0x9E3779B97F4A7C15ull;
    struct shared_memory memory = { .count = 1 };
    struct server server;
    int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    *strrchr(path, '/') = 0;
    if (!mkdtemp(path) || ftruncate(fd, MEMORY))
        return 1;
    path[strlen(path)] = '/';
    memory.region[0] = (struct shared_region){ mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MEMORY, fd };
    full_queue();
    unsigned before = open_descriptors();
    for (unsigned long round = 0; round < rounds; round++) {
        bool whole = round % 8 == 7;
        start(&server, whole ? 1 + round / 8 % 2 : round % 8 != 0, fuzz_random(&seed));
        if (whole)
            use_disk(&memory, round);
        else if (shake_hands(round % 8 ? SHORT_MS : VHOST_USER_PATIENCE_MS, &memory.region[0]))
            good++;
        else
            demand(round % 8, "a server that behaves is refused", round);
        stop(&server);
        demand(open_descriptors() == before, "a descriptor was left open", round);
    }
    unlink(path);
    *strrchr(path, '/') = 0;
    rmdir(path);
    printf("%lu rounds, %lu handshakes done\n", rounds, good);
    return 0;
}
