/* Copies of disks, and of whole files in general: blocks are shared where the host's file system can, holes stay holes. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "machine/snapshot_internal.h"

enum { BUFFER = 1 << 20 };

static bool copy_run(int from, int to, off_t at, off_t end, uint8_t *buffer)
{
    while (at < end) {
        ssize_t got = pread(from, buffer, min_u64(BUFFER, (uint64_t)(end - at)), at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        for (ssize_t done = 0; done < got;) {
            ssize_t wrote = pwrite(to, buffer + done, (size_t)(got - done), at + done);
            if (wrote < 0 && errno != EINTR)
                return false;
            done += wrote > 0 ? wrote : 0;
        }
        at += got;
    }
    return true;
}

static bool copy_data(int from, int to, off_t size)
{
    uint8_t *buffer = malloc(BUFFER);
    bool ok = buffer && ftruncate(to, size) == 0;
    for (off_t at = 0; ok && at < size;) {
        off_t data = lseek(from, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        off_t hole = data < 0 ? -1 : lseek(from, data, SEEK_HOLE);
        if (hole < 0)                       /* a block device knows no holes */
            data = at, hole = size;
        ok = copy_run(from, to, data, hole, buffer);
        at = hole;
    }
    free(buffer);
    return ok;
}

bool snapshot_copy_file(int from_directory, const char *from, int to_directory, const char *to, struct error *err)
{
    int in = openat(from_directory, from, O_RDONLY | O_CLOEXEC);
    if (in < 0)
        return error_errno(err, errno, "cannot open the disk %s", from);
    int out = openat(to_directory, to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (out < 0) {
        error_errno(err, errno, "cannot make the disk %s", to);
        close(in);
        return false;
    }
    bool ok = ioctl(out, FICLONE, in) == 0 || copy_data(in, out, lseek(in, 0, SEEK_END));
    if (!ok) {
        error_errno(err, errno, "cannot copy the disk %s", from);
        unlinkat(to_directory, to, 0);
    }
    close(in);
    close(out);
    return ok;
}
