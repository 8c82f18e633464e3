/*
 * The front end of a vhost-user block device. The guest's rings are not given away: requests are put into a ring of our own, so that whatever device the guest
 * has works with it, what the other side wrote to guest memory is known (dirty pages, decoded code), and nothing is under way when a machine is saved. Data
 * that lie in shared memory are not copied.
 *
 * A place is a request with its descriptors, header, status and bounce buffer; it is the caller's from taking to giving back. One thread of ours sees
 * answers and broken connections. When the other side dies, the thread connects anew for as long as patience lasts, and hands over again what was not answered: writes
 * that were not acknowledged may be done twice, in any order, which is what the guest must expect of a disk.
 *
 * The other side can write to all shared memory at any time; that cannot be taken back from it. Beyond that it is not trusted: what it says of the ring is
 * checked, and a lie ends the connection; memory that it gets is sealed, since who has the descriptor could shorten it under our feet; and it may make
 * the eventfds, whose flags it shares, block, so they are only used where they do not.
 */
#include "backend/disk_vhost_user.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "backend/disk_image.h"
#include "backend/iov.h"
#include "backend/shared_memory.h"
#include "backend/vhost_user.h"
#include "base/base.h"
#include "base/error.h"
#include "base/thread.h"

static const char prefix[] = "vhost-user:";

enum {
    RING_SIZE = 256, PLACES = 8, DESCRIPTORS = RING_SIZE / PLACES,
    SEGMENTS_MAX = DESCRIPTORS - 2,             /* header and status take one each */
    PIECE = 128 * 1024, PATIENCE_SECONDS = 60, RETRY_MS = 50,
};

/* What the other side sees of ours (VIRTIO §2.7, §5.2.6). */
struct ring {
    struct vring_desc desc[RING_SIZE];
    struct {
        uint16_t flags, index, ring[RING_SIZE], used_event;
    } avail;
    struct {
        _Alignas(4) uint16_t flags;
        uint16_t index;
        struct vring_used_elem ring[RING_SIZE];
        uint16_t avail_event;
    } used;
    struct place {
        struct virtio_blk_outhdr header;
        struct virtio_blk_discard_write_zeroes range;
        uint8_t status;
    } place[PLACES];
    uint8_t bounce[PLACES][PIECE];
};
_Static_assert(offsetof(struct ring, used) % 4 == 0, "VIRTIO §2.7");

/* What a place asks for, out of the other side's reach, since it may have to be asked again. */
struct question {
    struct vring_desc desc[DESCRIPTORS];
    struct place place;
};

enum place_state { PLACE_FREE, PLACE_TAKEN, PLACE_UNDER_WAY, PLACE_DONE };

struct vhost_disk {
    struct disk_file file;
    const char *path;                           /* of the socket, in file.name */
    struct shared_region region[SHARED_REGIONS_MAX + 1];        /* the last one is the ring's */
    unsigned regions;
    uint64_t size, features;                    /* bytes; as agreed at first */
    struct ring *ring;
    int ring_fd, kick_fd, call_fd, stop_fd;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;                       /* guards what follows, and the ring but for what a taken place has */
    pthread_cond_t changed;
    struct vhost_user vhost;
    uint16_t avail_index, used_index;           /* ours */
    enum place_state state[PLACES];
    struct question question[PLACES];           /* its place's owner's, until it is under way */
    bool gone;                                  /* patience is over: everything fails */
};

static struct vhost_disk *disk_of(const struct disk_file *file)
{
    return container_of(file, struct vhost_disk, file);
}

/* --- eventfds that the other side has, too --- */

static void kick(const struct vhost_disk *disk)
{
    struct pollfd fd = { .fd = disk->kick_fd, .events = POLLOUT };
    if (poll(&fd, 1, 0) > 0)
        eventfd_write(disk->kick_fd, 1);        /* else it is full, which wakes as well */
}

static void quieten(const struct vhost_disk *disk)
{
    eventfd_t count;
    ssize_t got = preadv2(disk->call_fd, &(struct iovec){ &count, sizeof(count) }, 1, -1, RWF_NOWAIT);
    (void)got;                                  /* only to make it quiet again */
}

/* --- the ring: with the lock --- */

