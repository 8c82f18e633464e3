/*
 * The seed is kept under the cache directory by the hash of what is in it. Its instance id is made of that hash and the machine's name: cloud-init does its
 * work once for each id, so the same machine is the same instance at every boot.
 */
#include "machine/seed_file.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "base/io.h"
#include "machine/seed.h"

/* --- what is in it --- */

/* cloud-init documentation, "User-Data Formats" */
bool seed_user_data_is_known(const char *text)
{
    static const char *const beginnings[] = { "#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler", "#upstart-job", "## template:",
                                              "Content-Type:", "MIME-Version:", "From nobody" };
    for (unsigned i = 0; i < sizeof(beginnings) / sizeof(beginnings[0]); i++)
        if (!strncmp(text, beginnings[i], strlen(beginnings[i])))
            return true;
    return false;
}

static bool looks_like_key(const char *line)
{
    return !strncmp(line, "ssh-", 4) || !strncmp(line, "ecdsa-", 6) || !strncmp(line, "sk-", 3);
}

static void write_key(FILE *out, const char *key, size_t length)
{
    fputc('"', out);
    for (size_t i = 0; i < length; i++)
        fprintf(out, iscntrl((unsigned char)key[i]) ? " " : key[i] == '"' || key[i] == '\\' ? "\\%c" : "%c", key[i]);
    fputc('"', out);
}

/* A list in JSON, which is YAML; nothing if there are to be no keys. */
static bool write_keys(FILE *out, const char *text, const char *from, struct error *err)
{
    unsigned count = 0;
    if (!text)
        return true;
    if (strstr(text, "PRIVATE KEY"))
        return error_set(err, "%s is a private key, which no guest should have; name the public one, which ends in .pub", from);
    for (const char *line = text; *line; line += strspn(line, "\r\n")) {
        size_t length = strcspn(line, "\r\n");
        if (looks_like_key(line)) {
            fputs(count++ ? ", " : "public-keys: [", out);
            write_key(out, line, length);
        }
        line += length;
    }
    if (!count)
        return error_set(err, "there is no public SSH key in %s", from);
    fputs("]\n", out);
    return true;
}

/* To be freed. NULL: err says why. */
static char *key_list(const struct seed_contents *contents, struct error *err)
{
    char *list = NULL;
    size_t size;
    FILE *out = open_memstream(&list, &size);
    if (!out) {
        error_set(err, "no memory for the seed");
        return NULL;
    }
    bool done = write_keys(out, contents->ssh_keys, contents->keys_from, err);
    if (fclose(out) && done)
        done = error_set(err, "no memory for the seed");
    if (done)
        return list;
    free(list);
    return NULL;
}

/* --- the file --- */

/* The directory, and those above it, for its owner alone. */
static bool make_directories(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        bool made = mkdir(path, 0700) == 0 || errno == EEXIST;
        *slash = '/';
        if (!made)
            return false;
    }
    return true;
}

static bool seed_path(char path[PATH_MAX], uint64_t hash, struct error *err)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    bool absolute = cache && *cache == '/';
    if (!absolute && !home)
        return error_set(err, "neither XDG_CACHE_HOME nor HOME says where the seed can be kept");
    int used = snprintf(path, PATH_MAX, "%s%s/doppel/seeds/%016llx.iso", absolute ? cache : home, absolute ? "" : "/.cache", (unsigned long long)hash);
    return used < PATH_MAX || error_set(err, "the name of the cache directory is too long");
}

/* In one step, so that another run finds all of it or nothing. What is in it may be secret. */
static bool write_image(char *path, const uint8_t *image, size_t size, struct error *err)
{
    char temporary[PATH_MAX];
    if (!make_directories(path) || snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path) >= (int)sizeof(temporary))
        return error_errno(err, errno, "cannot make the directory of %s", path);
    int fd = mkostemp(temporary, O_CLOEXEC);
    bool written = fd >= 0 && io_write_all(fd, image, size);
    if (fd >= 0)
        close(fd);
    if (written && rename(temporary, path) == 0)
        return true;
    error_errno(err, errno, "cannot write the seed %s", path);
    if (fd >= 0)
        unlink(temporary);
    return false;
}

static bool write_seed(char path[PATH_MAX], const char *name, const char *user, const char *keys, struct error *err)
{
    uint64_t hash = XXH3_64bits_withSeed(user, strlen(user), XXH3_64bits_withSeed(keys, strlen(keys), XXH3_64bits(name, strlen(name))));
    char *meta;
    int length = asprintf(&meta, "instance-id: %s-%016llx\nlocal-hostname: %s\n%s", name, (unsigned long long)hash, name, keys);
    if (length < 0)
        return error_set(err, "no memory for the seed");
    const struct seed_file files[] = { { "meta-data", meta, (uint32_t)length }, { "user-data", user, (uint32_t)strlen(user) } };
    uint8_t *image = NULL;
    size_t size;
    bool done = seed_path(path, hash, err) && (seed_image("cidata", files, 2, &image, &size) || error_set(err, "no memory for the seed")) &&
                write_image(path, image, size, err);
    free(image);
    free(meta);
    return done;
}

char *seed_add_disk(const struct seed_contents *contents, struct machine_config *config, struct error *err)
{
    char path[PATH_MAX];
    if (config->disk_count == MACHINE_DISKS_MAX) {
        error_set(err, "a machine has at most %d disks, and the seed is one", MACHINE_DISKS_MAX);
        return NULL;
    }
    char *keys = key_list(contents, err), *kept = NULL;
    if (keys && write_seed(path, contents->name ? contents->name : "doppel", contents->user_data ? contents->user_data : "#cloud-config\n{}\n", keys, err) &&
        !(kept = strdup(path)))
        error_set(err, "no memory for the seed");
    free(keys);
    if (kept)
        config->disk[config->disk_count++] = (struct disk_config){ .path = kept, .image = { .format = DISK_FORMAT_RAW, .read_only = true } };
    return kept;
}
