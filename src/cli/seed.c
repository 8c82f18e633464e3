#include "cli/seed.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine/seed_file.h"

static char *read_text(const char *path, const char *what, struct error *err)
{
    FILE *file = fopen(path, "re");
    if (!file) {
        error_errno(err, errno, "cannot read the %s in %s", what, path);
        return NULL;
    }
    char *text = malloc(SEED_TEXT_MAX + 1);
    size_t size = text ? fread(text, 1, SEED_TEXT_MAX + 1, file) : 0;
    bool failed = ferror(file);
    fclose(file);
    if (text && size && size <= SEED_TEXT_MAX && !failed) {
        text[size] = 0;
        if (strlen(text) == size)
            return text;
    }
    free(text);
    error_set(err, "%s is no text of at most 1M: it cannot be %s", path, what);
    return NULL;
}

bool seed_add(struct options *options, struct error *err)
{
    const char *data_path = options->user_data, *key_path = options->ssh_key;
    if (!data_path && !key_path)
        return true;
    char *data = data_path ? read_text(data_path, "user data", err) : NULL;
    char *keys = key_path && (data || !data_path) ? read_text(key_path, "public SSH key", err) : NULL;
    bool read = (data || !data_path) && (keys || !key_path);
    if (data && !seed_user_data_is_known(data))
        fprintf(stderr, "doppel: warning: cloud-init will not understand %s: its first line should be '#cloud-config', or '#!' and a shell\n", data_path);
    const struct seed_contents contents = { .name = options->name, .user_data = data, .ssh_keys = keys, .keys_from = key_path };
    char *path = read ? seed_add_disk(&contents, &options->config, err) : NULL;
    free(data);
    free(keys);
    return path && options_own(options, path, err);
}
