#include "backend/disk_image.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk_raw.h"
#include "backend/disk_vhost_user.h"
#include "backend/iov.h"
#include "backend/qcow2.h"
#include "base/base.h"
#include "base/error.h"

enum { CHAIN_MAX = 32 };

/* --- formats --- */

static const char *const format_names[] = { [DISK_FORMAT_RAW] = "raw", [DISK_FORMAT_QCOW2] = "qcow2" };

bool disk_format_parse(const char *name, enum disk_format *format)
{
    for (unsigned i = DISK_FORMAT_RAW; i < ARRAY_SIZE(format_names); i++)
        if (!strcmp(name, format_names[i])) {
            *format = (enum disk_format)i;
            return true;
        }
    return false;
}

const char *disk_format_name(enum disk_format format)
{
    return format_names[format];
}

enum disk_format disk_format_of_name(const char *path)
{
    size_t length = strlen(path), end = strlen(".qcow2");
    return length > end && !strcmp(path + length - end, ".qcow2") ? DISK_FORMAT_QCOW2 : DISK_FORMAT_RAW;
}

static bool begins_like_qcow2(struct disk_file *file)
{
    uint32_t magic;
    return disk_file_read(file, &magic, sizeof(magic), 0) == 0 && be32toh(magic) == QCOW2_MAGIC;
}

/* The rule at the top of disk_image.h. */
static bool settle_format(struct disk_file *file, enum disk_format *format, bool direct, struct error *err)
{
    if (*format != DISK_FORMAT_BY_NAME)
        return true;
    *format = disk_format_of_name(file->name);
    /* O_DIRECT reads no four bytes; whoever asks for it has a device or file set up for that. */
    if (*format == DISK_FORMAT_RAW && !direct && begins_like_qcow2(file))
        return error_set(err, "%s begins like a qcow2 image, but its name does not end in .qcow2; say format=qcow2, or format=raw "
                              "if these are bytes of the guest's own", file->name);
    return true;
}

/* --- one image --- */

static struct disk_image *open_format(struct disk_file *file, const struct disk_image_options *options, struct error *err)
{
    enum disk_format format = options->format;
    bool fits = settle_format(file, &format, options->direct, err);
    if (fits && options->direct && (format == DISK_FORMAT_QCOW2 || disk_file_fd(file) < 0))
        fits = error_set(err, "%s: direct is for raw images in files and block devices", file->name);
    if (fits && format == DISK_FORMAT_QCOW2 && disk_vhost_user_is(file->name))
        fits = error_set(err, "%s: a disk in another process is raw; let that process read qcow2", file->name);
    if (!fits) {
        disk_file_close(file);
        return NULL;
    }
    if (format == DISK_FORMAT_QCOW2)
        return qcow2_open(file, options->read_only, err);
    return disk_raw_open(file, options->read_only, err);
}

static struct disk_image *open_one(const char *path, const struct disk_image_options *options, struct error *err)
{
    const struct disk_file_options how = { .read_only = options->read_only, .direct = options->direct, .memory = options->memory };
    struct disk_file *file = disk_file_open(path, &how, err);
    return file ? open_format(file, options, err) : NULL;
}

int disk_image_close(struct disk_image *image)
{
    int status = 0;
    while (image) {
        struct disk_image *backing = image->backing;
        struct disk_file *file = image->file;
        int failed = image->ops->close(image);
        disk_file_close(file);
        status = status ? status : failed;
        image = backing;
    }
    return status;
}

/* --- the chain behind an image --- */

/* Relative names are relative to the directory of the image that has them. */
bool disk_image_backing_path(const struct disk_image *image, char *path, struct error *err)
{
    const char *name = image->backing_name, *of = image->file->name;
    size_t protocol = strcspn(name, ":/");
    if (name[protocol] == ':')
        return error_set(err, "the backing file of %s, '%s', is named by a protocol, which Doppel does not support", of, name);
    const char *slash = *name == '/' ? NULL : strrchr(of, '/');
    int length = snprintf(path, PATH_MAX, "%.*s%s", slash ? (int)(slash + 1 - of) : 0, of, name);
    return length < PATH_MAX || error_set(err, "the name of the backing file of %s is too long", of);
}

static bool may_open(const struct disk_image *image, const struct disk_image_options *options, struct error *err)
{
    if (options->base_path)
        return true;
    if (!options->backing)
        return error_set(err, "%s has the backing file '%s'; files that an image names are opened only where you allow it: "
                              "backing=on for a virtual machine's disk, --backing for 'doppel disk'", image->file->name, image->backing_name);
    if (image->backing_format == DISK_FORMAT_BY_NAME)
        return error_set(err, "%s does not say which format its backing file has; 'qemu-img rebase -u -F FORMAT -b %s %s' notes it",
                         image->file->name, image->backing_name, image->file->name);
    return true;
}

