#include "backend/vhost_user.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"

/* "Front-end message types" */
enum request {
    GET_FEATURES = 1, SET_FEATURES = 2, SET_OWNER = 3, SET_MEM_TABLE = 5, SET_VRING_NUM = 8, SET_VRING_ADDR = 9, SET_VRING_BASE = 10,
    SET_VRING_KICK = 12, SET_VRING_CALL = 13, GET_PROTOCOL_FEATURES = 15, SET_PROTOCOL_FEATURES = 16, SET_VRING_ENABLE = 18,
    GET_CONFIG = 24,
};
/* "Header": flags. "Protocol features", "Communication": bit 30 of the features says that there are such. */
enum { VERSION = 1, REPLY = 1 << 2, NEED_REPLY = 1 << 3, REPLY_ACK = 3, CONFIG = 9, PROTOCOL_FEATURES = 30 };
enum { CONFIG_MAX = 256 };

struct header {
    uint32_t request, flags, size;
};
struct vring_state {
    uint32_t index, number;
};
struct vring_addresses {
    uint32_t index, flags;
    uint64_t desc, used, avail, log;
};
struct memory_region {
    uint64_t guest_address, size, user_address, offset;
};
struct memory_table {
    uint32_t count, padding;
    struct memory_region region[SHARED_REGIONS_MAX + 1];
};
struct config_message {
    uint32_t offset, size, flags;
    uint8_t bytes[CONFIG_MAX];
};

/* --- messages --- */

/* SO_SNDTIMEO (socket(7)): EAGAIN says that time is over, when connecting, too. */
static int send_error(void) { return errno == EAGAIN ? ETIMEDOUT : errno; }

static int send_message(const struct vhost_user *vhost, uint32_t request, uint32_t flags, const void *payload, uint32_t size, const int *fd,
                        unsigned fds)
{
    struct header header = { request, VERSION | flags, size };
    struct iovec iov[] = { { &header, sizeof(header) }, { (void *)payload, size } };
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(sizeof(int) * (SHARED_REGIONS_MAX + 1))] = { 0 };
    struct msghdr message = { .msg_iov = iov, .msg_iovlen = 2 };
    if (fds) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * fds);
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        *head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int) * fds), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
        memcpy(CMSG_DATA(head), fd, sizeof(int) * fds);
    }
    ssize_t sent = sendmsg(vhost->socket, &message, MSG_NOSIGNAL);
    return sent == (ssize_t)(sizeof(header) + size) ? 0 : sent < 0 ? send_error() : EPIPE;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The patience is for all of it: a byte now and then does not renew it. */