static void offer(struct vhost_disk *disk, unsigned place)
{
    struct ring *ring = disk->ring;
    const struct question *question = &disk->question[place];
    memcpy(&ring->desc[place * DESCRIPTORS], question->desc, sizeof(question->desc));
    ring->place[place] = question->place;
    ring->avail.ring[disk->avail_index % RING_SIZE] = (uint16_t)(place * DESCRIPTORS);
    __atomic_store_n(&ring->avail.index, ++disk->avail_index, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!(__atomic_load_n(&ring->used.flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY) && disk->vhost.socket >= 0)
        kick(disk);
}

/* Looks for answers. False: the other side says what cannot be. */
static bool collect(struct vhost_disk *disk)
{
    struct ring *ring = disk->ring;
    while (disk->used_index != __atomic_load_n(&ring->used.index, __ATOMIC_ACQUIRE)) {
        uint32_t id = __atomic_load_n(&ring->used.ring[disk->used_index % RING_SIZE].id, __ATOMIC_RELAXED);
        unsigned place = id / DESCRIPTORS;
        if (id >= RING_SIZE || id % DESCRIPTORS || disk->state[place] != PLACE_UNDER_WAY)
            return false;
        disk->state[place] = PLACE_DONE;
        disk->used_index++;
        pthread_cond_broadcast(&disk->changed);
    }
    return true;
}

/* --- the connection --- */

/* Only what is needed of the configuration: how long it is differs among versions of the standard. */
static int read_size(struct vhost_user *vhost, uint64_t *size)
{
    uint64_t sectors = 0;
    int status = vhost_user_get_config(vhost, &sectors, sizeof(sectors));
    *size = sectors * DISK_SECTOR;
    return !status && sectors > INT64_MAX / DISK_SECTOR ? EPROTO : status;
}
_Static_assert(offsetof(struct virtio_blk_config, capacity) == 0, "VIRTIO §5.2.4");

/* A connection whose queue is set up, and not yet used. */
static int connect_to(struct vhost_disk *disk, struct vhost_user *vhost, uint64_t *size)
{
    const uint64_t wanted = BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_RO) | BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_SEG_MAX);
    const struct ring *ring = disk->ring;
    const struct vhost_ring place = { RING_SIZE, ring->desc, &ring->avail, &ring->used, disk->kick_fd, disk->call_fd };
    int status = vhost_user_connect(vhost, disk->path, wanted);
    if (!status)
        status = read_size(vhost, size);
    if (!status)
        status = vhost_user_start(vhost, disk->region, disk->regions, &place);
    if (status)
        vhost_user_disconnect(vhost);
    return status;
}

/* With the lock: the ring is empty again. */
static void empty_ring(struct vhost_disk *disk)
{
    disk->avail_index = disk->used_index = 0;
    memset(&disk->ring->avail, 0, sizeof(disk->ring->avail));
    memset(&disk->ring->used, 0, sizeof(disk->ring->used));
}

/* Answers that came before the end count. */
static void lose_connection(struct vhost_disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    collect(disk);
    vhost_user_disconnect(&disk->vhost);
    empty_ring(disk);
    pthread_mutex_unlock(&disk->lock);
}

static bool stopped(const struct vhost_disk *disk, int wait_ms)
{
    struct pollfd fd = { .fd = disk->stop_fd, .events = POLLIN };
    return poll(&fd, 1, wait_ms) > 0;
}

/* A disk that became smaller, or that can no longer be written to, is another disk. */
static bool connect_again(struct vhost_disk *disk)
{
    struct vhost_user vhost = { .socket = -1, .patience_ms = VHOST_USER_PATIENCE_MS };
    uint64_t size;
    if (connect_to(disk, &vhost, &size))
        return false;
    if (size < disk->size || (vhost.features ^ disk->features) & (BIT(VIRTIO_BLK_F_RO) | BIT(VIRTIO_BLK_F_FLUSH))) {
        vhost_user_disconnect(&vhost);
        return false;
    }
    pthread_mutex_lock(&disk->lock);
    disk->vhost = vhost;
    for (unsigned i = 0; i < PLACES; i++)
        if (disk->state[i] == PLACE_UNDER_WAY)
            offer(disk, i);
    pthread_mutex_unlock(&disk->lock);
    return true;
}

static void give_up(struct vhost_disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    vhost_user_disconnect(&disk->vhost);
    disk->gone = true;
    pthread_cond_broadcast(&disk->changed);
    pthread_mutex_unlock(&disk->lock);
}

static void reconnect(struct vhost_disk *disk)
{
    struct timespec now, end;
    lose_connection(disk);
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += PATIENCE_SECONDS;
    do {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (stopped(disk, RETRY_MS))            /* before the first time, too: one that breaks each connection at once does not keep us busy */
            return;
        if (now.tv_sec > end.tv_sec) {
            give_up(disk);
            return;
        }
    } while (!connect_again(disk));
}

