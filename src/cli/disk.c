/* `doppel disk`: makes and changes disk images. What it looks at only is in disk_info.c and disk_check.c. */
#include "cli/disk.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "cli/exit_status.h"
#include "cli/help.h"
#include "cli/size.h"
#include "cli/suggest.h"

static int done(bool ok)
{
    return ok ? EXIT_DONE : EXIT_USAGE;
}

/* --- helpers --- */

static bool format_of(const struct arguments *arguments, enum flag_id flag, enum disk_format *format, struct error *err)
{
    const char *text = arguments->value[flag];
    if (!text || disk_format_parse(text, format))
        return true;
    return error_set(err, "'%s' is not a format of a disk image; there are raw and qcow2", text);
}

struct disk_image *disk_open_file(const struct arguments *arguments, const char *path, struct disk_image_options options, struct error *err)
{
    if (!format_of(arguments, FLAG_disk_format, &options.format, err))
        return NULL;
    options.backing = arguments->value[FLAG_disk_backing];
    return disk_image_open(path, &options, err);
}

void disk_print_size(const char *what, uint64_t size)
{
    static const char *const unit[] = { "bytes", "KiB", "MiB", "GiB", "TiB" };
    unsigned power = 0;
    while (power < ARRAY_SIZE(unit) - 1 && size >> (10 * (power + 1)))
        power++;
    if (power)
        printf("%-16s %.4g %s (%" PRIu64 " bytes)\n", what, (double)size / (double)BIT(10 * power), unit[power], size);
    else
        printf("%-16s %" PRIu64 " bytes\n", what, size);
}

static bool disk_size(const char *text, uint64_t *size, struct error *err)
{
    if (!size_parse(text, size) || !*size)
        return error_set(err, "'%s' is not a size; write a number with K, M, G or T, such as 20G", text);
    return true;
}

/* Closes; the changes are only there if that works. */
static bool close_written(struct disk_image *image, bool ok, const char *path, struct error *err)
{
    int status = disk_image_close(image);
    return ok && status ? error_errno(err, status, "cannot write %s", path) : ok;
}

/* --- create --- */

/* Settings of a new image, from the command line. */
static bool plan_of(const struct arguments *arguments, enum flag_id format, const char *path, struct disk_image_plan *plan, struct error *err)
{
    const char *cluster = arguments->value[FLAG_disk_cluster_size];
    uint64_t size = 0;
    plan->format = disk_format_of_name(path);
    plan->lazy_refcounts = arguments->value[FLAG_disk_lazy_refcounts];
    if (!format_of(arguments, format, &plan->format, err))
        return false;
    if (cluster && (!size_parse(cluster, &size) || size < 4 * KiB || size > 2 * MiB || size & (size - 1)))
        return error_set(err, "'%s' is not the size of a cluster; it is a power of two from 4K to 2M", cluster);
    plan->cluster_size = (uint32_t)size;
    if (plan->format == DISK_FORMAT_RAW && (cluster || plan->lazy_refcounts))
        return error_set(err, "a raw image has neither clusters nor reference counts; say --%s qcow2", flag_at(format)->name);
    return true;
}

/* Opened as the user named it, to learn its size and format. The name is kept relative to the new image's directory, or absolute. */
static bool plan_overlay(const struct arguments *arguments, struct disk_image_plan *plan, char *name, struct error *err)
{
    const char *base = arguments->value[FLAG_disk_base];
    struct disk_image_options options = { .read_only = true, .unlinked = true };
    if (!base)
        return true;
    if (plan->format != DISK_FORMAT_QCOW2)
        return error_set(err, "an overlay is a qcow2 image; end its name in .qcow2, or say --format qcow2");
    if (!format_of(arguments, FLAG_disk_base_format, &options.format, err))
        return false;
    struct disk_image *image = disk_image_open(base, &options, err);
    if (!image)
        return false;
    plan->size = plan->size ? plan->size : image->size;
    plan->backing_format = image->ops->format;
    plan->backing_name = name;
    disk_image_close(image);
    return realpath(base, name) ? true : error_errno(err, errno, "cannot find %s", base);
}

static int create(const struct arguments *arguments, struct error *err)
{
    struct disk_image_plan plan = { 0 };
    char base[PATH_MAX];
    const char *path = arguments->word[1], *size = arguments->count > 2 ? arguments->word[2] : NULL;
    if (!size && !arguments->value[FLAG_disk_base])
        return done(error_set(err, "how large is %s to be? doppel disk create FILE SIZE", path));
    return done((!size || disk_size(size, &plan.size, err)) && plan_of(arguments, FLAG_disk_format, path, &plan, err) &&
                plan_overlay(arguments, &plan, base, err) && disk_image_create(path, &plan, err));
}

/* --- resize --- */

/* "20G", "+1G". */
static bool new_size(const char *text, uint64_t old, uint64_t *size, struct error *err)
{
    bool more = *text == '+';
    if (!disk_size(text + more, size, err))
        return false;
    *size += more ? old : 0;
    return true;
}

