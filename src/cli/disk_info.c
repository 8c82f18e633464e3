/* `doppel disk info`: what an image is. Opens that image alone, or with --backing the chain behind it. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/qcow2.h"
#include "cli/disk.h"
#include "cli/exit_status.h"

static uint64_t bytes_on_host(const struct disk_image *image)
{
    struct stat st;
    return fstat(disk_file_fd(image->file), &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

static bool not_closed(const struct qcow2 *q)
{
    return q->incompatible & QCOW2_INCOMPATIBLE_DIRTY;
}

static void print_qcow2(const struct qcow2 *q)
{
    printf("%-16s %u\n", "version", q->version);
    disk_print_size("cluster size", q->cluster_size);
    printf("%-16s %s\n", "lazy refcounts", q->lazy ? "yes" : "no");
    if (q->compression == QCOW2_COMPRESSION_ZSTD)
        printf("%-16s zstd\n", "compression");
    if (not_closed(q))
        printf("%-16s not closed properly; that is put right when it is next opened for writing\n", "state");
    if (q->incompatible & QCOW2_INCOMPATIBLE_CORRUPT)
        printf("%-16s marked as corrupt\n", "state");
    if (!q->image.backing_name)
        return;
    printf("%-16s %s\n", "backing file", q->image.backing_name);
    printf("%-16s %s\n", "its format", q->image.backing_format ? disk_format_name(q->image.backing_format) : "not said");
}

static void add_qcow2(json_t *json, const struct qcow2 *q)
{
    json_object_update_new(json, json_pack("{s:i, s:I, s:b, s:b, s:b}", "version", (int)q->version, "cluster_size", (json_int_t)q->cluster_size,
                                           "lazy_refcounts", q->lazy, "not_closed", not_closed(q), "corrupt",
                                           (int)(q->incompatible & QCOW2_INCOMPATIBLE_CORRUPT)));
    if (q->image.backing_name)
        json_object_set_new(json, "backing_file", json_string(q->image.backing_name));
    if (q->image.backing_name && q->image.backing_format)
        json_object_set_new(json, "backing_format", json_string(disk_format_name(q->image.backing_format)));
}

/* With what lies behind it as `backing`. */
static json_t *to_json(struct disk_image *image)
{
    json_t *json = json_pack("{s:s, s:s, s:I, s:I}", "file", image->file->name, "format", disk_format_name(image->ops->format), "size",
                             (json_int_t)image->size, "bytes_on_host", (json_int_t)bytes_on_host(image));
    if (image->ops->format == DISK_FORMAT_QCOW2)
        add_qcow2(json, qcow2_of(image));
    if (image->backing)
        json_object_set_new(json, "backing", to_json(image->backing));
    return json;
}

static void print_json(struct disk_image *image)
{
    json_t *json = to_json(image);
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
}

static void print_text(struct disk_image *image)
{
    printf("%-16s %s\n%-16s %s\n", "file", image->file->name, "format", disk_format_name(image->ops->format));
    disk_print_size("size", image->size);
    disk_print_size("on the host", bytes_on_host(image));
    if (image->ops->format == DISK_FORMAT_QCOW2)
        print_qcow2(qcow2_of(image));
}

int disk_info(const struct arguments *arguments, struct error *err)
{
    const struct disk_image_options options = { .read_only = true, .unlinked = !arguments->value[FLAG_disk_backing] };
    struct disk_image *image = disk_open_file(arguments, arguments->word[1], options, err);
    if (!image)
        return EXIT_USAGE;
    if (arguments->value[FLAG_disk_json])
        print_json(image);
    for (struct disk_image *one = image; !arguments->value[FLAG_disk_json] && one; one = one->backing) {
        print_text(one);
        if (one->backing)
            putchar('\n');
    }
    disk_image_close(image);
    return EXIT_DONE;
}
