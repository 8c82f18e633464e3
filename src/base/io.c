#include "base/io.h"

#include <errno.h>
#include <stdint.h>
#include <unistd.h>

bool io_read_all(int fd, void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        errno = 0;
        ssize_t got = read(fd, (uint8_t *)data + done, size - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        done += (size_t)got;
    }
    return true;
}

bool io_write_all(int fd, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        errno = 0;
        ssize_t wrote = write(fd, (const uint8_t *)data + done, size - done);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return false;
        done += (size_t)wrote;
    }
    return true;
}
