/*
 * Disk images: a format (raw, qcow2) over a file (disk_file.h), and the chain of images behind it. Calls block until they
 * are done; block.h makes them asynchronous. Functions that return int return 0 or a positive errno.
 *
 * Which format an image has is never guessed from its contents alone, since a guest writes those: the user says it, or
 * the name does (a name that ends in .qcow2 is a qcow2 image, any other is raw). An image that is raw by its name alone but
 * begins like qcow2 is refused until the user says which it is.
 *
 * The backing file that an image names is opened (always read-only) only where the user allowed it: an image from
 * elsewhere could name any file of the host.
 */
#ifndef DOPPEL_BACKEND_DISK_IMAGE_H
#define DOPPEL_BACKEND_DISK_IMAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "backend/disk_file.h"

struct error;
struct disk_image;

enum disk_format { DISK_FORMAT_BY_NAME, DISK_FORMAT_RAW, DISK_FORMAT_QCOW2 };
enum { DISK_SECTOR = 512, DISK_IOV_MAX = 1000 };

/* Any thread, several at once; offsets and sizes in bytes, within the image; settle, resize and close alone. */
struct disk_image_ops {
    enum disk_format format;
    int (*read)(struct disk_image *image, const struct iovec *iov, int count, uint64_t offset);
    int (*write)(struct disk_image *image, const struct iovec *iov, int count, uint64_t offset);
    /* All writes that returned before are on stable storage, and will be found there. */
    int (*flush)(struct disk_image *image);
    int (*discard)(struct disk_image *image, uint64_t offset, uint64_t size);
    /* unmap: the space may be given back. */
    int (*write_zeroes)(struct disk_image *image, uint64_t offset, uint64_t size, bool unmap);
    /* From `offset` on, at most *size bytes: whether they are the image's own or those of what lies behind it; sets *size. */
    int (*is_own)(struct disk_image *image, uint64_t offset, uint64_t *size, bool *own);
    int (*resize)(struct disk_image *image, uint64_t size);
    /* Until the next write the file is complete, as if the image had been closed. */
    int (*settle)(struct disk_image *image);
    /* Flushes what is left; the status says whether that worked. The file is closed by the caller. */
    int (*close)(struct disk_image *image);
};

/* The head of every format's own struct. */
struct disk_image {
    const struct disk_image_ops *ops;
    struct disk_file *file;             /* owned */
    struct disk_image *backing;         /* owned; read-only; NULL: none, unallocated bytes are zeroes */
    char *backing_name;                 /* as the image has it; NULL: none */
    enum disk_format backing_format;    /* DISK_FORMAT_BY_NAME: the image does not tell */
    uint64_t size;                      /* bytes, a multiple of DISK_SECTOR */
    bool read_only;
};

struct disk_image_options {
    enum disk_format format;
    bool read_only;
    bool direct;                        /* O_DIRECT; raw images only */
    bool backing;                       /* backing files may be opened */
    bool ephemeral;                     /* what is written goes to a temporary overlay; the image itself is only read */
    bool unlinked;                      /* for tools that look at one image alone: its backing file is not opened */
    /* Opened in place of the backing file that the image names (allowed or not); NULL: that one. */
    const char *base_path;
    enum disk_format base_format;
    const struct shared_memory *memory;         /* as in disk_file.h */
};

/* NULL: err names the image and what is wrong with it. */
struct disk_image *disk_image_open(const char *path, const struct disk_image_options *options, struct error *err);
/* May be NULL. Not 0: what was written and never flushed may be lost. */
int disk_image_close(struct disk_image *image);

/*
 * Makes a qcow2 overlay on `image`, which nobody uses just now: the file `path`, which must not be there yet, or with NULL
 * a temporary one. Returns the new top, which owns `image` from now on; `image` is flushed and only read. NULL: nothing has changed.
 */
struct disk_image *disk_image_overlay(struct disk_image *image, const char *path, struct error *err);

/* What a new image is to be. */
struct disk_image_plan {
    enum disk_format format;            /* not BY_NAME */
    uint64_t size;                      /* bytes, a multiple of DISK_SECTOR */
    uint32_t cluster_size;              /* qcow2: bytes, a power of two, 512 to 2 MiB; 0: 64 KiB */
    bool lazy_refcounts;                /* qcow2 */
    const char *backing_name;           /* qcow2: absolute, or relative to the image's directory; NULL: none */
    enum disk_format backing_format;    /* with a backing name not BY_NAME */
};
/* Makes the file, which must not be there yet, and writes an empty image to it. */
bool disk_image_create(const char *path, const struct disk_image_plan *plan, struct error *err);

/* Where the file lies that the image names as its backing file; `path` has room for PATH_MAX. Opens nothing. */
bool disk_image_backing_path(const struct disk_image *image, char *path, struct error *err);

/*
 * Makes `to` read as `from` does, which is no larger; `to` is new and reads as zeroes so far. With own_only just what
 * `from` has itself, and not what lies behind it; `to` may then have any contents.
 */
int disk_image_copy(struct disk_image *from, struct disk_image *to, bool own_only);

/* "raw", "qcow2"; false: no such format. */
bool disk_format_parse(const char *name, enum disk_format *format);
const char *disk_format_name(enum disk_format format);
/* The rule at the top of this file, for a name without more: never BY_NAME. */
enum disk_format disk_format_of_name(const char *path);

int disk_image_read(struct disk_image *image, void *buffer, uint64_t size, uint64_t offset);
int disk_image_write(struct disk_image *image, const void *buffer, uint64_t size, uint64_t offset);
/* As read, but bytes past the end of the image, or of no image at all (NULL), are zeroes. */
int disk_image_read_behind(struct disk_image *image, const struct iovec *iov, int count, uint64_t offset);

#endif