static bool open_backing(struct disk_image *image, const struct disk_image_options *options, struct error *err)
{
    char path[PATH_MAX];
    if (!may_open(image, options, err) || (!options->base_path && !disk_image_backing_path(image, path, err)))
        return false;
    const struct disk_image_options behind = { .format = options->base_path ? options->base_format : image->backing_format,
                                               .read_only = true };
    image->backing = open_one(options->base_path ? options->base_path : path, &behind, err);
    return image->backing;
}

static bool open_chain(struct disk_image *top, const struct disk_image_options *options, struct error *err)
{
    struct disk_image_options next = *options;
    unsigned depth = 0;
    for (struct disk_image *image = top; image->backing_name; image = image->backing) {
        if (++depth == CHAIN_MAX)
            return error_set(err, "%s has more than %d images behind it, or they form a circle", top->file->name, CHAIN_MAX);
        if (!open_backing(image, &next, err))
            return false;
        next.base_path = NULL;
    }
    return true;
}

struct disk_image *disk_image_open(const char *path, const struct disk_image_options *options, struct error *err)
{
    struct disk_image_options how = *options;
    how.read_only |= options->ephemeral;
    how.direct &= !options->ephemeral;
    struct disk_image *image = open_one(path, &how, err), *top = image;
    if (image && !options->unlinked && !open_chain(image, &how, err))
        top = NULL;
    else if (image && options->ephemeral && !options->read_only)
        top = disk_image_overlay(image, NULL, err);
    if (!top)
        disk_image_close(image);
    return top;
}

/* --- new images --- */

static bool write_image(struct disk_file *file, const struct disk_image_plan *plan, struct error *err)
{
    int status = plan->format == DISK_FORMAT_QCOW2 ? qcow2_create(file, plan) : file->ops->truncate(file, plan->size);
    return status ? error_errno(err, status, "cannot write the image %s", file->name) : true;
}

bool disk_image_create(const char *path, const struct disk_image_plan *plan, struct error *err)
{
    struct disk_file *file = disk_file_open(path, &(struct disk_file_options){ .use = DISK_FILE_CREATE }, err);
    if (!file)
        return false;
    bool written = write_image(file, plan, err);
    disk_file_close(file);
    if (!written)
        remove(path);
    return written;
}

static const char *temporary_directory(void)
{
    const char *named = getenv("TMPDIR");
    return named && *named ? named : "/var/tmp";
}

static bool freeze(struct disk_image *image, struct error *err)
{
    if (image->read_only)
        return true;
    int status = image->ops->settle(image);
    if (status)
        return error_errno(err, status, "cannot write %s", image->file->name);
    image->read_only = true;
    return disk_file_freeze(image->file, err);
}

static struct disk_file *make_overlay(struct disk_image *image, const char *path, struct error *err)
{
    char name[PATH_MAX];
    const struct disk_file_options how = { .use = path ? DISK_FILE_CREATE : DISK_FILE_TEMPORARY };
    if (path && disk_file_fd(image->file) < 0) {
        error_set(err, "%s is no file of this host, and an overlay that names it could not be opened again", image->file->name);
        return NULL;
    }
    /* A temporary file has no use for a name: nobody opens it again. */
    if (path && !realpath(image->file->name, name)) {
        error_errno(err, errno, "cannot find %s", image->file->name);
        return NULL;
    }
    struct disk_file *file = disk_file_open(path ? path : temporary_directory(), &how, err);
    const struct disk_image_plan plan = { .format = DISK_FORMAT_QCOW2, .size = image->size, .backing_name = path ? name : NULL,
                                          .backing_format = image->ops->format };
    if (!file || write_image(file, &plan, err))
        return file;
    disk_file_close(file);
    return NULL;
}

struct disk_image *disk_image_overlay(struct disk_image *image, const char *path, struct error *err)
{
    struct disk_file *file = make_overlay(image, path, err);
    struct disk_image *top = file ? qcow2_open(file, false, err) : NULL;
    if (top && freeze(image, err)) {
        top->backing = image;
        return top;
    }
    if (top)
        disk_image_close(top);
    if (file && path)
        remove(path);
    return NULL;
}

/* --- reading and writing --- */

int disk_image_read(struct disk_image *image, void *buffer, uint64_t size, uint64_t offset)
{
    return image->ops->read(image, &(struct iovec){ buffer, size }, 1, offset);
}

int disk_image_write(struct disk_image *image, const void *buffer, uint64_t size, uint64_t offset)
{
    return image->ops->write(image, &(struct iovec){ (void *)buffer, size }, 1, offset);
}

int disk_image_read_behind(struct disk_image *image, const struct iovec *iov, int count, uint64_t offset)
{
    struct iovec part[DISK_IOV_MAX];
    uint64_t size = iov_size(iov, count), there = image && offset < image->size ? min_u64(size, image->size - offset) : 0;
    if (there < size)
        iov_clear(part, iov_slice(iov, count, there, size - there, part));
    return there ? image->ops->read(image, part, iov_slice(iov, count, 0, there, part), offset) : 0;
}
