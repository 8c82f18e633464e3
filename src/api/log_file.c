#include "api/log_file.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/base.h"
#include "base/error.h"

enum { SIZE_MAX_BYTES = 1024 * 1024 };

static int create(const struct log_file *file)
{
    return openat(file->directory, file->name, O_WRONLY | O_APPEND | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
}

bool log_file_open(struct log_file *file, int directory, const char *name, struct error *err)
{
    *file = (struct log_file){ .directory = directory, .name = name };
    file->fd = create(file);
    return file->fd >= 0 || error_errno(err, errno, "cannot write the log %s", name);
}

static void turn(struct log_file *file)
{
    char old[64];
    snprintf(old, sizeof(old), "%s.1", file->name);
    if (renameat(file->directory, file->name, file->directory, old) != 0)
        return;
    close(file->fd);
    file->fd = create(file);
    file->size = 0;
}

void log_file_write(struct log_file *file, const void *data, size_t size)
{
    if (file->size + size > SIZE_MAX_BYTES)
        turn(file);
    ssize_t written = file->fd < 0 ? -1 : write(file->fd, data, size);
    if (written > 0)
        file->size += (size_t)written;
}

void log_file_close(struct log_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
    file->fd = -1;
}

static ssize_t write_stream(void *cookie, const char *data, size_t size)
{
    log_file_write(cookie, data, size);
    return (ssize_t)size;
}

FILE *log_file_stream(struct log_file *file)
{
    FILE *stream = fopencookie(file, "w", (cookie_io_functions_t){ .write = write_stream });
    if (stream)
        setvbuf(stream, NULL, _IOLBF, 0);
    return stream;
}
