/*
 * What a disk image's bytes lie in: positional reads and writes, and a barrier. The image formats (disk_image.h) know
 * nothing else of the host, so that a test can put memory, or a record of what was written, in a file's place.
 *
 * Any thread, several at once. Functions that return int return 0 or a positive errno.
 */
#ifndef DOPPEL_BACKEND_DISK_FILE_H
#define DOPPEL_BACKEND_DISK_FILE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct error;
struct disk_file;
struct shared_memory;

struct disk_file_ops {
    /* Bytes past the end read as zeroes. */
    int (*read)(struct disk_file *file, const struct iovec *iov, int count, uint64_t offset);
    /* Grows the file where needed. */
    int (*write)(struct disk_file *file, const struct iovec *iov, int count, uint64_t offset);
    /* Every write that returned before is on stable storage; no write that begins later gets there before it. */
    int (*flush)(struct disk_file *file);
    /* The bytes are of no use any more: a hint. */
    void (*punch)(struct disk_file *file, uint64_t offset, uint64_t size);
    int (*truncate)(struct disk_file *file, uint64_t size);
    uint64_t (*size)(struct disk_file *file);               /* bytes */
    void (*close)(struct disk_file *file);
};

/* The head of every kind of file. */
struct disk_file {
    const struct disk_file_ops *ops;
    char *name;                 /* for messages, and what backing names are relative to; the kind frees it */
    bool read_only;
    bool grows_with_zeroes;     /* what was never written beyond the end reads as zeroes: no block device */
};

enum disk_file_use {
    DISK_FILE_OPEN,             /* it is there */
    DISK_FILE_CREATE,           /* it must not be there yet */
    DISK_FILE_TEMPORARY,        /* path is a directory; the file has no name, goes with the process, and is never flushed */
};
struct disk_file_options {
    enum disk_file_use use;
    bool read_only;
    bool direct;                /* O_DIRECT: every buffer, offset and size is the caller's care */
    const struct shared_memory *memory;         /* where buffers may lie, for a disk in another process; NULL: nothing is known */
};

/*
 * An NBD server's export, if the name is its URI (disk_nbd.h); a disk in another process (disk_vhost_user.h); else a file or block device of the
 * host, locked (F_OFD_SETLK: shared when read-only, else exclusive). NULL: err names file and reason.
 */
struct disk_file *disk_file_open(const char *path, const struct disk_file_options *options, struct error *err);
/* The descriptor of a host's file; -1 if it is none. */
int disk_file_fd(const struct disk_file *file);
/* Nothing under way: it is only read from now on, and others may do the same. */
bool disk_file_freeze(struct disk_file *file, struct error *err);

void disk_file_close(struct disk_file *file);       /* may be NULL */
int disk_file_read(struct disk_file *file, void *buffer, uint64_t size, uint64_t offset);
int disk_file_write(struct disk_file *file, const void *buffer, uint64_t size, uint64_t offset);

#endif
