/* `doppel disk check`: whether the references in a qcow2 image and their counts agree. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>

#include "backend/qcow2.h"
#include "cli/disk.h"
#include "cli/exit_status.h"

/* As diff(1) has it: 0 is good, 1 is not. */
enum { EXIT_FOUND = 1 };

static void print_text(const struct qcow2_findings *found)
{
    printf("%" PRIu64 " clusters in the file, %" PRIu64 " allocated to the disk, %" PRIu64 " of them compressed\n", found->clusters, found->data,
           found->compressed);
    if (found->broken)
        printf("%" PRIu64 " entries are damaged; read with 'doppel disk convert' what can be read\n", found->broken);
    if (found->missing)
        printf("%" PRIu64 " clusters are in use and not counted so; --repair counts again\n", found->missing);
    if (found->leaks)
        printf("%" PRIu64 " clusters are counted and not in use, which costs space only; --repair gives it back\n", found->leaks);
    if (!found->broken && !found->missing && !found->leaks)
        puts("no errors");
}

static void print_json(const struct qcow2_findings *found)
{
    json_t *json = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "clusters", (json_int_t)found->clusters, "allocated", (json_int_t)found->data,
                             "compressed", (json_int_t)found->compressed, "leaks", (json_int_t)found->leaks, "missing",
                             (json_int_t)found->missing, "broken", (json_int_t)found->broken);
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
}

static int repair(struct qcow2 *q, struct qcow2_findings *found)
{
    if (found->broken || (!found->missing && !found->leaks))
        return 0;
    int status = qcow2_mark(q, true);
    if (!status)
        status = qcow2_recount(q);
    return status ? status : qcow2_check(q, found);
}

int disk_check(const struct arguments *arguments, struct error *err)
{
    const bool writes = arguments->value[FLAG_disk_repair];
    const char *path = arguments->word[1];
    struct disk_image *image = disk_open_file(arguments, path, (struct disk_image_options){ .read_only = !writes, .unlinked = true }, err);
    struct qcow2_findings found = { 0 };
    if (!image)
        return EXIT_USAGE;
    int status = 0;
    bool qcow2 = image->ops->format == DISK_FORMAT_QCOW2;
    if (qcow2)
        status = qcow2_check(qcow2_of(image), &found);
    if (qcow2 && !status && writes)
        status = repair(qcow2_of(image), &found);
    int closed = disk_image_close(image);
    status = status ? status : closed;
    if (!qcow2)
        return error_set(err, "%s is a raw image, in which there is nothing to check", path), EXIT_USAGE;
    if (status)
        return error_errno(err, status, "cannot check %s", path), EXIT_HOST_ERROR;
    (arguments->value[FLAG_disk_json] ? print_json : print_text)(&found);
    return found.broken || found.missing || found.leaks ? EXIT_FOUND : EXIT_DONE;
}
