#include "backend/disk_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/disk_nbd.h"
#include "backend/disk_vhost_user.h"
#include "backend/iov.h"
#include "base/base.h"
#include "base/error.h"

struct host_file {
    struct disk_file file;
    int fd;
    bool is_device, temporary;
};

static struct host_file *host_of(const struct disk_file *file)
{
    return container_of(file, struct host_file, file);
}

/* --- operations --- */

/* Carries out the whole of a transfer, however often the host stops half-way. */
static int transfer(const struct host_file *host, const struct iovec *iov, int count, uint64_t offset, bool write)
{
    struct iovec left[IOV_MAX];
    uint64_t size = iov_size(iov, count), done = 0;
    while (done < size) {
        int parts = iov_slice(iov, count, done, size - done, left);
        ssize_t moved = write ? pwritev(host->fd, left, parts, (off_t)(offset + done))
                              : preadv(host->fd, left, parts, (off_t)(offset + done));
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved < 0)
            return errno;
        if (moved == 0 && write)
            return EIO;
        if (moved == 0) {       /* the end */
            iov_clear(left, parts);
            return 0;
        }
        done += (uint64_t)moved;
    }
    return 0;
}

static int host_read(struct disk_file *file, const struct iovec *iov, int count, uint64_t offset)
{
    return transfer(host_of(file), iov, count, offset, false);
}

static int host_write(struct disk_file *file, const struct iovec *iov, int count, uint64_t offset)
{
    return transfer(host_of(file), iov, count, offset, true);
}

static int host_flush(struct disk_file *file)
{
    const struct host_file *host = host_of(file);
    if (file->read_only || host->temporary)
        return 0;
    return fdatasync(host->fd) == 0 ? 0 : errno;
}

static void host_punch(struct disk_file *file, uint64_t offset, uint64_t size)
{
    (void)fallocate(host_of(file)->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size);
}

static int host_truncate(struct disk_file *file, uint64_t size)
{
    return ftruncate(host_of(file)->fd, (off_t)size) == 0 ? 0 : errno;
}

static uint64_t host_size(struct disk_file *file)
{
    const struct host_file *host = host_of(file);
    uint64_t size = 0;
    struct stat st;
    if (host->is_device)
        return ioctl(host->fd, BLKGETSIZE64, &size) == 0 ? size : 0;
    return fstat(host->fd, &st) == 0 ? (uint64_t)st.st_size : 0;
}

static void host_close(struct disk_file *file)
{
    struct host_file *host = host_of(file);
    if (host->fd >= 0)
        close(host->fd);        /* gives the lock back */
    free(file->name);
    free(host);
}

static const struct disk_file_ops host_ops = {
    .read = host_read,
    .write = host_write,
    .flush = host_flush,
    .punch = host_punch,
    .truncate = host_truncate,
    .size = host_size,
    .close = host_close,
};

/* --- opening --- */

/* F_OFD_SETLK: the lock belongs to this open file, so that a second run, or a second machine here, is refused. */
static bool lock_file(const struct disk_file *file, struct error *err)
{
    struct flock lock = { .l_type = file->read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET };
    if (fcntl(disk_file_fd(file), F_OFD_SETLK, &lock) == 0)
        return true;
    if (errno == EAGAIN || errno == EACCES)
        return error_set(err, "the image %s is in use, by another run or twice in this one", file->name);
    return error_errno(err, errno, "cannot lock the image %s", file->name);
}

static bool examine(struct host_file *host, struct error *err)
{
    struct stat st;
    if (fstat(host->fd, &st) != 0)
        return error_errno(err, errno, "cannot examine the image %s", host->file.name);
    host->is_device = S_ISBLK(st.st_mode);
    host->file.grows_with_zeroes = !host->is_device;
    if (!host->is_device && !S_ISREG(st.st_mode))
        return error_set(err, "%s is neither a file nor a block device", host->file.name);
    return true;
}

static bool cannot_open(const char *path, bool read_only, struct error *err)
{
    int code = errno;
    if (!read_only && (code == EACCES || code == EPERM || code == EROFS) && access(path, R_OK) == 0)
        return error_errno(err, code, "cannot open the image %s for writing ('doppel run' only reads it with --disk FILE,ro or --ephemeral)",
                           path);
    return error_errno(err, code, "cannot open the image %s", path);
}

static bool open_host(struct host_file *host, const char *path, const struct disk_file_options *options, struct error *err)
{
    /* O_NONBLOCK: an image may name a pipe as its backing file, and opening that must not hang. */
    int flags = (options->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (options->direct ? O_DIRECT : 0);
    if (options->use == DISK_FILE_CREATE)
        flags |= O_CREAT | O_EXCL;
    if (options->use == DISK_FILE_TEMPORARY)
        flags |= O_TMPFILE;
    host->fd = open(path, flags, options->use == DISK_FILE_TEMPORARY ? 0600 : 0666);
    if (host->fd >= 0)
        return examine(host, err) && lock_file(&host->file, err);
    if (options->use == DISK_FILE_OPEN)
        return cannot_open(path, options->read_only, err);
    return error_errno(err, errno, options->use == DISK_FILE_CREATE ? "cannot make the image %s" : "cannot make a temporary file in %s",
                       path);
}

struct disk_file *disk_file_open(const char *path, const struct disk_file_options *options, struct error *err)
{
    if (options->use == DISK_FILE_OPEN && disk_nbd_is_uri(path))
        return disk_nbd_open(path, options->read_only, err);
    if (options->use == DISK_FILE_OPEN && disk_vhost_user_is(path))
        return disk_vhost_user_open(path, options->memory, options->read_only, err);
    struct host_file *host = calloc(1, sizeof(*host));
    char *name = strdup(path);
    if (!host || !name) {
        free(host);
        free(name);
        error_set(err, "out of memory");
        return NULL;
    }
    host->file = (struct disk_file){ .ops = &host_ops, .name = name, .read_only = options->read_only };
    host->temporary = options->use == DISK_FILE_TEMPORARY;
    if (open_host(host, path, options, err))
        return &host->file;
    host_close(&host->file);
    return NULL;
}

int disk_file_fd(const struct disk_file *file)
{
    return file->ops == &host_ops ? host_of(file)->fd : -1;
}

bool disk_file_freeze(struct disk_file *file, struct error *err)
{
    int fd = disk_file_fd(file), flags = fcntl(fd, F_GETFL);
    file->read_only = true;
    if (fd < 0)
        return true;
    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_DIRECT) != 0)
        return error_errno(err, errno, "cannot change how %s is used", file->name);
    return lock_file(file, err);
}

void disk_file_close(struct disk_file *file)
{
    if (file)
        file->ops->close(file);
}

int disk_file_read(struct disk_file *file, void *buffer, uint64_t size, uint64_t offset)
{
    return file->ops->read(file, &(struct iovec){ buffer, size }, 1, offset);
}

int disk_file_write(struct disk_file *file, const void *buffer, uint64_t size, uint64_t offset)
{
    return file->ops->write(file, &(struct iovec){ (void *)buffer, size }, 1, offset);
}
