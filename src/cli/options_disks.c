/* Disks, CDs and what a cloud image finds on its first one. */
#include <stdlib.h>
#include <string.h>

#include "backend/block.h"
#include "cli/options_internal.h"

char *options_cut_at_comma(char *text)
{
    char *to = text;
    for (char *from = text; *from; from++) {
        if (*from == ',' && from[1] != ',') {
            *to = 0;
            return from + 1;
        }
        from += *from == ',';
        *to++ = *from;
    }
    *to = 0;
    return NULL;
}

char *options_value_of(char *part, const char *key)
{
    size_t length = strlen(key);
    return !strncmp(part, key, length) && part[length] == '=' ? part + length + 1 : NULL;
}

static bool disk_bus(struct disk_config *disk, const char *value, struct error *err)
{
    return (disk_bus_parse(value, &disk->bus) && disk->bus != DISK_CDROM) ||
           error_set(err, "a disk cannot be put on '%s'; there are virtio, ahci, nvme and usb (and --cdrom)", value);
}

static bool disk_part(struct disk_config *disk, char *part, struct error *err)
{
    const char *value;
    if (!strcmp(part, "ro"))
        disk->image.read_only = true;
    else if (!strcmp(part, "direct"))
        disk->image.direct = true;
    else if (!strcmp(part, "ephemeral"))
        disk->image.ephemeral = true;
    else if (!strcmp(part, "backing=on") || !strcmp(part, "backing=off"))
        disk->image.backing = !strcmp(part, "backing=on");
    else if ((value = options_value_of(part, "format")) && disk_format_parse(value, &disk->image.format))
        return true;
    else if (value)
        return error_set(err, "'%s' is not a format of a disk image; there are raw and qcow2", value);
    else if ((value = options_value_of(part, "serial")))
        disk->serial = value;
    else if ((value = options_value_of(part, "bus")))
        return disk_bus(disk, value, err);
    else if ((value = options_value_of(part, "engine")) && !strcmp(value, "uring"))
        disk->engine = BLOCK_ENGINE_URING;
    else if (value && !strcmp(value, "threads"))
        disk->engine = BLOCK_ENGINE_THREADS;
    else
        return error_set(err, "'%s' is not a setting of a disk; there are ro, format=raw|qcow2, backing=on, ephemeral, serial=TEXT, "
                              "bus=virtio|ahci|nvme|usb, direct and engine=uring|threads (a comma in a file name is written twice)", part);
    return true;
}

/* A disk whose name is the whole text. */
static bool add_disk(struct options *options, const char *path, struct error *err)
{
    if (options->config.disk_count == MACHINE_DISKS_MAX)
        return error_set(err, "a machine has at most %d disks", MACHINE_DISKS_MAX);
    options->config.disk[options->config.disk_count++] = (struct disk_config){ .path = path };
    return true;
}

/* The CD's own mark tells it from a disk (ECMA-119 §8.1 "Format of a volume descriptor"): in its 17th block. */
static bool is_cd(const char *path)
{
    enum { DESCRIPTOR = 16 * 2048, MARK = 1, MARK_SIZE = 5 };
    char mark[MARK_SIZE] = "";
    FILE *file = fopen(path, "rbe");
    if (!file)
        return false;
    bool read = fseek(file, DESCRIPTOR + MARK, SEEK_SET) == 0 && fread(mark, sizeof(mark), 1, file) == 1;
    fclose(file);
    return read && !memcmp(mark, "CD001", MARK_SIZE);
}

bool option_cdrom(struct options *options, const char *value, struct error *err)
{
    if (!add_disk(options, strcmp(value, "none") ? value : NULL, err))
        return false;
    struct disk_config *disk = &options->config.disk[options->config.disk_count - 1];
    disk->bus = DISK_CDROM;
    disk->image.read_only = true;
    return true;
}

bool options_add_file(struct options *options, const char *path, struct error *err)
{
    return is_cd(path) ? option_cdrom(options, path, err) : add_disk(options, path, err);
}

bool option_disk(struct options *options, const char *value, struct error *err)
{
    if (options->config.disk_count == MACHINE_DISKS_MAX)
        return error_set(err, "a machine has at most %d disks", MACHINE_DISKS_MAX);
    char *text = strdup(value);
    if (!options_own(options, text, err))
        return false;
    struct disk_config *disk = &options->config.disk[options->config.disk_count++];
    char *part = options_cut_at_comma(text);
    disk->path = text;
    while (part) {
        char *next = options_cut_at_comma(part);
        if (!disk_part(disk, part, err))
            return false;
        part = next;
    }
    return *disk->path || error_set(err, "--disk needs the name of an image");
}

bool option_user_data(struct options *options, const char *value, struct error *err)
{
    options->user_data = value;
    return true;
}

bool option_ssh_key(struct options *options, const char *value, struct error *err)
{
    options->ssh_key = value;
    return true;
}

bool option_ephemeral(struct options *options, const char *value, struct error *err)
{
    options->ephemeral = true;
    return true;
}