static int receive(const struct vhost_user *vhost, void *to, size_t size)
{
    int64_t end = now_ms() + vhost->patience_ms, left;
    size_t got = 0;
    while (got < size && (left = end - now_ms()) > 0) {
        struct pollfd fd = { .fd = vhost->socket, .events = POLLIN };
        int ready = poll(&fd, 1, (int)left);
        ssize_t part = ready > 0 ? recv(vhost->socket, (uint8_t *)to + got, size - got, MSG_DONTWAIT) : ready;
        if (part < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (part < 0)
            return errno;
        if (!part && ready)
            return ECONNRESET;
        got += (size_t)part;
    }
    return got == size ? 0 : ETIMEDOUT;
}

/* The answer must be to this request and of this size. */
static int receive_answer(const struct vhost_user *vhost, uint32_t request, void *payload, uint32_t size)
{
    struct header header;
    int status = receive(vhost, &header, sizeof(header));
    if (!status && (header.request != request || !(header.flags & REPLY) || header.size != size))
        status = EPROTO;
    return status ? status : receive(vhost, payload, size);
}

static int get_number(const struct vhost_user *vhost, uint32_t request, uint64_t *value)
{
    int status = send_message(vhost, request, 0, NULL, 0, NULL, 0);
    return status ? status : receive_answer(vhost, request, value, sizeof(*value));
}

static int set_number(const struct vhost_user *vhost, uint32_t request, uint64_t value)
{
    return send_message(vhost, request, 0, &value, sizeof(value), NULL, 0);
}

static int set_state(const struct vhost_user *vhost, uint32_t request, uint32_t number)
{
    const struct vring_state state = { 0, number };
    return send_message(vhost, request, 0, &state, sizeof(state), NULL, 0);
}

/* The payload is the number of the queue. */
static int set_eventfd(const struct vhost_user *vhost, uint32_t request, int fd)
{
    const uint64_t queue = 0;
    return send_message(vhost, request, 0, &queue, sizeof(queue), &fd, 1);
}

/* --- the whole --- */

static int agree(struct vhost_user *vhost, uint64_t wanted)
{
    uint64_t offered = 0, protocol = 0;
    int status = get_number(vhost, GET_FEATURES, &offered);
    if (!status && !(offered & BIT(VIRTIO_F_VERSION_1)))
        status = EPROTONOSUPPORT;
    vhost->features = offered & (wanted | BIT(VIRTIO_F_VERSION_1) | BIT(PROTOCOL_FEATURES));
    if (!status && offered & BIT(PROTOCOL_FEATURES))
        status = get_number(vhost, GET_PROTOCOL_FEATURES, &protocol);
    protocol &= BIT(CONFIG) | BIT(REPLY_ACK);
    vhost->has_config = protocol & BIT(CONFIG);
    if (!status && offered & BIT(PROTOCOL_FEATURES))
        status = set_number(vhost, SET_PROTOCOL_FEATURES, protocol);
    if (!status)
        status = send_message(vhost, SET_OWNER, 0, NULL, 0, NULL, 0);
    return status ? status : set_number(vhost, SET_FEATURES, vhost->features);
}

int vhost_user_connect(struct vhost_user *vhost, const char *path, uint64_t wanted)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    if (strlen(path) >= sizeof(address.sun_path))
        return ENAMETOOLONG;
    strcpy(address.sun_path, path);
    vhost->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (vhost->socket < 0)
        return errno;
    const struct timeval patience = { vhost->patience_ms / 1000, vhost->patience_ms % 1000 * 1000 };
    setsockopt(vhost->socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    int status = connect(vhost->socket, (const struct sockaddr *)&address, sizeof(address)) == 0 ? agree(vhost, wanted) : send_error();
    if (status)
        vhost_user_disconnect(vhost);
    return status;
}

int vhost_user_get_config(struct vhost_user *vhost, void *config, size_t size)
{
    struct config_message message = { .size = (uint32_t)size };
    uint32_t length = (uint32_t)(offsetof(struct config_message, bytes) + size);
    assert(size <= CONFIG_MAX);
    if (!vhost->has_config)
        return EPROTONOSUPPORT;
    int status = send_message(vhost, GET_CONFIG, 0, &message, length, NULL, 0);
    if (!status)
        status = receive_answer(vhost, GET_CONFIG, &message, length);
    memcpy(config, message.bytes, size);
    return status;
}

static int set_memory(struct vhost_user *vhost, const struct shared_region *region, unsigned regions)
{
    struct memory_table table = { .count = regions };
    int fd[SHARED_REGIONS_MAX + 1];
    assert(regions <= ARRAY_SIZE(fd));
    for (unsigned i = 0; i < regions; i++) {
        table.region[i] = (struct memory_region){ (uintptr_t)region[i].host, region[i].size, (uintptr_t)region[i].host, 0 };
        fd[i] = region[i].fd;
    }
    uint32_t size = (uint32_t)(offsetof(struct memory_table, region) + regions * sizeof(*table.region));
    return send_message(vhost, SET_MEM_TABLE, 0, &table, size, fd, regions);
}

int vhost_user_start(struct vhost_user *vhost, const struct shared_region *region, unsigned regions, const struct vhost_ring *ring)
{
    const struct vring_addresses addresses = { .desc = (uintptr_t)ring->desc, .used = (uintptr_t)ring->used, .avail = (uintptr_t)ring->avail };
    int status = set_memory(vhost, region, regions);
    status = status ? status : set_state(vhost, SET_VRING_NUM, ring->size);
    status = status ? status : set_state(vhost, SET_VRING_BASE, 0);
    status = status ? status : send_message(vhost, SET_VRING_ADDR, 0, &addresses, sizeof(addresses), NULL, 0);
    status = status ? status : set_eventfd(vhost, SET_VRING_CALL, ring->call_fd);
    status = status ? status : set_eventfd(vhost, SET_VRING_KICK, ring->kick_fd);
    if (!status && vhost->features & BIT(PROTOCOL_FEATURES))
        status = set_state(vhost, SET_VRING_ENABLE, 1);
    return status;
}

void vhost_user_disconnect(struct vhost_user *vhost)
{
    if (vhost->socket >= 0)
        close(vhost->socket);
    vhost->socket = -1;
}