static int resize(const struct arguments *arguments, struct error *err)
{
    const char *path = arguments->word[1];
    struct disk_image *image = disk_open_file(arguments, path, (struct disk_image_options){ 0 }, err);
    uint64_t size;
    if (!image)
        return EXIT_USAGE;
    bool ok = new_size(arguments->word[2], image->size, &size, err);
    if (ok && size < image->size && !arguments->value[FLAG_disk_shrink])
        ok = error_set(err, "%s would become smaller, and what lies beyond the new size be lost; if that is meant, say --shrink", path);
    int status = ok ? image->ops->resize(image, size) : 0;
    if (status)
        ok = error_errno(err, status, "cannot resize %s", path);
    return done(close_written(image, ok, path, err));
}

/* --- commit --- */

static struct disk_image *open_base(const struct disk_image *overlay, struct error *err)
{
    char path[PATH_MAX];
    const struct disk_image_options options = { .format = overlay->backing_format, .backing = true };
    return disk_image_backing_path(overlay, path, err) ? disk_image_open(path, &options, err) : NULL;
}

static bool commit_to(struct disk_image *overlay, struct disk_image *base, struct error *err)
{
    int status = overlay->size > base->size ? base->ops->resize(base, overlay->size) : 0;
    if (!status)
        status = disk_image_copy(overlay, base, true);
    return status ? error_errno(err, status, "cannot copy %s to %s", overlay->file->name, base->file->name) : true;
}

static int commit(const struct arguments *arguments, struct error *err)
{
    const char *path = arguments->word[1];
    /* For writing, although it is only read: so nobody else writes to it meanwhile. */
    struct disk_image *overlay = disk_open_file(arguments, path, (struct disk_image_options){ .unlinked = true }, err);
    if (!overlay)
        return EXIT_USAGE;
    bool ok = overlay->backing_name || error_set(err, "%s has no backing file to write to", path);
    if (ok && !arguments->value[FLAG_disk_backing])
        ok = error_set(err, "%s names '%s' as its backing file; if that is what you want to be written to, say --backing", path,
                       overlay->backing_name);
    struct disk_image *base = ok ? open_base(overlay, err) : NULL;
    ok = base && close_written(base, commit_to(overlay, base, err), overlay->backing_name, err);
    disk_image_close(overlay);
    return done(ok);
}

/* --- convert --- */

static bool convert_to(struct disk_image *from, const char *path, struct disk_image_plan *plan, struct error *err)
{
    const struct disk_image_options options = { .format = plan->format };
    plan->size = from->size;
    struct disk_image *to = disk_image_create(path, plan, err) ? disk_image_open(path, &options, err) : NULL;
    if (!to)
        return false;
    int status = disk_image_copy(from, to, false);
    if (status)
        error_errno(err, status, "cannot copy %s to %s", from->file->name, path);
    bool ok = close_written(to, !status, path, err);
    if (!ok)
        unlink(path);
    return ok;
}

static int convert(const struct arguments *arguments, struct error *err)
{
    const char *path = arguments->word[2];
    struct disk_image_plan plan = { 0 };
    if (!plan_of(arguments, FLAG_disk_to, path, &plan, err))
        return EXIT_USAGE;
    struct disk_image *from = disk_open_file(arguments, arguments->word[1], (struct disk_image_options){ .read_only = true }, err);
    bool ok = from && convert_to(from, path, &plan, err);
    disk_image_close(from);
    return done(ok);
}

/* --- the command --- */

static const struct subcommand {
    const char *name, *arguments;
    int least, most;        /* words after the name */
    int (*run)(const struct arguments *arguments, struct error *err);   /* the exit status; err has a text if something is to be said */
} subcommands[] = {
    { "create", "FILE [SIZE]", 1, 2, create },
    { "info", "FILE", 1, 1, disk_info },
    { "check", "FILE", 1, 1, disk_check },
    { "resize", "FILE [+]SIZE", 2, 2, resize },
    { "commit", "FILE", 1, 1, commit },
    { "convert", "FILE NEW", 2, 2, convert },
};

static const char *name_at(unsigned i)
{
    return i < ARRAY_SIZE(subcommands) ? subcommands[i].name : NULL;
}

static int run(const struct subcommand *subcommand, const struct arguments *arguments)
{
    struct error err = { "" };
    int words = arguments->count - 1;
    if (words < subcommand->least || words > subcommand->most) {
        fprintf(stderr, "doppel: usage: doppel disk %s %s\n", subcommand->name, subcommand->arguments);
        return EXIT_USAGE;
    }
    int status = subcommand->run(arguments, &err);
    if (*err.text)
        fprintf(stderr, "doppel: %s\n", err.text);
    return status;
}

int command_disk(int argc, char **argv)
{
    struct arguments arguments;
    int status = arguments_parse(&arguments, COMMAND_disk, 1, -1, argc, argv);
    if (status >= 0)
        return status;
    for (unsigned i = 0; i < ARRAY_SIZE(subcommands); i++)
        if (!strcmp(subcommands[i].name, arguments.word[0]))
            return run(&subcommands[i], &arguments);
    const char *near = suggest(arguments.word[0], name_at);
    fprintf(stderr, "doppel: 'disk' does not know '%s'%s%s%s\n", arguments.word[0], near ? "; did you mean '" : "; 'doppel help disk' lists "
            "what it knows", near ? near : "", near ? "'?" : "");
    return EXIT_USAGE;
}