/* One wait. False: the connection is of no use any more. */
static bool look(struct vhost_disk *disk)
{
    struct pollfd fds[] = { { .fd = disk->call_fd, .events = POLLIN }, { .fd = disk->vhost.socket, .events = POLLIN },
                            { .fd = disk->stop_fd, .events = POLLIN } };
    if (poll(fds, ARRAY_SIZE(fds), -1) < 0)
        return true;
    if (fds[0].revents)
        quieten(disk);
    pthread_mutex_lock(&disk->lock);
    bool sane = collect(disk);
    pthread_mutex_unlock(&disk->lock);
    return sane && !fds[1].revents;             /* nothing is sent to us unasked */
}

static bool is_gone(struct vhost_disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    bool gone = disk->gone;
    pthread_mutex_unlock(&disk->lock);
    return gone;
}

static void *run_thread(void *opaque)
{
    struct vhost_disk *disk = opaque;
    while (!stopped(disk, 0) && !is_gone(disk))
        if (!look(disk) && !is_gone(disk))
            reconnect(disk);
    return NULL;
}

/* --- requests --- */

/* PLACES: the disk is gone. */
static unsigned take_place(struct vhost_disk *disk)
{
    unsigned place = PLACES;
    pthread_mutex_lock(&disk->lock);
    while (!disk->gone) {
        for (place = 0; place < PLACES && disk->state[place] != PLACE_FREE; place++)
            ;
        if (place < PLACES)
            break;
        pthread_cond_wait(&disk->changed, &disk->lock);
    }
    if (disk->gone)
        place = PLACES;
    else
        disk->state[place] = PLACE_TAKEN;
    pthread_mutex_unlock(&disk->lock);
    return place;
}

static void give_back(struct vhost_disk *disk, unsigned place)
{
    pthread_mutex_lock(&disk->lock);
    disk->state[place] = PLACE_FREE;
    pthread_cond_broadcast(&disk->changed);
    pthread_mutex_unlock(&disk->lock);
}

static void describe(struct vhost_disk *disk, unsigned place, uint32_t type, uint64_t offset, const struct iovec *iov, int count)
{
    struct place *shared = &disk->ring->place[place];
    struct question *question = &disk->question[place];
    struct vring_desc *desc = question->desc;
    uint16_t next = (uint16_t)(place * DESCRIPTORS), writes = type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0;
    question->place.header = (struct virtio_blk_outhdr){ .type = type, .sector = offset / DISK_SECTOR };
    question->place.status = 0xFF;
    *desc++ = (struct vring_desc){ (uintptr_t)&shared->header, sizeof(shared->header), VRING_DESC_F_NEXT, ++next };
    for (int i = 0; i < count; i++)
        *desc++ = (struct vring_desc){ (uintptr_t)iov[i].iov_base, (uint32_t)iov[i].iov_len, VRING_DESC_F_NEXT | writes, ++next };
    *desc = (struct vring_desc){ (uintptr_t)&shared->status, 1, VRING_DESC_F_WRITE, 0 };
}

/* Hands the place's request over and waits for its end. */
static int carry_out(struct vhost_disk *disk, unsigned place)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 2 * PATIENCE_SECONDS;       /* one to answer, one to come back */
    pthread_mutex_lock(&disk->lock);
    disk->state[place] = PLACE_UNDER_WAY;
    if (disk->vhost.socket >= 0)
        offer(disk, place);
    while (disk->state[place] != PLACE_DONE && !disk->gone)
        if (pthread_cond_clockwait(&disk->changed, &disk->lock, CLOCK_MONOTONIC, &until) == ETIMEDOUT) {
            shutdown(disk->vhost.socket, SHUT_RDWR);
            disk->gone = true;
            pthread_cond_broadcast(&disk->changed);
        }
    bool done = disk->state[place] == PLACE_DONE;
    pthread_mutex_unlock(&disk->lock);
    uint8_t status = __atomic_load_n(&disk->ring->place[place].status, __ATOMIC_RELAXED);
    return done && status == VIRTIO_BLK_S_OK ? 0 : EIO;
}

static bool is_shared(const struct vhost_disk *disk, const struct iovec *iov)
{
    for (unsigned i = 0; i < disk->regions; i++) {
        uint64_t offset = (uintptr_t)iov->iov_base - (uintptr_t)disk->region[i].host;
        if (offset < disk->region[i].size && iov->iov_len <= disk->region[i].size - offset)
            return true;
    }
    return false;
}

/* How many bytes from the first part on can be given away as they are: whole sectors; 0: none. */
static uint64_t shared_size(const struct vhost_disk *disk, const struct iovec *part, int parts)
{
    uint64_t size = 0;
    for (int i = 0; i < parts && i < SEGMENTS_MAX && is_shared(disk, &part[i]); i++)
        size += part[i].iov_len;
    return align_down(min_u64(size, GiB), DISK_SECTOR);
}

