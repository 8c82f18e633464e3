/* `doppel media NAME [DRIVE] FILE|none`. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk_image.h"
#include "backend/disk_nbd.h"
#include "cli/arguments.h"
#include "cli/remote.h"

/* The machine's process opens the image, and works in another directory. */
static bool full_name(const char *file, char name[PATH_MAX], struct error *err)
{
    if (disk_nbd_is_uri(file))
        return snprintf(name, PATH_MAX, "%s", file) < PATH_MAX || error_set(err, "the name of the image is too long");
    return realpath(file, name) ? true : error_errno(err, errno, "cannot find %s", file);
}

/* NULL: err says why. */
static json_t *request(const struct arguments *arguments, struct error *err)
{
    const char *file = arguments->word[arguments->count - 1], *format = arguments->value[FLAG_media_format];
    enum disk_format parsed = DISK_FORMAT_BY_NAME;
    char name[PATH_MAX];
    bool medium = strcmp(file, "none");
    if (format && !disk_format_parse(format, &parsed)) {
        error_set(err, "'%s' is not a format of a disk image; there are raw and qcow2", format);
        return NULL;
    }
    if (medium && !full_name(file, name, err))
        return NULL;
    json_t *body = json_pack("{s:s?, s:b}", "path", medium ? name : NULL, "force", arguments->value[FLAG_media_force] != NULL);
    if (!body)
        error_set(err, "the name of %s is not UTF-8", file);
    if (body && arguments->count > 2)
        json_object_set_new(body, "id", json_string(arguments->word[1]));
    if (body && format)
        json_object_set_new(body, "image_type", json_string(parsed == DISK_FORMAT_RAW ? "Raw" : "Qcow2"));
    return body;
}

int command_media(int argc, char **argv)
{
    struct arguments arguments;
    struct client_answer answer = { 0 };
    struct error err;
    int status = arguments_parse(&arguments, COMMAND_media, 2, 3, argc, argv);
    if (status >= 0)
        return status;
    json_t *body = request(&arguments, &err);
    if (!body) {
        fprintf(stderr, "doppel: %s\n", err.text);
        return EXIT_USAGE;
    }
    struct client *client = remote_open(arguments.word[0], REMOTE_SECONDS, &status);
    if (!client)
        json_decref(body);
    else
        status = client_call(client, "PUT", "/doppel/v1/change-medium", body, -1, &answer, &err) ? EXIT_DONE
                                                                                                 : remote_failed(arguments.word[0], &answer, &err);
    client_answer_end(&answer);
    client_close(client);
    return status;
}
