/*
 * A snapshot's disks: copies of files (blocks are shared where the host's file system can, holes stay holes), or images that stay where they are
 * while the machine goes on in overlays on them.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/block.h"
#include "base/base.h"
#include "machine/firmware.h"
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

/* --- images that stay in place --- */

static json_int_t modified_ns(const struct stat *st) { return (json_int_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec; }

json_t *snapshot_disk_note(const char *path, struct error *err)
{
    struct stat st;
    if (stat(path, &st) == 0 && S_ISREG(st.st_mode))
        return json_pack("{s:I, s:I}", "size", (json_int_t)st.st_size, "modified_ns", modified_ns(&st));
    error_set(err, "the disk %s is no file of this host that could stay as it is", path);
    return NULL;
}

/* Who wrote to it since has changed what the guest's memory believes of its disk. */
static bool is_as_noted(const char *path, const json_t *note, struct error *err)
{
    struct stat st;
    json_int_t then = json_integer_value(json_object_get(note, "modified_ns"));
    if (stat(path, &st) < 0)
        return error_errno(err, errno, "the snapshot's disk %s has to be where it was", path);
    if (S_ISREG(st.st_mode) && st.st_size == json_integer_value(json_object_get(note, "size")) && modified_ns(&st) == then)
        return true;
    return error_set(err, "the disk %s was changed after the snapshot was taken, which therefore cannot be used. (Was it only copied or moved? Then "
                     "'touch -d @%lld.%09lld' gives it its time back)", path, then / 1000000000, then % 1000000000);
}

bool snapshot_disk_find(const struct snapshot *snapshot, unsigned i, char *path, bool *in_place, struct error *err)
{
    const struct snapshot_layer *layer = &snapshot->layer[0];
    const json_t *disks = json_object_get(json_object_get(layer->manifest, "config"), "disks");
    const json_t *note = json_object_get(json_array_get(disks, i), DISK_IN_PLACE);
    char relative[PATH_MAX];
    *in_place = note;
    if (note)
        return snprintf(path, PATH_MAX, "%s", snapshot->config.disk[i].path) < PATH_MAX && is_as_noted(path, note, err);
    snprintf(relative, sizeof(relative), "%s/disk-%u", layer->path, i);
    return realpath(relative, path) || error_errno(err, errno, "cannot find the disk %s", relative);
}

/* disk-N.qcow2, as that of a restored machine; the next one disk-N-2.qcow2. */
static bool free_name(const char *directory, unsigned i, char path[PATH_MAX], struct error *err)
{
    for (unsigned turn = 1; turn < INT_MAX; turn++) {
        char suffix[16] = "";
        if (turn > 1)
            snprintf(suffix, sizeof(suffix), "-%u", turn);
        if (snprintf(path, PATH_MAX, "%s/disk-%u%s.qcow2", directory, i, suffix) >= PATH_MAX)
            break;
        if (access(path, F_OK) != 0)
            return true;
    }
    return error_set(err, "there is no name for an overlay in %s", directory);
}

/* UEFI's variables lie beside the first disk: they stay where they are. */
static bool keep_variables(struct machine *machine)
{
    char path[PATH_MAX];
    struct machine_config *config = &machine->config;
    if (!config->firmware || strcmp(config->firmware, "uefi") || config->uefi_variables || !firmware_variables_path(config, path, sizeof(path)))
        return true;
    config->uefi_variables = machine_keep_text(machine, path);
    return config->uefi_variables;
}

bool snapshot_disk_directory(const char *path, struct error *err)
{
    int directory = mkdir(path, 0777) == 0 || errno == EEXIST ? open(path, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    bool there = directory >= 0 && faccessat(directory, ".", W_OK | X_OK, 0) == 0;
    int why = errno;
    if (directory >= 0)
        close(directory);
    return there || error_errno(err, why, "cannot put overlays in the directory %s", path);
}

bool snapshot_disk_go_over(struct machine *machine, unsigned i, const char *directory, struct error *err)
{
    char real[PATH_MAX], path[PATH_MAX];
    struct disk_config *disk = &machine->config.disk[i];
    if (!realpath(directory, real))
        return error_errno(err, errno, "cannot find the directory %s", directory);
    if (!free_name(real, i, path, err))
        return false;
    const char *kept = keep_variables(machine) ? machine_keep_text(machine, path) : NULL;
    if (!kept)
        return error_set(err, "no memory for the name of an overlay");
    if (!block_switch_to_overlay(machine->block[i], kept, err))
        return false;
    disk->path = kept;
    disk->image = (struct disk_image_options){ .format = DISK_FORMAT_QCOW2, .backing = true };
    return snapshot_sync_directory(real, err);
}