static int transfer_piece(struct vhost_disk *disk, unsigned place, const struct iovec *part, int parts, uint64_t offset, bool write, bool bounce)
{
    uint32_t type = write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
    uint8_t *buffer = disk->ring->bounce[place];
    const struct iovec copy = { buffer, iov_size(part, parts) };
    if (bounce && write)
        iov_gather(part, parts, buffer);
    describe(disk, place, type, offset, bounce ? &copy : part, bounce ? 1 : parts);
    int status = carry_out(disk, place);
    if (bounce && !write && !status)
        iov_fill(part, parts, buffer);
    return status;
}

static int transfer(struct vhost_disk *disk, const struct iovec *iov, int count, uint64_t offset, bool write)
{
    uint64_t size = iov_size(iov, count), piece;
    struct iovec *part = malloc((size_t)count * sizeof(*part));
    int status = part ? 0 : ENOMEM;
    for (uint64_t done = 0; done < size && !status; done += piece) {
        unsigned place = take_place(disk);
        if (place == PLACES) {
            status = EIO;
            break;
        }
        int parts = iov_slice(iov, count, done, size - done, part);
        uint64_t shared = shared_size(disk, part, parts);
        piece = shared ? shared : min_u64(size - done, PIECE);
        parts = iov_slice(iov, count, done, piece, part);
        status = transfer_piece(disk, place, part, parts, offset + done, write, !shared);
        give_back(disk, place);
    }
    free(part);
    return status;
}

/* --- operations --- */

/* Whole sectors around what is wanted. */
static int read_around(struct vhost_disk *disk, const struct iovec *iov, int count, uint64_t offset, uint64_t size)
{
    uint64_t first = align_down(offset, DISK_SECTOR), span = align_up(offset + size, DISK_SECTOR) - first;
    uint8_t *buffer = malloc(span);
    int status = buffer ? transfer(disk, &(struct iovec){ buffer, span }, 1, first, false) : ENOMEM;
    if (!status)
        iov_fill(iov, count, buffer + (offset - first));
    free(buffer);
    return status;
}

static int vhost_read(struct disk_file *file, const struct iovec *iov, int count, uint64_t offset)
{
    struct vhost_disk *disk = disk_of(file);
    uint64_t size = iov_size(iov, count), there = offset < disk->size ? min_u64(size, disk->size - offset) : 0;
    struct iovec *part = malloc(((size_t)count + 1) * sizeof(*part));
    if (!part)
        return ENOMEM;
    iov_clear(part, iov_slice(iov, count, there, size - there, part));
    int parts = iov_slice(iov, count, 0, there, part), status = 0;
    if (there && (offset | there) % DISK_SECTOR)
        status = read_around(disk, part, parts, offset, there);
    else if (there)
        status = transfer(disk, part, parts, offset, false);
    free(part);
    return status;
}

static int vhost_write(struct disk_file *file, const struct iovec *iov, int count, uint64_t offset)
{
    struct vhost_disk *disk = disk_of(file);
    uint64_t size = iov_size(iov, count);
    if (offset > disk->size || size > disk->size - offset)
        return ENOSPC;
    return (offset | size) % DISK_SECTOR ? EINVAL : transfer(disk, iov, count, offset, true);
}

static int simple_request(struct vhost_disk *disk, uint32_t type, const struct virtio_blk_discard_write_zeroes *range)
{
    unsigned place = take_place(disk);
    if (place == PLACES)
        return EIO;
    struct iovec iov = { &disk->ring->place[place].range, sizeof(*range) };
    if (range)
        disk->question[place].place.range = *range;
    describe(disk, place, type, 0, &iov, range != NULL);
    int status = carry_out(disk, place);
    give_back(disk, place);
    return status;
}

static int vhost_flush(struct disk_file *file)
{
    struct vhost_disk *disk = disk_of(file);
    bool needed = !file->read_only && disk->features & BIT(VIRTIO_BLK_F_FLUSH);
    return needed ? simple_request(disk, VIRTIO_BLK_T_FLUSH, NULL) : 0;
}

static void vhost_punch(struct disk_file *file, uint64_t offset, uint64_t size)
{
    struct vhost_disk *disk = disk_of(file);
    if (disk->features & BIT(VIRTIO_BLK_F_DISCARD) && size <= GiB)
        simple_request(disk, VIRTIO_BLK_T_DISCARD, &(struct virtio_blk_discard_write_zeroes){ offset / DISK_SECTOR, (uint32_t)(size / DISK_SECTOR), 0 });
}

static int vhost_truncate(struct disk_file *file, uint64_t size)
{
    return size == disk_of(file)->size ? 0 : ENOTSUP;
}

static uint64_t vhost_size(struct disk_file *file)
{
    return disk_of(file)->size;
}

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

static void vhost_close(struct disk_file *file)
{
    struct vhost_disk *disk = disk_of(file);
    if (disk->started && eventfd_write(disk->stop_fd, 1) == 0)
        pthread_join(disk->thread, NULL);
    vhost_user_disconnect(&disk->vhost);
    if (disk->ring)
        munmap(disk->ring, sizeof(*disk->ring));
    close_fd(disk->ring_fd);
    close_fd(disk->kick_fd);
    close_fd(disk->call_fd);
    close_fd(disk->stop_fd);
    pthread_cond_destroy(&disk->changed);
    pthread_mutex_destroy(&disk->lock);
    free(file->name);
    free(disk);
}

static const struct disk_file_ops vhost_ops = {
    .read = vhost_read,
    .write = vhost_write,
    .flush = vhost_flush,
    .punch = vhost_punch,
    .truncate = vhost_truncate,
    .size = vhost_size,
    .close = vhost_close,
};

/* --- opening --- */

bool disk_vhost_user_is(const char *name)
{
    return !strncmp(name, prefix, strlen(prefix));
}

/* Fails where another disk has done it. */
static void seal(int fd) { fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL); }

static bool make_ring(struct vhost_disk *disk, const struct shared_memory *memory, struct error *err)
{
    disk->ring_fd = memfd_create("vhost-user", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    disk->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    disk->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    disk->stop_fd = eventfd(0, EFD_CLOEXEC);
    void *ring = MAP_FAILED;
    if (disk->ring_fd >= 0 && ftruncate(disk->ring_fd, sizeof(*disk->ring)) == 0)
        ring = mmap(NULL, sizeof(*disk->ring), PROT_READ | PROT_WRITE, MAP_SHARED, disk->ring_fd, 0);
    if (ring == MAP_FAILED || disk->kick_fd < 0 || disk->call_fd < 0 || disk->stop_fd < 0)
        return error_errno(err, errno, "cannot use %s", disk->file.name);
    disk->ring = ring;
    for (unsigned i = 0; memory && i < memory->count; i++)
        disk->region[disk->regions++] = memory->region[i];
    disk->region[disk->regions++] = (struct shared_region){ ring, align_up(sizeof(*disk->ring), PAGE_SIZE), disk->ring_fd };
    for (unsigned i = 0; i < disk->regions; i++)
        seal(disk->region[i].fd);
    return true;
}

static bool connect_first(struct vhost_disk *disk, struct error *err)
{
    int status = connect_to(disk, &disk->vhost, &disk->size);
    if (status == EPROTONOSUPPORT)
        return error_set(err, "%s is no block device of virtio 1 that tells its size", disk->file.name);
    if (status)
        return error_errno(err, status, "cannot use %s", disk->file.name);
    if (!disk->file.read_only && disk->vhost.features & BIT(VIRTIO_BLK_F_RO))
        return error_set(err, "%s can only be read; use it with ro", disk->file.name);
    disk->features = disk->vhost.features;
    return true;
}

static bool start_thread(struct vhost_disk *disk, struct error *err)
{
    disk->started = !thread_start(&disk->thread, "vhost-user", run_thread, disk);
    return disk->started || error_set(err, "cannot start a thread for %s", disk->file.name);
}

struct disk_file *disk_vhost_user_open(const char *name, const struct shared_memory *memory, bool read_only, struct error *err)
{
    struct vhost_disk *disk = calloc(1, sizeof(*disk));
    char *own = strdup(name);
    if (!disk || !own) {
        free(disk);
        free(own);
        error_set(err, "out of memory");
        return NULL;
    }
    disk->file = (struct disk_file){ .ops = &vhost_ops, .name = own, .read_only = read_only };
    disk->path = own + strlen(prefix);
    disk->vhost.patience_ms = VHOST_USER_PATIENCE_MS;
    disk->vhost.socket = disk->ring_fd = disk->kick_fd = disk->call_fd = disk->stop_fd = -1;
    pthread_mutex_init(&disk->lock, NULL);
    pthread_cond_init(&disk->changed, NULL);
    if (make_ring(disk, memory, err) && connect_first(disk, err) && start_thread(disk, err))
        return &disk->file;
    vhost_close(&disk->file);
    return NULL;
}
